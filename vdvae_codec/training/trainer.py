"""One training's state, one step of it, and its checkpoints."""

from __future__ import annotations

import dataclasses
import functools
import math
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from vdvae_codec.checkpoint import load_tensors, save_tensors
from vdvae_codec.config import ModelConfig, TrainConfig, from_dict
from vdvae_codec.errors import TrainingError
from vdvae_codec.model.blocks import Bottleneck, Conv, Pair
from vdvae_codec.model.layers import LatentLayer, PixelLayer
from vdvae_codec.model.vdvae import VDVAE, Elbo, elbo
from vdvae_codec.training.ema import Ema
from vdvae_codec.training.muon import Muon
from vdvae_codec.training.parallel import ALONE, Processes


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up over at most a tenth of the steps, a plateau, a cosine to zero over the last ``cooldown`` part."""
    rise = min(1.0, (step + 1) / min(config.warmup_steps, 1 + config.steps // 10))
    start = (1 - config.cooldown) * config.steps
    fall = min(1.0, max(0.0, (step - start) / max(1.0, config.steps - start)))
    return config.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * fall))


def kl_weight(config: TrainConfig, step: int) -> float:
    """Rises from 0.001 to 1 as a cube, which wakes latents that would otherwise collapse."""
    part = min(1.0, step / config.kl_warmup_steps) if config.kl_warmup_steps else 1.0
    return 0.001 + 0.999 * part**3


def stack_terms(terms: Elbo, x: Tensor) -> tuple[Tensor, Tensor]:
    """(latent layers,) and (pixel layers,) in bits per sub-pixel."""
    kl = torch.stack([k.sum() for k in terms.kl_nats]) if terms.kl_nats else torch.zeros(0, device=x.device)
    nll, bits = torch.stack([t.sum() for t in terms.nll_nats]), terms.dims * math.log(2)
    return kl / bits, nll / bits


def bf16_is_fast(device: torch.device) -> bool:
    """Whether the device multiplies bf16 natively; CPUs without it emulate, a hundred times slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def optimizers(model: VDVAE, recipe: TrainConfig) -> dict[str, torch.optim.Optimizer]:
    """By their names in checkpoints; ``peak`` of each is relative to ``recipe.learning_rate``.

    With ``recipe.muon`` the weights between features of pixel layers belong to Muon. Those that read or give scales,
    weights and predictions stay with AdamW, and so do biases, the encoder and latent layers: idle ones have little but
    noise for a gradient, which Muon would turn into steps of full size.
    """
    inner = [
        f"layers.{n}.{name}.weight"
        for n, layer in enumerate(model.layers if recipe.muon else ()) if isinstance(layer, PixelLayer)
        for name, m in layer.named_modules() if isinstance(m, Conv) and name not in ("head", "predictor")
    ]  # fmt: skip
    weights = {n: p for n, p in model.named_parameters() if n in inner}
    others = [p for n, p in model.named_parameters() if n not in weights]
    adamw = torch.optim.AdamW(others, lr=0.0, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True)
    found: dict[str, torch.optim.Optimizer] = {"optimizer": adamw}
    adamw.param_groups[0]["peak"] = 1.0
    if weights:
        dtype = torch.bfloat16 if bf16_is_fast(others[0].device) else torch.float32
        found["muon"] = Muon(weights.values(), lr=0.0, weight_decay=recipe.weight_decay, dtype=dtype)
        found["muon"].param_groups[0]["peak"] = recipe.muon
    return found


class Objective(nn.Module):
    """The negative ELBO as a module, which is what DistributedDataParallel and torch.compile take."""

    def __init__(self, model: VDVAE):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images x (B, 3, H, W) in pixel levels to bits per dim: (latent layers,) KL and (pixel layers,) NLL."""
        return stack_terms(elbo(self.model, x), x)


@dataclass(frozen=True)
class Step:
    """What a step saw, over the images of all processes."""

    kl_bpd: list[float]
    nll_bpd: list[float]
    grad_norm: float
    taken: bool
    flagged: bool  # some process raised its flag

    @property
    def bpd(self) -> float:
        return sum(self.kl_bpd) + sum(self.nll_bpd)


class Trainer:
    """Everything that a checkpoint holds: model, moving average, optimizer, step and the running gradient norm."""

    def __init__(self, config: ModelConfig, recipe: TrainConfig, device: torch.device, processes: Processes = ALONE):
        torch.manual_seed(recipe.seed)
        self.config, self.recipe, self.device, self.processes = config, recipe, device, processes
        self.model = VDVAE(config).to(device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = Ema(self.model, recipe.ema)
        if recipe.recompute:
            recompute(self.model)
        self.optimizers = optimizers(self.model, recipe)
        self.step = 0
        self.skipped = 0
        self.seconds = 0.0
        self.running_norm = 0.0
        self.autocast = bf16_is_fast(device)
        self.objective: nn.Module = Objective(self.model)
        if processes.world > 1:
            self.objective = DistributedDataParallel(self.objective, broadcast_buffers=False)
        if device.type == "cuda":
            self.objective.compile()
        self._latents = sum(isinstance(layer, LatentLayer) for layer in self.model.layers)

    def update(self, chunks: Sequence[Tensor], flag: bool = False) -> Step:
        """One step on this process's images: chunks (B, 3, H, W) uint8 or float, whose gradients are averaged.

        The noise of a chunk depends on seed, step and the chunk's place among those of all processes, so that
        one process with two chunks takes the same step as two processes with one each.
        """
        recipe, world = self.recipe, self.processes.world
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * learning_rate(recipe, self.step)
            optimizer.zero_grad(set_to_none=True)
        weight = kl_weight(recipe, self.step)
        shares = len(chunks) * world
        seen = torch.zeros(0)
        for n, chunk in enumerate(chunks):
            place = self.processes.rank * len(chunks) + n
            torch.manual_seed(((recipe.seed * 1_000_003 + self.step) * 4099 + place) % 2**63)
            x = chunk.to(self.device, non_blocking=True).float().contiguous()
            last = n == len(chunks) - 1
            alone = isinstance(self.objective, DistributedDataParallel) and not last
            with self.objective.no_sync() if alone else nullcontext():  # type: ignore[operator]
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                    kl, nll = self.objective(x)
                loss = (weight * kl.sum() + nll.sum()) / len(chunks)
                loss.backward()
            terms = torch.cat([kl, nll]).detach()
            seen = terms if n == 0 else seen + terms
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        both = torch.stack([norm / world, norm.new_tensor(float(flag))])
        *means, norm_value, flags = self.processes.sum(torch.cat([seen / shares, both])).tolist()
        taken = self._apply(gradients, norm_value)
        return Step(means[: self._latents], means[self._latents :], norm_value, taken, flags > 0)

    def _apply(self, gradients: list[Tensor], norm: float) -> bool:
        """Clips and takes the step, unless the gradient norm is not finite or an outlier."""
        recipe = self.recipe
        usual = self.running_norm if self.step > 20 else math.inf
        taken = math.isfinite(norm) and norm < recipe.skip * usual
        if taken:
            if norm > recipe.clip * usual:
                torch._foreach_mul_(gradients, recipe.clip * usual / norm)
            for optimizer in self.optimizers.values():
                optimizer.step()
            self.ema.update(self.model, self.step)
        else:
            self.skipped += 1
        if math.isfinite(norm):
            # A skipped step still moves the running norm, so that no threshold can skip for ever (openai/vdvae #25).
            self.running_norm += 0.02 * (min(norm, 4 * usual) - self.running_norm) if self.running_norm else norm
        self.step += 1
        return taken

    def start_from(self, folder: Path) -> None:
        """Takes a checkpoint's averaged weights and nothing else. Raises TrainingError if its model is another one."""
        weights = self._weights(*load_tensors(folder), folder, "ema.")
        self.model.load_state_dict(weights)
        self.ema.model.load_state_dict(weights)

    def _weights(self, tensors: dict[str, Tensor], meta: dict[str, Any], folder: Path, part: str) -> dict[str, Tensor]:
        if from_dict(ModelConfig, meta["config"]) != self.config:
            raise TrainingError(f"{folder}: its model differs from the one asked for")
        return {k.removeprefix(part): v for k, v in tensors.items() if k.startswith(part)}

    def save(self, run: Path, shard_mib: float, keep: int, meta: dict[str, Any]) -> None:
        """Writes ``run/checkpoint-STEP`` and removes all but the last ``keep``; ``meta`` is kept for the caller."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.model.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            for n, state in optimizer.state_dict()["state"].items():
                tensors |= {f"{name}.{n}.{k}": v for k, v in state.items()}
        meta = {
            "step": self.step, "skipped": self.skipped, "seconds": self.seconds, "running_norm": self.running_norm,
            "config": dataclasses.asdict(self.config), "recipe": dataclasses.asdict(self.recipe), **meta,
        }
        save_tensors(run / f"checkpoint-{self.step:08d}", tensors, meta, shard_mib)
        for old in sorted(run.glob("checkpoint-????????"))[:-keep]:
            shutil.rmtree(old)

    def load(self, folder: Path) -> dict[str, Any]:
        """Reads a checkpoint; returns all of its meta data. Raises TrainingError if its model is another one, or if it
        holds averaged weights alone."""
        tensors, meta = load_tensors(folder)
        if not any(k.startswith("model.") for k in tensors):
            raise TrainingError(f"{folder}: holds averaged weights only; begin a new run with --init")
        self.model.load_state_dict(self._weights(tensors, meta, folder, "model."))
        self.ema.model.load_state_dict(self._weights(tensors, meta, folder, "ema."))
        for kind, optimizer in self.optimizers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(f"{kind}."):
                    _, n, name = key.split(".")
                    if value.ndim == 4:  # the fused optimizer wants its state laid out as the weights are
                        value = value.contiguous(memory_format=torch.channels_last)
                    state.setdefault(int(n), {})[name] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        self.step, self.skipped = meta["step"], meta["skipped"]
        self.seconds, self.running_norm = meta["seconds"], meta["running_norm"]
        return meta


def recompute(model: VDVAE) -> None:
    """Lets every bottleneck keep its input only and compute the rest again in the backward pass: less memory."""
    for module in model.modules():
        if isinstance(module, (Bottleneck, Pair)):
            module.forward = functools.partial(  # type: ignore[method-assign]
                checkpoint, module.forward, use_reentrant=False, preserve_rng_state=False
            )

"""One training's state, one step of it, and its checkpoints."""

from __future__ import annotations

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

from vdvae_codec.errors import TrainingError
from vdvae_codec.model.blocks import Bottleneck
from vdvae_codec.model.config import ModelConfig, to_dict
from vdvae_codec.model.elbo import Elbo, elbo
from vdvae_codec.model.vdvae import VDVAE
from vdvae_codec.training.chance import seeded
from vdvae_codec.training.checkpoint import averaged, describe, load_tensors, read_checkpoint, save_tensors
from vdvae_codec.training.optimizers import Ema, bf16_is_fast, optimizers
from vdvae_codec.training.parallel import ALONE, Processes
from vdvae_codec.training.recipe import Recipe
from vdvae_codec.training.start import Start


def learning_rate(config: Recipe, step: int) -> float:
    """Linear warm-up over at most a tenth of the steps, a plateau, a cosine to zero over the last ``cooldown`` part."""
    rise = min(1.0, (step + 1) / min(config.warmup_steps, 1 + config.steps // 10))
    start = (1 - config.cooldown) * config.steps
    fall = min(1.0, max(0.0, (step - start) / max(1.0, config.steps - start)))
    return config.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * fall))


def kl_weight(config: Recipe, step: int) -> float:
    """Rises from 0.001 to 1 as a cube, which wakes latents that would otherwise collapse."""
    part = min(1.0, step / config.kl_warmup_steps) if config.kl_warmup_steps else 1.0
    return 0.001 + 0.999 * part**3


def free_bpd(model: VDVAE, recipe: Recipe) -> Tensor:
    """(latent layers,): the KL of each that costs nothing, in bits per sub-pixel."""
    strides = torch.tensor([float(layer.stride) for layer in model.latent_layers])
    return recipe.free_nats / (strides**2 * model.config.channels * math.log(2))


def stack_terms(terms: Elbo, x: Tensor) -> tuple[Tensor, Tensor]:
    """(latent layers,) and (pixel layers,) in bits per sub-pixel."""
    kl = torch.stack([k.sum() for k in terms.kl_nats]) if terms.kl_nats else torch.zeros(0, device=x.device)
    nll, bits = torch.stack([t.sum() for t in terms.nll_nats]), terms.dims * math.log(2)
    return kl / bits, nll / bits


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

    def __init__(self, config: ModelConfig, recipe: Recipe, device: torch.device, processes: Processes = ALONE):
        self.config, self.recipe, self.device, self.processes = config, recipe, device, processes
        with seeded(recipe.seed, device):
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
            self.objective = DistributedDataParallel(self.objective)
        if device.type == "cuda":
            self.objective.compile()
        self._latents = len(self.model.latent_layers)
        self._free_bpd = free_bpd(self.model, recipe).to(device)

    def update(self, chunks: Sequence[Tensor], flag: bool = False) -> Step:
        """One step on this process's images: chunks (B, 3, H, W) uint8 or float, whose gradients are averaged.

        The noise of a chunk depends on seed, step and the chunk's place among those of all processes, so that
        one process with two chunks takes the same step as two processes with one each.
        """
        world = self.processes.world
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * learning_rate(self.recipe, self.step)
            optimizer.zero_grad(set_to_none=True)
        terms = torch.stack([self._backward(n, chunks) for n in range(len(chunks))]).sum(0)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        both = torch.stack([norm / world, norm.new_tensor(float(flag))])
        *means, norm_value, flags = self.processes.sum(torch.cat([terms / (len(chunks) * world), both])).tolist()
        taken = self._apply(gradients, norm_value)
        return Step(means[: self._latents], means[self._latents :], norm_value, taken, flags > 0)

    def _backward(self, n: int, chunks: Sequence[Tensor]) -> Tensor:
        """Adds the n-th chunk's share to the gradients; bits per dim (latent and pixel layers,)."""
        place = self.processes.rank * len(chunks) + n
        x = chunks[n].to(self.device, non_blocking=True).float().contiguous()
        more = isinstance(self.objective, DistributedDataParallel) and n < len(chunks) - 1
        seed = ((self.recipe.seed * 1_000_003 + self.step) * 4099 + place) % 2**63
        with self.objective.no_sync() if more else nullcontext(), seeded(seed, self.device):  # type: ignore[operator]
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                kl, nll = self.objective(x)
            costly = torch.maximum(kl, self._free_bpd) if len(kl) else kl
            loss = (kl_weight(self.recipe, self.step) * costly.sum() + nll.sum()) / len(chunks)
            loss.backward()
        return torch.cat([kl, nll]).detach()

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

    def start_from(self, start: Start) -> None:
        """Takes weights and nothing else. Raises TrainingError if they are those of another architecture."""
        self._check(start.config, start.name)
        self.model.load_state_dict(start.state)
        self.ema.model.load_state_dict(start.state)

    def _check(self, config: ModelConfig, name: str | Path) -> None:
        if to_dict(config, single=True) != to_dict(self.config, single=True):
            raise TrainingError(f"{name}: its model differs from the one asked for")

    def save(self, run: Path, shard_mib: float, keep: int, meta: dict[str, Any]) -> None:
        """Writes ``run/checkpoint-STEP`` and removes all but the last ``keep``; ``meta`` is kept for the caller."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.model.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            for n, state in optimizer.state_dict()["state"].items():
                tensors |= {f"{name}.{n}.{k}": v for k, v in state.items()}
        meta = {
            "step": self.step, "skipped": self.skipped, "seconds": self.seconds, "running_norm": self.running_norm,
            **describe(self.config, self.recipe), **meta,
        }
        save_tensors(run / f"checkpoint-{self.step:08d}", tensors, meta, shard_mib)
        for old in sorted(run.glob("checkpoint-????????"))[:-keep]:
            shutil.rmtree(old)

    def load(self, folder: Path) -> dict[str, Any]:
        """Reads a checkpoint; returns all of its meta data.

        Raises TrainingError if its model is another one, or if it holds averaged weights alone.
        """
        self._check(read_checkpoint(folder)[0], folder)
        tensors, meta = load_tensors(folder)
        weights = {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")}
        if not weights:
            raise TrainingError(f"{folder}: holds averaged weights only; begin a new run with --init")
        self.model.load_state_dict(weights)
        self.ema.model.load_state_dict(averaged(tensors))
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
        if isinstance(module, Bottleneck):
            module.forward = functools.partial(  # type: ignore[method-assign]
                checkpoint, module.forward, use_reentrant=False, preserve_rng_state=False
            )

"""The training loop: float or bf16, CPU or CUDA, a time budget, and resumption from a checkpoint."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import math
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vdvae_codec.checkpoint import latest_checkpoint, load_tensors, save_tensors
from vdvae_codec.config import ModelConfig, TrainConfig, from_dict
from vdvae_codec.errors import TrainingError
from vdvae_codec.model.vdvae import VDVAE, Elbo, elbo
from vdvae_codec.training.data import random_crops
from vdvae_codec.training.ema import Ema
from vdvae_codec.training.plots import plot_loss, sample_sheet

log = logging.getLogger(__name__)
VALIDATION_CROPS, VALIDATION_SIDE = 48, 128
KEEP = 2  # checkpoints


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, a plateau, and a cosine to zero over the last ``cooldown`` part of the steps."""
    rise = min(1.0, (step + 1) / config.warmup_steps)
    start = (1 - config.cooldown) * config.steps
    fall = min(1.0, max(0.0, (step - start) / max(1.0, config.steps - start)))
    return config.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * fall))


def kl_weight(config: TrainConfig, step: int) -> float:
    """Rises from 0.001 to 1 as a cube, which wakes latents that would otherwise collapse."""
    return 0.001 + 0.999 * min(1.0, step / max(1, config.kl_warmup_steps)) ** 3


def bpd(nats: Tensor, x: Tensor) -> Tensor:
    """Summed nats to bits per sub-pixel of x (B, 3, H, W)."""
    return nats / (x.numel() * math.log(2))


@torch.no_grad()
def validate(model: VDVAE, batches: list[Tensor]) -> dict[str, Any]:
    """Bits per dim on fixed crops: ``bpd``, ``kl_bpd`` per latent layer, ``nll_bpd`` per pixel layer."""
    kl: Tensor | None = None
    nll: Tensor | None = None
    for n, x in enumerate(batches):
        torch.manual_seed(n)
        terms = elbo(model, x)
        kl_now, nll_now = stack_terms(terms, x)
        kl = kl_now if kl is None else kl + kl_now
        nll = nll_now if nll is None else nll + nll_now
    assert kl is not None and nll is not None
    kl_bpd, nll_bpd = (kl / len(batches)).tolist(), (nll / len(batches)).tolist()
    return {"bpd": sum(kl_bpd) + sum(nll_bpd), "kl_bpd": kl_bpd, "nll_bpd": nll_bpd}


def stack_terms(terms: Elbo, x: Tensor) -> tuple[Tensor, Tensor]:
    """(latent layers,) and (pixel layers,) in bits per sub-pixel."""
    kl = torch.stack([k.sum() for k in terms.kl_nats]) if terms.kl_nats else torch.zeros(0, device=x.device)
    return bpd(kl, x), bpd(torch.stack([t.sum() for t in terms.nll_nats]), x)


@contextmanager
def stop_on_signal() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in the yielded list instead of raising, so that a step is finished first."""
    caught: list[int] = []
    old = {s: signal.signal(s, lambda number, frame: caught.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)


class Trainer:
    """Everything that a checkpoint holds: model, moving average, optimizer, step and the running gradient norm."""

    def __init__(self, config: ModelConfig, recipe: TrainConfig, device: torch.device):
        torch.manual_seed(recipe.seed)
        self.config, self.recipe, self.device = config, recipe, device
        self.model = VDVAE(config).to(device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = Ema(self.model, recipe.ema)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=0.0, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True
        )
        self.step = 0
        self.skipped = 0
        self.seconds = 0.0
        self.running_norm = 0.0
        self.elbo = torch.compile(elbo) if device.type == "cuda" else elbo

    def update(self, x: Tensor) -> tuple[float, float]:
        """One step on images x (B, 3, H, W); returns (bits per dim, NaN if the step was skipped; gradient norm)."""
        recipe, step = self.recipe, self.step
        torch.manual_seed(recipe.seed * 1_000_003 + step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        with torch.autocast(self.device.type, torch.bfloat16):
            kl, nll = stack_terms(self.elbo(self.model, x), x)
        loss = kl_weight(recipe, step) * kl.sum() + nll.sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        usual = self.running_norm if step > 20 else math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip * usual))
        taken = math.isfinite(norm) and norm < recipe.skip * usual
        if taken:
            self.optimizer.step()
            self.ema.update(self.model, step)
        else:
            self.skipped += 1
        if math.isfinite(norm):
            # A skipped step still moves the running norm, so that no threshold can skip for ever (openai/vdvae #25).
            self.running_norm += 0.02 * (min(norm, 4 * usual) - self.running_norm) if self.running_norm else norm
        self.step += 1
        return float((kl.sum() + nll.sum()).detach()) if taken else math.nan, norm

    def save(self, run: Path, shard_mib: float) -> None:
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.model.state_dict().items()}
        for n, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{n}.{k}": v for k, v in state.items()}
        meta = {
            "step": self.step, "skipped": self.skipped, "seconds": self.seconds, "running_norm": self.running_norm,
            "config": dataclasses.asdict(self.config), "recipe": dataclasses.asdict(self.recipe),
        }
        save_tensors(run / f"checkpoint-{self.step:08d}", tensors, meta, shard_mib)
        for old in sorted(run.glob("checkpoint-????????"))[:-KEEP]:
            shutil.rmtree(old)

    def load(self, folder: Path) -> None:
        tensors, meta = load_tensors(folder)
        if from_dict(ModelConfig, meta["config"]) != self.config:
            raise TrainingError(f"{folder}: its model differs from the one asked for")
        self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        self.ema.model.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("ema.")})
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, n, name = key.split(".")
                if value.ndim == 4:  # the fused optimizer wants its state laid out as the weights are
                    value = value.contiguous(memory_format=torch.channels_last)
                state.setdefault(int(n), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.step, self.skipped = meta["step"], meta["skipped"]
        self.seconds, self.running_norm = meta["seconds"], meta["running_norm"]


def train(
    config: ModelConfig, recipe: TrainConfig, images: list[np.ndarray], held_out: list[np.ndarray], run: Path,
    device: torch.device, *, resume: bool = False, minutes: float | None = None, shard_mib: float = 1024,
) -> Path:
    """Trains until ``recipe.steps``, the time budget, SIGINT or SIGTERM; returns the final checkpoint's folder.

    Writes into ``run``: checkpoints, ``log.jsonl``, ``loss.png`` and ``samples-STEP.png`` at each validation. Raises
    TrainingError if ``run`` already holds a training and ``resume`` is false, or holds none and it is true.
    """
    if recipe.steps < 1:
        raise TrainingError(f"steps: expected at least 1, got {recipe.steps}")
    if recipe.crop % config.max_stride:
        raise TrainingError(f"crop {recipe.crop} is no multiple of the model's largest stride {config.max_stride}")
    if importlib.util.find_spec("matplotlib") is None:
        raise TrainingError("training draws its curves with matplotlib: pip install 'vdvae-codec[train]'")
    trainer = Trainer(config, recipe, device)
    last = latest_checkpoint(run)
    if last is not None and not resume:
        raise TrainingError(f"{run}: holds a training at {last.name}; resume it or choose another folder")
    if resume and last is None:
        raise TrainingError(f"{run}: holds no checkpoint to resume from")
    if last is not None:
        trainer.load(last)
    run.mkdir(parents=True, exist_ok=True)
    side = min(VALIDATION_SIDE, min(min(i.shape[:2]) for i in held_out) // config.max_stride * config.max_stride)
    crops = random_crops(held_out, VALIDATION_CROPS, side, (recipe.seed, 1), augment=False).to(device)
    batches = list(torch.split(crops, 8))
    begun, done_before = time.monotonic(), trainer.seconds
    losses: list[float] = []

    def record(norm: float) -> None:
        result = validate(trainer.ema.model, batches)
        row = {
            "step": trainer.step, "seconds": round(trainer.seconds, 1), "train_bpd": float(np.mean(losses)),
            "validation_bpd": result["bpd"], "kl_bpd": result["kl_bpd"], "nll_bpd": result["nll_bpd"],
            "learning_rate": learning_rate(recipe, trainer.step), "grad_norm": norm, "skipped": trainer.skipped,
        }
        losses.clear()
        with (run / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        trainer.save(run, shard_mib)
        plot_loss(run / "log.jsonl", run / "loss.png")
        sample_sheet(trainer.ema.model, crops[:8], run / f"samples-{trainer.step:08d}.png")

    norm = float("nan")
    with stop_on_signal() as stopped, tqdm(total=recipe.steps, initial=trainer.step, unit="step", disable=None) as bar:
        while trainer.step < recipe.steps:
            batch = random_crops(images, recipe.batch, recipe.crop, (recipe.seed, 0, trainer.step))
            loss, norm = trainer.update(batch.to(device))
            losses.append(loss)
            trainer.seconds = done_before + time.monotonic() - begun
            bar.update()
            if trainer.step % 50 == 0:
                bar.set_postfix(bpd=f"{np.nanmean(losses[-200:]):.3f}", skipped=trainer.skipped)
            if stopped or (minutes is not None and time.monotonic() - begun > 60 * minutes):
                break
            if trainer.step % recipe.validate_every == 0:
                record(norm)
    if losses:
        record(norm)
    final = latest_checkpoint(run)
    assert final is not None
    return final

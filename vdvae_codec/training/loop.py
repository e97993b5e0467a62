"""The training loop: batches in, log, pictures and checkpoints out; a time budget, signals and exact resumption."""

from __future__ import annotations

import importlib.util
import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vdvae_codec.checkpoint import latest_checkpoint
from vdvae_codec.config import ModelConfig, TrainConfig
from vdvae_codec.errors import TrainingError
from vdvae_codec.model.vdvae import VDVAE, elbo
from vdvae_codec.training.data import Crops, Images, ahead
from vdvae_codec.training.parallel import ALONE, Processes
from vdvae_codec.training.plots import plot_loss, sample_sheet
from vdvae_codec.training.trainer import Step, Trainer, learning_rate, stack_terms

VALIDATION_PIXELS, VALIDATION_SIDE, VALIDATION_BATCH = 48 * 128**2, 128, 2**17
LOG_EVERY = 100  # steps
SAVE_SECONDS = 600.0


@dataclass(frozen=True)
class RunOptions:
    """How a training is begun, watched and kept."""

    resume: bool = False
    start: Path | None = None  # the checkpoint whose weights a new training starts with
    minutes: float | None = None
    shard_mib: float = 1024
    keep: int = 2  # checkpoints


PLAIN = RunOptions()


@torch.no_grad()
def validate(model: VDVAE, batches: list[Tensor], processes: Processes = ALONE) -> dict[str, Any]:
    """Bits per dim on equally large batches: ``validation_bpd``, ``kl_bpd`` per latent and ``nll_bpd`` per pixel layer.

    The processes share the batches.
    """
    device = next(model.parameters()).device
    latents, total = 0, torch.zeros(0)
    for n in range(processes.rank, len(batches), processes.world):
        torch.manual_seed(n)
        x = batches[n].to(device).float()
        kl, nll = stack_terms(elbo(model, x), x)
        latents, terms = len(kl), torch.cat([kl, nll]).double()
        total = terms if len(total) == 0 else total + terms
    if len(total) == 0:  # more processes than batches
        x = torch.zeros_like(batches[0][:1]).to(device).float()
        kl, nll = stack_terms(elbo(model, x), x)
        latents, total = len(kl), torch.cat([kl, nll]).double() * 0
    means = (processes.sum(total) / len(batches)).tolist()
    return {"validation_bpd": sum(means), "kl_bpd": means[:latents], "nll_bpd": means[latents:]}


@dataclass
class Sums:
    """What the log's next row averages over; kept in checkpoints, so that a resumed run writes the same rows."""

    taken: int = 0
    bpd: float = 0.0
    grad_norm: float = 0.0
    kl_bpd: list[float] = field(default_factory=list)

    def add(self, step: Step) -> None:
        if step.taken:
            self.taken += 1
            self.bpd += step.bpd
            self.grad_norm += step.grad_norm
            self.kl_bpd = [a + b for a, b in zip(self.kl_bpd or [0.0] * len(step.kl_bpd), step.kl_bpd)]

    def row(self) -> dict[str, Any]:
        """Means over the steps that were taken; null where there were none."""
        n = self.taken
        return {
            "train_bpd": self.bpd / n if n else None, "train_kl_bpd": [k / n for k in self.kl_bpd],
            "grad_norm": self.grad_norm / n if n else None,
        }


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


def validation_batches(held_out: Images, config: ModelConfig, recipe: TrainConfig) -> list[Tensor]:
    """Fixed crops of images that are not trained on, as large as the smallest of them allows: (B, 3, s, s) uint8."""
    side = config.side or min(VALIDATION_SIDE, int(held_out.sizes.min()) // config.max_stride * config.max_stride)
    pixels = min(VALIDATION_PIXELS, int(held_out.sizes.prod(1).sum()))
    size = max(1, min(VALIDATION_BATCH, pixels) // side**2)
    count = max(1, pixels // side**2 // size) * size
    crops = Crops(held_out, side, "none").batch((recipe.seed, 1), 0, count)
    return list(torch.split(crops, size))


def check(config: ModelConfig, recipe: TrainConfig, run: Path, resume: bool, world: int = 1) -> None:
    """Raises TrainingError if the recipe does not fit the model or the number of processes, or if ``run`` already holds
    a training and ``resume`` is false, or holds none and it is true."""
    if recipe.steps < 1:
        raise TrainingError(f"steps: expected at least 1, got {recipe.steps}")
    if recipe.crop % config.max_stride:
        raise TrainingError(f"crop {recipe.crop} is no multiple of the model's largest stride {config.max_stride}")
    chunk = chunk_size(recipe, world)
    if chunk < 1 or recipe.batch % (chunk * world):
        raise TrainingError(f"a batch of {recipe.batch} is no multiple of {world} processes' chunks of {chunk}")
    if importlib.util.find_spec("matplotlib") is None:
        raise TrainingError("training draws its curves with matplotlib: pip install 'vdvae-codec[train]'")
    last = latest_checkpoint(run)
    if last is not None and not resume:
        raise TrainingError(f"{run}: holds a training at {last.name}; resume it or choose another folder")
    if last is None and resume:
        raise TrainingError(f"{run}: holds no checkpoint to resume from")


def chunk_size(recipe: TrainConfig, world: int) -> int:
    """Images of one forward and backward pass of one process."""
    return recipe.micro_batch or recipe.batch // world


def begin(trainer: Trainer, run: Path, start: Path | None) -> Sums:
    """Loads the run's latest checkpoint and drops log rows that it does not know of; without one, takes ``start``."""
    last = latest_checkpoint(run)
    if last is None:
        if start is not None:
            trainer.start_from(start)
        return Sums()
    meta = trainer.load(last)
    log = run / "log.jsonl"
    if trainer.processes.first and log.exists():
        rows = [line for line in log.read_text().splitlines(True) if line.endswith("\n")]
        log.write_text("".join(line for line in rows if json.loads(line)["step"] <= trainer.step))
    return Sums(**meta.get("sums", {}))


def train(
    config: ModelConfig, recipe: TrainConfig, images: Images, held_out: Images, run: Path, device: torch.device,
    options: RunOptions = PLAIN, processes: Processes = ALONE,
) -> Path:
    """Trains until ``recipe.steps``, the time budget, SIGINT or SIGTERM; returns the final checkpoint's folder.

    Writes into ``run``: checkpoints, ``log.jsonl``, ``loss.png`` and ``samples-STEP.png`` at each validation, and
    TensorBoard's events if it is installed. Raises TrainingError as ``check`` does, or if an image is too small.
    """
    check(config, recipe, run, options.resume, processes.world)
    chunk = chunk_size(recipe, processes.world)
    mine = recipe.batch // processes.world  # images of a step that this process sees
    trainer = Trainer(config, recipe, device, processes)
    sums = begin(trainer, run, options.start)
    run.mkdir(parents=True, exist_ok=True)
    crops = Crops(images, recipe.crop, recipe.augment)
    validation = validation_batches(held_out, config, recipe)
    begun, done_before = time.monotonic(), trainer.seconds
    saved_at, saved = begun, trainer.step
    board = tensorboard(run, trainer.step) if processes.first else None

    def batch(step: int) -> Tensor:
        made = crops.batch((recipe.seed, 0, step), processes.rank * mine, mine)
        return made.pin_memory() if device.type == "cuda" else made

    def save() -> None:
        nonlocal saved_at, saved
        if processes.first and saved != trainer.step:
            trainer.save(run, options.shard_mib, options.keep, {"sums": vars(sums)})
        saved_at, saved = time.monotonic(), trainer.step

    def record(whole: bool) -> None:
        """A row of the log; a ``whole`` one with validation and pictures."""
        nonlocal sums
        row = {
            "step": trainer.step, "seconds": round(trainer.seconds, 1), **sums.row(),
            "learning_rate": learning_rate(recipe, trainer.step), "skipped": trainer.skipped,
        }
        sums = Sums()
        if whole:
            row |= validate(trainer.ema.model, validation, processes)
        if not processes.first:
            return
        with (run / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        if board is not None:
            for name, value in row.items():
                values = {f"{name}/{n}": v for n, v in enumerate(value)} if isinstance(value, list) else {name: value}
                for tag, scalar in values.items():
                    if scalar is not None:
                        board.add_scalar(tag, scalar, trainer.step)
        if whole:
            plot_loss(run / "log.jsonl", run / "loss.png")
            shown = validation[0][:8].to(device).float()
            sample_sheet(trainer.ema.model, shown, run / f"samples-{trainer.step:08d}.png")

    steps = range(trainer.step, recipe.steps)
    bar = tqdm(total=recipe.steps, initial=trainer.step, unit="step", disable=None if processes.first else True)
    with stop_on_signal() as stopped, bar:
        for made in ahead(batch, steps):
            late = options.minutes is not None and time.monotonic() - begun > 60 * options.minutes
            step = trainer.update(torch.split(made, chunk), flag=bool(stopped) or late)
            sums.add(step)
            trainer.seconds = done_before + time.monotonic() - begun
            bar.update()
            whole = trainer.step % recipe.validate_every == 0 or trainer.step == recipe.steps
            if whole or trainer.step % LOG_EVERY == 0:
                bar.set_postfix(bpd=sums.row()["train_bpd"], skipped=trainer.skipped)
                record(whole)
            if step.flagged:
                break
            if whole or time.monotonic() - saved_at > SAVE_SECONDS:
                save()
    save()
    processes.wait()
    if board is not None:
        board.close()
    final = latest_checkpoint(run)
    assert final is not None
    return final


def tensorboard(run: Path, step: int) -> Any:
    """A writer of TensorBoard events if that is installed, or None."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run), purge_step=step)

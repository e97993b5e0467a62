"""The training loop: batches in, log, pictures and checkpoints out; a time budget, signals and exact resumption."""

from __future__ import annotations

import importlib.util
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vdvae_codec.errors import TrainingError
from vdvae_codec.model.config import ModelConfig
from vdvae_codec.model.elbo import elbo
from vdvae_codec.model.vdvae import VDVAE
from vdvae_codec.training.chance import seeded
from vdvae_codec.training.checkpoint import latest_checkpoint
from vdvae_codec.training.data import Crops, Images, ahead
from vdvae_codec.training.log import Log, Sums, forget_after
from vdvae_codec.training.parallel import ALONE, Processes
from vdvae_codec.training.recipe import Recipe
from vdvae_codec.training.start import Start
from vdvae_codec.training.trainer import Trainer, learning_rate, stack_terms

VALIDATION_PIXELS, VALIDATION_SIDE, VALIDATION_BATCH = 48 * 128**2, 128, 2**17
SHOWN = 8  # validation images on a sheet of samples
LOG_EVERY = 100  # steps
IDLE_BPD = 1e-5  # KL below which a latent layer has collapsed onto its prior
LOOKED_AT = 64  # images, for colours
SAVE_SECONDS = 600.0


@dataclass(frozen=True)
class RunOptions:
    """How a training is begun, watched and kept."""

    resume: bool = False
    start: Start | None = None  # whose weights a new training begins with, then without KL warm-up
    minutes: float | None = None
    shard_mib: float = 1024
    keep: int = 2  # checkpoints


PLAIN = RunOptions()


def train(
    config: ModelConfig, recipe: Recipe, images: Images, held_out: Images, run: Path, device: torch.device,
    options: RunOptions = PLAIN, processes: Processes = ALONE,
) -> Path:
    """Trains until ``recipe.steps``, the time budget, SIGINT or SIGTERM; returns the final checkpoint's folder.

    Writes into ``run``: checkpoints, ``log.jsonl``, ``loss.png`` and ``samples-STEP.png`` at each validation, and
    TensorBoard's events if it is installed. torch's generators and the signals' handlers are given back as they were.
    Raises TrainingError as ``check`` does, or if an image is too small.
    """
    check(config, recipe, run, options.resume, processes.world)
    if options.start is not None:
        recipe = replace(recipe, kl_warmup_steps=0)
    training = Training(config, recipe, images, held_out, run, device, options, processes)
    with stop_on_signal() as stopped:
        training.go(stopped)
    final = latest_checkpoint(run)
    assert final is not None
    return final


class Training:
    """A trainer with its images, its log and its clock."""

    def __init__(
        self, config: ModelConfig, recipe: Recipe, images: Images, held_out: Images, run: Path, device: torch.device,
        options: RunOptions, processes: Processes,
    ):
        self.recipe, self.run, self.device, self.options, self.processes = recipe, run, device, options, processes
        self.trainer = Trainer(config, recipe, device, processes)
        self.sums = begin(self.trainer, run, options.start)
        run.mkdir(parents=True, exist_ok=True)
        self.crops = Crops(images, recipe.crop, recipe.augment)
        self.validation = validation_batches(held_out, config, recipe)
        self.log = Log(run, self.trainer.step) if processes.first else None
        self.seconds_before, self.saved = self.trainer.seconds, self.trainer.step
        self.begun = self.saved_at = time.monotonic()
        if processes.first and config.channels == 1 and coloured(images):
            self.say("the model has one channel: of colour images it learns green alone")

    def go(self, stopped: list[int]) -> None:
        """Steps until the end, or until ``stopped`` holds something in any process; the last one is saved."""
        steps = range(self.trainer.step, self.recipe.steps)
        silent = None if self.processes.first else True
        chunk = chunk_size(self.recipe, self.processes.world)
        with tqdm(total=self.recipe.steps, initial=self.trainer.step, unit="step", disable=silent) as bar:
            for made in ahead(self.batch, steps):
                step = self.trainer.update(torch.split(made, chunk), flag=bool(stopped) or self.late())
                self.sums.add(step)
                self.trainer.seconds = self.seconds_before + time.monotonic() - self.begun
                bar.update()
                whole = self.trainer.step % self.recipe.validate_every == 0 or self.trainer.step == self.recipe.steps
                if whole or self.trainer.step % LOG_EVERY == 0:
                    bar.set_postfix(bpd=self.sums.row()["train_bpd"], skipped=self.trainer.skipped)
                    self.record(whole)
                if step.flagged:
                    break
                if whole or time.monotonic() - self.saved_at > SAVE_SECONDS:
                    self.save()
        self.save()
        self.processes.wait()
        if self.log is not None:
            self.log.close()

    def batch(self, step: int) -> Tensor:
        """This process's images of a step, (B, 3, crop, crop) uint8."""
        mine = self.recipe.batch // self.processes.world
        made = self.crops.batch((self.recipe.seed, 0, step), self.processes.rank * mine, mine)
        return made.pin_memory() if self.device.type == "cuda" else made

    def late(self) -> bool:
        """Whether the time budget is spent."""
        minutes = self.options.minutes
        return minutes is not None and time.monotonic() - self.begun > 60 * minutes

    def record(self, whole: bool) -> None:
        """A row of the log; a ``whole`` one with validation and pictures."""
        trainer = self.trainer
        row = {
            "step": trainer.step, "seconds": round(trainer.seconds, 1), **self.sums.row(),
            "learning_rate": learning_rate(self.recipe, trainer.step), "skipped": trainer.skipped,
        }
        self.sums = Sums()
        if whole:
            row |= validate(trainer.ema.model, self.validation, self.processes)
            row["idle"] = idle_layers(row["kl_bpd"])
            if row["idle"]:
                layers = ", ".join(f"{n} (stride {trainer.model.latent_layers[n].stride})" for n in row["idle"])
                self.say(f"step {trainer.step}: idle latent layers, KL below {IDLE_BPD:g} bits per dim: {layers}")
        if self.log is not None:
            self.log.write(row)
            if whole:
                shown = self.validation[0][:SHOWN].to(self.device).float()
                self.log.draw(trainer.ema.model, shown, trainer.step)

    def say(self, line: str) -> None:
        if self.processes.first:
            tqdm.write(line, file=sys.stderr)

    def save(self) -> None:
        if self.processes.first and self.saved != self.trainer.step:
            self.trainer.save(self.run, self.options.shard_mib, self.options.keep, {"sums": vars(self.sums)})
        self.saved_at, self.saved = time.monotonic(), self.trainer.step


def begin(trainer: Trainer, run: Path, start: Start | None) -> Sums:
    """Loads the run's latest checkpoint and drops log rows that it does not know of; without one, takes ``start``."""
    last = latest_checkpoint(run)
    if last is None:
        if start is not None:
            trainer.start_from(start)
        return Sums()
    meta = trainer.load(last)
    if trainer.processes.first:
        forget_after(run, trainer.step)
    return Sums(**meta.get("sums", {}))


def check(config: ModelConfig, recipe: Recipe, run: Path, resume: bool, world: int = 1) -> None:
    """Raises TrainingError if a training cannot be begun, or resumed.

    That is if the recipe does not fit the model or the number of processes, or if ``run`` already holds a training and
    ``resume`` is false, or holds none and it is true.
    """
    if recipe.steps < 1:
        raise TrainingError(f"steps: expected at least 1, got {recipe.steps}")
    if recipe.crop % config.multiple:
        raise TrainingError(f"crop {recipe.crop} is no multiple of {config.multiple}, as the model needs")
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


def idle_layers(kl_bpd: Sequence[float]) -> list[int]:
    """Which latent layers have collapsed onto their priors."""
    return [n for n, kl in enumerate(kl_bpd) if kl < IDLE_BPD]


def coloured(images: Images) -> bool:
    """Whether any of some images of a set has colours."""
    some = range(0, len(images.names), -(-len(images.names) // LOOKED_AT))
    return any((images[n] != images[n][..., :1]).any() for n in some)


def chunk_size(recipe: Recipe, world: int) -> int:
    """Images of one forward and backward pass of one process."""
    return recipe.micro_batch or recipe.batch // world


def validation_batches(held_out: Images, config: ModelConfig, recipe: Recipe) -> list[Tensor]:
    """Fixed crops of images that are not trained on, as large as the smallest of them allows: (B, 3, s, s) uint8."""
    side = config.side or min(VALIDATION_SIDE, int(held_out.sizes.min()) // config.multiple * config.multiple)
    pixels = min(VALIDATION_PIXELS, int(held_out.sizes.prod(1).sum()))
    size = max(1, min(VALIDATION_BATCH, pixels) // side**2)
    count = max(1, pixels // side**2 // size) * size
    crops = Crops(held_out, side, "none").batch((recipe.seed, 1), 0, count)
    return list(torch.split(crops, size))


@torch.no_grad()
def validate(model: VDVAE, batches: list[Tensor], processes: Processes = ALONE) -> dict[str, Any]:
    """Bits per dim on equally large batches: ``validation_bpd``, ``kl_bpd`` per latent and ``nll_bpd`` per pixel layer.

    Batches are (B, 3, H, W) in pixel levels, G, R, B. The processes share them.
    """
    total = torch.zeros(len(model.layers), dtype=torch.float64, device=model.bias.device)
    for n in range(processes.rank, len(batches), processes.world):
        with seeded(n, total.device):
            x = batches[n].to(total.device).float()
            total += torch.cat(stack_terms(elbo(model, x), x)).double()
    means, latents = (processes.sum(total) / len(batches)).tolist(), len(model.latent_layers)
    return {"validation_bpd": sum(means), "kl_bpd": means[:latents], "nll_bpd": means[latents:]}


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

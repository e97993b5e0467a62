"""Two experiments on the depth of plain VDVAEs (one pixel layer, all else by latents), on images shrunk to 16x16.

    python examples/depth.py stabilisers cifar-10-batches-py -o stabilisers.png
    python examples/depth.py width cifar-10-batches-py -o depth_width.png

``stabilisers``: 70 latent layers with and without the 1/sqrt(N) scaling and the gradient guard (clipping and skipping).
``width``: the same number of parameters and of latents, spread over more and more layers (VDVAE, claim 3).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import matplotlib.pyplot as plt
import numpy as np
import torch
from benchmark_photos import hardware, markdown
from torch import Tensor
from tqdm import tqdm

from vdvae_codec.model.blocks import Block
from vdvae_codec.model.config import ModelConfig
from vdvae_codec.model.encoder import EncoderStage, ResidualConfig
from vdvae_codec.model.layers.latent import LatentConfig
from vdvae_codec.model.layers.phase import PhaseConfig
from vdvae_codec.model.vdvae import VDVAE
from vdvae_codec.training.data import Crops, Images, split_by_image
from vdvae_codec.training.loop import validate
from vdvae_codec.training.recipe import Recipe
from vdvae_codec.training.sources import open_images
from vdvae_codec.training.trainer import Trainer

SIDE = 16
STRIDES = (8, 4, 2)  # of latents; the pixels are at stride 1
DEPTHS = (1, 2, 4, 8, 16)  # latent layers at each stride
HELD_OUT = 1024
OFF = 1e30


class Halved:
    """Images at half their size, by averages of 2x2 pixels."""

    def __init__(self, images: Images):
        self.images, self.names, self.sizes = images, images.names, images.sizes // 2

    def __getitem__(self, n: int) -> np.ndarray:
        height, width = self.sizes[n]
        blocks = self.images[n][: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3)
        return np.round(blocks.mean((1, 3))).astype(np.uint8)


def halved_crops(data: Path, cache: Path) -> tuple[Crops, Tensor]:
    """Training crops, and held-out ones as a batch (HELD_OUT, 3, SIDE, SIDE) uint8, G, R, B."""
    train, held_out = split_by_image(Halved(open_images(data, 2 * SIDE, cache)), 0.05, 0)
    return Crops(train, SIDE, "mirror"), Crops(held_out, SIDE, "none").batch((1,), 0, HELD_OUT)


def plain_vdvae(latents: Sequence[int], width: int, zdim: int) -> ModelConfig:
    """VDVAE as published: latents at every resolution, all pixels at the end."""
    middle = width // 2
    stages = [EncoderStage(stride, width, middle, max(1, n // 4)) for stride, n in zip(STRIDES, latents)]
    layers = [LatentConfig(stride, width, middle, zdim, repeat=n) for stride, n in zip(STRIDES, latents)]
    pixels = PhaseConfig(1, width, middle, ((0, 0),), blocks=1, mixtures=4)
    return ModelConfig((*layers, pixels), ResidualConfig(tuple(stages)), tile=SIDE)


def parameters(config: ModelConfig) -> int:
    return sum(p.numel() for p in VDVAE(config).parameters())


def undo_scaling(model: VDVAE) -> None:
    """Multiplies the weights that the model scaled by 1/sqrt(N) at their start by sqrt(N)."""
    depth = sum(single.depth for single in model.config.single_layers())
    with torch.no_grad():
        for module in model.layers.modules():
            if isinstance(module, Block):
                module.c4.weight.mul_(depth**0.5)
        for layer in model.latent_layers:
            layer.z_proj.weight.mul_(depth**0.5)
        encoder = [m for m in model.encoder.modules() if isinstance(m, Block)] if model.encoder else []
        for block in encoder:
            block.c4.weight.mul_(len(encoder) ** 0.5)


@dataclass
class Curve:
    """What every step of a training saw."""

    bpd: list[float] = field(default_factory=list)
    norm: list[float] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)  # steps
    seconds: float = 0.0

    @property
    def highest(self) -> float:
        return max(b if math.isfinite(b) else math.inf for b in self.bpd)


def follow(trainer: Trainer, crops: Crops, label: str, threshold: float | None = None) -> Curve:
    """Trains to the recipe's end; with a ``threshold``, skips beyond that multiple of the first 20 norms' mean."""
    curve, recipe, begun = Curve(), trainer.recipe, time.perf_counter()
    for step in tqdm(range(recipe.steps), desc=label, disable=None):
        result = trainer.update([crops.batch((recipe.seed, 0, step), 0, recipe.batch)])
        curve.bpd.append(result.bpd)
        curve.norm.append(result.grad_norm)
        if not result.taken:
            curve.skipped.append(step)
        if threshold is not None and step >= 20:
            trainer.running_norm = threshold * sum(curve.norm[:20]) / 20 / recipe.skip
    curve.seconds = time.perf_counter() - begun
    return curve


@click.group()
def main() -> None:
    """Depth of plain VDVAEs: what keeps it stable, and what it buys."""


def shared_options(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option("--cache", default="run", show_default=True, type=click.Path(path_type=Path))(command)
    command = click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The plot.")(command)
    command = click.option("--threads", default=1, show_default=True)(command)
    command = click.option("--steps", default=600, show_default=True)(command)
    return click.argument("data", type=click.Path(exists=True, path_type=Path))(command)


@main.command()
@shared_options
@click.option("--rates", default="2e-4,1e-2", show_default=True, help="Learning rates.")
@click.option("--seeds", default=2, show_default=True)
def stabilisers(data: Path, steps: int, threads: int, out: Path, cache: Path, rates: str, seeds: int) -> None:
    """70 latent layers with and without the scaling and the guard.

    The KL weight stays near 0.001, as in the first steps of a long warm-up: that is when posteriors leave their priors
    and gradients explode.
    """
    torch.set_num_threads(threads)
    crops, _ = halved_crops(data, cache / "cache")
    config = plain_vdvae((24, 24, 22), width=16, zdim=4)
    variants = {
        "scaling and guard": (True, True, None), "no scaling": (False, True, None), "no guard": (True, False, None),
        "neither": (False, False, None), "fixed threshold": (True, True, 2.0),
    }
    values = [float(rate) for rate in rates.split(",")]
    figure, axes = plt.subplots(2, len(values), figsize=(4 * len(values), 6), sharex=True, sharey="row", squeeze=False)
    rows = []
    for column, rate in enumerate(values):
        axes[0, column].set_title(f"learning rate {rate:g}")
        for color, (name, (scaled, guarded, threshold)) in enumerate(variants.items()):
            for seed in range(seeds):
                recipe = Recipe(
                    steps, batch=4, crop=SIDE, learning_rate=rate, warmup_steps=50, kl_warmup_steps=3000, seed=seed
                )
                if not guarded:
                    recipe = dataclasses.replace(recipe, clip=OFF, skip=OFF)
                trainer = Trainer(config, recipe, torch.device("cpu"))
                if not scaled:
                    undo_scaling(trainer.model)
                curve = follow(trainer, crops, f"{name}, {rate:g}", threshold)
                last = [b for b in curve.bpd[-50:] if math.isfinite(b)]
                rows.append([
                    f"{rate:g}", name, seed, f"{np.mean(last):.4g}", f"{curve.highest:.3g}", f"{max(curve.norm):.3g}",
                    len(curve.skipped), f"{curve.seconds:.0f}",
                ])
                label = name if column == seed == 0 else None
                for axis, y in zip(axes[:, column], (curve.bpd, curve.norm)):
                    axis.semilogy(y, color=f"C{color}", linewidth=0.8, label=label)
                    axis.plot(curve.skipped, [y[s] for s in curve.skipped], "x", color=f"C{color}", markersize=4)
    for axis, name in zip(axes[:, 0], ("bits per dim", "gradient norm (x: skipped)")):
        axis.set_ylabel(name)
    finish(figure, axes, out)
    click.echo(f"{hardware()}, {threads} threads; {steps} steps of 4 images.\n")
    head = ("learning rate", "variant", "seed", "bpd, last 50 steps", "highest bpd", "highest norm", "skipped", "s")
    click.echo(markdown(head, rows))


@main.command()
@shared_options
@click.option("--budget", default=200_000, show_default=True, help="Parameters of each model.")
@click.option("--rate", default=3e-3, show_default=True, help="Learning rate.")
def width(data: Path, steps: int, threads: int, out: Path, cache: Path, budget: int, rate: float) -> None:
    """Equal parameters, equal numbers of latents, more and more layers."""
    torch.set_num_threads(threads)
    crops, held_out = halved_crops(data, cache / "cache")
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    rows, points = [], []
    for each in DEPTHS:
        zdim = DEPTHS[-1] // each
        configs = [plain_vdvae((each,) * len(STRIDES), w, zdim) for w in range(8, 128, 2)]
        config = min(configs, key=lambda c: abs(parameters(c) - budget))
        recipe = Recipe(
            steps, batch=16, crop=SIDE, learning_rate=rate, warmup_steps=100, kl_warmup_steps=steps // 3, cooldown=0.7,
            ema=0.99,
        )
        trainer = Trainer(config, recipe, torch.device("cpu"))
        layers = each * len(STRIDES)
        curve = follow(trainer, crops, f"{layers} layers")
        terms = validate(trainer.ema.model, list(held_out.split(64)))
        points.append((layers, terms["validation_bpd"]))
        rows.append([
            layers, config.layers[0].width, zdim, parameters(config), f"{terms['validation_bpd']:.4f}",
            f"{sum(terms['kl_bpd']):.4f}", len(curve.skipped), f"{curve.seconds:.0f}",
        ])
        smooth = np.convolve(curve.bpd, np.ones(50) / 50, "valid")
        axes[0].plot(np.arange(len(smooth)) + 50, smooth, linewidth=0.8, label=f"{layers} layers")
    axes[0].set(xlabel="step", ylabel="training bits per dim, mean of 50 steps", ylim=(points[-1][1] - 0.3, 7.5))
    axes[1].semilogx(*zip(*points), "o-", base=2)
    axes[1].set(xlabel="latent layers, equal parameters", ylabel="held-out bits per dim")
    finish(figure, axes, out)
    click.echo(f"{hardware()}, {threads} threads; {steps} steps of 16 images.\n")
    head = ("latent layers", "width", "zdim", "parameters", "held-out bpd", "of which KL", "skipped", "s")
    click.echo(markdown(head, rows))


def finish(figure: Any, axes: np.ndarray, out: Path) -> None:
    axes.flat[0].legend(fontsize=8)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=100)


if __name__ == "__main__":
    main()

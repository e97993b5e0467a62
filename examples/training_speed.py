"""Images per second of the trainer against a bare loop of forward, backward and optimizer step on one batch in memory.

    python examples/training_speed.py photos/ --model photo-2

The trainer draws crops from the images, clips, skips, averages weights and keeps its sums; the bare loop does none of
that. The two take turns, so that both see the same machine. Precision and memory layout are the same.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import click
import torch
from benchmark_photos import hardware
from torch import Tensor
from tqdm import tqdm

from vdvae_codec import DEFAULT_MODEL
from vdvae_codec.codec.store import find_config, pick_device
from vdvae_codec.model.config import read_config
from vdvae_codec.training.data import Crops, ahead
from vdvae_codec.training.recipe import read_recipe
from vdvae_codec.training.sources import open_images
from vdvae_codec.training.trainer import Objective, Trainer


def bare_steps(trainer: Trainer, x: Tensor) -> Iterator[None]:
    """Forward, backward, step, for ever; the trainer's model, and an optimizer of its own."""
    optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-5, fused=True)
    objective = Objective(trainer.model)
    if trainer.device.type == "cuda":
        objective.compile()
    while True:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(trainer.device.type, torch.bfloat16, enabled=trainer.autocast):
            kl, nll = objective(x)
        (kl.sum() + nll.sum()).backward()
        optimizer.step()
        yield


def trainer_steps(trainer: Trainer, crops: Crops) -> Iterator[None]:
    recipe = trainer.recipe
    for batch in ahead(lambda step: crops.batch((recipe.seed, 0, step), 0, recipe.batch), range(recipe.steps)):
        trainer.update([batch])
        yield


@click.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--model", default=DEFAULT_MODEL, show_default=True)
@click.option("--cache", default="run/cache", show_default=True, type=click.Path(path_type=Path))
@click.option("--rounds", default=4, show_default=True)
@click.option("--steps", default=20, show_default=True, help="Steps of a round.")
@click.option("--threads", default=torch.get_num_threads(), show_default=True)
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
def main(data: Path, model: str, cache: Path, rounds: int, steps: int, threads: int, device: str) -> None:
    torch.set_num_threads(threads)
    path = find_config(model)
    config, recipe = read_config(path), dataclasses.replace(read_recipe(path), learning_rate=1e-5)
    crops = Crops(open_images(data, recipe.crop, cache), recipe.crop, recipe.augment)
    trainer = Trainer(config, recipe, pick_device(device))
    x = crops.batch((recipe.seed, 0, 0), 0, recipe.batch).to(trainer.device).float()
    ways = {"bare loop": bare_steps(trainer, x), "trainer": trainer_steps(trainer, crops)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        next(way)
    for _ in tqdm(range(rounds), disable=None):
        for name, way in ways.items():
            begun = time.perf_counter()
            for _ in range(steps):
                next(way)
            if trainer.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - begun)
    images = {name: steps * recipe.batch / statistics.median(s) for name, s in seconds.items()}
    where = torch.cuda.get_device_name() if trainer.device.type == "cuda" else f"{hardware()}, {threads} threads"
    click.echo(f"{model}, batches of {recipe.batch} crops of {recipe.crop}x{recipe.crop}; {where}")
    for name, each in images.items():
        click.echo(f"{name}: {each:.1f} images/s")
    click.echo(f"trainer / bare loop: {images['trainer'] / images['bare loop']:.3f}")


if __name__ == "__main__":
    main()

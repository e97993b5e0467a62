"""What the tests of training share. A training in a process of its own: ``python training_worker.py JSON``."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vdvae_codec.images.files import write_image
from vdvae_codec.model.config import read_config
from vdvae_codec.training.data import split_by_image
from vdvae_codec.training.loop import RunOptions, train
from vdvae_codec.training.parallel import processes
from vdvae_codec.training.recipe import Recipe, read_recipe
from vdvae_codec.training.sources import open_images

CPU = torch.device("cpu")
RECIPE = Recipe(steps=6, batch=2, crop=32, warmup_steps=2, kl_warmup_steps=4, validate_every=4, seed=3, muon=2.0)


def write_images(folder: Path, photo: np.ndarray) -> None:
    """Three images of at least 192x192, made of a photograph and its reflections."""
    large = np.pad(photo, ((0, 80), (0, 40), (0, 0)), "symmetric")
    for name, pixels in (("a.png", large), ("b.png", large[::-1]), ("sub/c.png", large.swapaxes(0, 1))):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(write_image(pixels, {}, ".png"))


def work(
    toml: str | Path, data: str | Path, run: str | Path, recipe: dict[str, Any] | None = None, validate: bool = False,
    **options: Any,
) -> Path:
    """Trains the config.toml ``toml`` with changes to its recipe; ``validate``: on the same images, not on others."""
    config, changed = read_config(Path(toml)), dataclasses.replace(read_recipe(Path(toml)), **recipe or {})
    with processes(CPU) as (process, device):
        images = open_images(Path(data), changed.crop, Path(run) / "cache")
        training, held_out = (images, images) if validate else split_by_image(images, 0.05, changed.seed)
        return train(config, changed, training, held_out, Path(run), device, RunOptions(**options), process)


def command(toml: Path, data: Path, run: Path, count: int = 1, **more: Any) -> list[str]:
    """The same in ``count`` processes."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
    arguments = {"toml": str(toml), "data": str(data), "run": str(run), **more}
    return [sys.executable, *launch, __file__, json.dumps(arguments)]


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def without_time(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows(run)]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(**json.loads(sys.argv[1]))

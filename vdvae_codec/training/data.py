"""Images in memory, and batches of random crops that depend only on (seed, step)."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vdvae_codec.errors import ImageError, TrainingError
from vdvae_codec.images import image_files, read_rgb

log = logging.getLogger(__name__)


def load_folder(folder: Path, smallest_side: int) -> dict[str, np.ndarray]:
    """Decodes every image below a folder: {relative path: (H, W, 3) uint8}.

    Unreadable images and those smaller than ``smallest_side`` are named in a warning and skipped; raises TrainingError
    if nothing is left.
    """
    images: dict[str, np.ndarray] = {}
    for path in tqdm(list(image_files(folder)), desc=f"reading {folder}", disable=None):
        try:
            image = read_rgb(path)
        except ImageError as error:
            log.warning("skipped %s", error)
            continue
        if min(image.shape[:2]) < smallest_side:
            log.warning("skipped %s: smaller than %d pixels", path, smallest_side)
            continue
        images[str(path.relative_to(folder))] = image
    if not images:
        raise TrainingError(f"{folder}: no image of at least {smallest_side}x{smallest_side} pixels found")
    return images


def split_by_file(images: dict[str, np.ndarray], share: float, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Splits whole files into (training, validation); at least one file goes to each side."""
    names = sorted(images)
    order = np.random.default_rng(seed).permutation(len(names))
    count = max(1, round(share * len(names)))
    if count >= len(names):
        raise TrainingError("at least two images are needed, one of them for validation")
    held = {names[i] for i in order[:count]}
    return [images[n] for n in names if n not in held], [images[n] for n in names if n in held]


def random_crops(images: list[np.ndarray], count: int, side: int, key: tuple[int, ...], augment: bool = True) -> Tensor:
    """(count, 3, side, side) float32 in pixel levels, channels G, R, B; images are drawn in proportion to their area.

    ``augment`` flips and transposes, which changes no statistics that a lossless coder lives on.
    """
    rng = np.random.default_rng(key)
    areas = np.array([i.shape[0] * i.shape[1] for i in images], float)
    crops = np.empty((count, side, side, 3), np.uint8)
    for n, choice in enumerate(rng.choice(len(images), count, p=areas / areas.sum())):
        image = images[choice]
        y, x = (rng.integers(0, size - side + 1) for size in image.shape[:2])
        crop = image[y : y + side, x : x + side]
        if augment:
            crop = np.rot90(crop, int(rng.integers(4)))
            crop = crop[:, ::-1] if rng.integers(2) else crop
        crops[n] = crop
    return torch.from_numpy(crops[..., [1, 0, 2]].copy()).permute(0, 3, 1, 2).float().contiguous()

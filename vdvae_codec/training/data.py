"""Batches of random crops that depend only on (seed, step, place in the batch), made ahead in a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vdvae_codec.errors import TrainingError
from vdvae_codec.training.augment import process

AHEAD = 3  # batches


class Images(Protocol):
    """A set of images, read one by one."""

    @property
    def names(self) -> Sequence[str]:
        """What each image is called; the order of a set never changes."""

    @property
    def sizes(self) -> np.ndarray:
        """(N, 2) int64: height and width of each image."""

    def __getitem__(self, n: int) -> np.ndarray:
        """Pixels (H, W, 3) uint8, R, G, B."""


class Subset:
    """Some images of a set."""

    def __init__(self, images: Images, numbers: np.ndarray):
        self.images, self.numbers = images, numbers
        self.names = [images.names[n] for n in numbers]
        self.sizes = images.sizes[numbers]

    def __getitem__(self, n: int) -> np.ndarray:
        return self.images[int(self.numbers[n])]


def split_by_image(images: Images, share: float, seed: int) -> tuple[Subset, Subset]:
    """Splits whole images into (training, validation) by their names' order; at least one goes to each side."""
    order = np.argsort(np.array(images.names))[np.random.default_rng(seed).permutation(len(images.names))]
    count = max(1, round(share * len(order)))
    if count >= len(order):
        raise TrainingError("at least two images are needed, one of them for validation")
    return Subset(images, np.sort(order[count:])), Subset(images, np.sort(order[:count]))


class Crops:
    """Random square crops of a set: which, where and how turned depends only on the key and the place in the batch.

    Images are drawn in proportion to the number of crops that they hold. ``augment`` is "turn" (quarter turns and
    mirroring), "mirror" (left to right) or "none": none of them changes statistics that a lossless coder lives on.
    "photo" turns too, and gives most crops a random history as photographs have it (``augment``).
    """

    def __init__(self, images: Images, side: int, augment: str):
        self.images, self.side, self.augment = images, side, augment
        places = (images.sizes - side + 1).astype(float)
        if len(places) == 0 or places.min() < 1:
            raise TrainingError(f"every image must have at least {side}x{side} pixels")
        self._share = np.cumsum(places.prod(1))

    def crop(self, key: tuple[int, ...]) -> np.ndarray:
        """(side, side, 3) uint8, R, G, B."""
        rng = np.random.default_rng(key)
        n = int(np.searchsorted(self._share, rng.random() * self._share[-1], "right"))
        side = self.side if self.augment != "photo" else 2 * self.side + 16
        y, x = (int(rng.integers(max(1, size - side + 1))) for size in self.images.sizes[n])
        turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
        crop = self.images[n][y : y + side, x : x + side]
        if self.augment == "photo":
            crop = process(crop, self.side, rng)
        if self.augment in ("turn", "photo"):
            crop = np.rot90(crop, turns)
        return crop[:, ::-1] if mirrored and self.augment != "none" else crop

    def batch(self, key: tuple[int, ...], first: int, count: int) -> Tensor:
        """Crops ``first`` to ``first + count`` of the batch called ``key``: (count, 3, side, side) uint8, G, R, B."""
        crops = np.empty((count, 3, self.side, self.side), np.uint8)
        for place in range(count):
            crops[place] = self.crop((*key, first + place))[..., [1, 0, 2]].transpose(2, 0, 1)
        return torch.from_numpy(crops)


def ahead(batch: Callable[[int], Tensor], steps: range) -> Iterator[Tensor]:
    """batch(step) for each step, made by a thread some steps before they are asked for."""
    with ThreadPoolExecutor(1) as pool:
        waiting: list[Future[Tensor]] = []
        try:
            for step in steps:
                waiting.append(pool.submit(batch, step))
                if len(waiting) > AHEAD:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()

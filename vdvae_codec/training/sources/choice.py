"""Which images of a source are taken, and their index."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vdvae_codec.errors import TrainingError

log = logging.getLogger(__name__)

Index = dict[str, np.ndarray]  # of a set: its names (packed), sizes and, for shards, places

_NAMED = 50  # skipped images that are named; the others are counted


class Choice:
    """Which images are taken, and how far the reading is."""

    def __init__(self, source: Path, smallest_side: int, bar: tqdm[Any]):
        self.source, self.smallest_side, self.bar = source, smallest_side, bar
        self.names: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self._skipped = 0

    def fits(self, name: str | Path, height: int, width: int) -> bool:
        """Whether an image is large enough; if not it is skipped."""
        if min(height, width) < self.smallest_side:
            self.skip(f"{name}: {width}x{height}, smaller than {self.smallest_side} pixels")
            return False
        return True

    def skip(self, line: str) -> None:
        self._skipped += 1
        if self._skipped <= _NAMED:
            log.warning("skipped %s", line)

    def reach(self, place: float) -> None:
        """Moves the bar to a place in bytes."""
        self.bar.update(int(place) - self.bar.n)

    def index(self) -> Index:
        if self._skipped > _NAMED:
            log.warning("skipped %d more", self._skipped - _NAMED)
        if not self.names:
            side = self.smallest_side
            raise TrainingError(f"{self.source}: no image of at least {side}x{side} pixels found")
        packed = "\0".join(self.names).encode("utf-8", "surrogateescape")
        return {"names": np.frombuffer(packed, np.uint8), "sizes": np.array(self.sizes, np.int64)}


def unpack(names: np.ndarray) -> list[str]:
    """The names in an index."""
    return names.tobytes().decode("utf-8", "surrogateescape").split("\0")

"""Pixels of tiles in the order in which a causal network can be run: a wavefront x + 2 y = t at a time.

What a causal convolution sees (``exact.conv.TAPS``) lies on earlier wavefronts. All tiles advance together, and each
position of each layer is computed once, from storage in which the neighbours of a wavefront are slices. Where all
pixels are known, strips of rows take the place of wavefronts, so that what a layer gives stays in a core's cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from vdvae_codec.exact.conv import TAPS

SLOTS = 4  # wavefronts whose features are kept


@dataclass(frozen=True)
class Wave:
    """The pixels (y, t - 2 y) of every tile, for y from ``low`` to below ``high``."""

    t: int
    low: int
    high: int


def count_waves(height: int, width: int) -> int:
    return width + 2 * (height - 1)


def waves(height: int, width: int) -> Iterator[Wave]:
    """The wavefronts of tiles of one size that have pixels."""
    for t in range(count_waves(height, width)):
        low, high = max(0, -((width - 1 - t) // 2)), min(height, t // 2 + 1)
        if low < high:
            yield Wave(t, low, high)


@functools.lru_cache(maxsize=2)
def wave_order(tiles: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions in the flattened (tiles, height, width), wavefront by wavefront: int64 (N,); and the t of each, sorted.

    Within a wavefront come tile after tile, and in each the rows from the top.
    """
    t = np.arange(width) + 2 * np.arange(height)[:, None]
    every = np.tile(t.ravel(), tiles)
    order = np.argsort(every, kind="stable")
    return order, every[order]


class Pixels:
    """Images x (T, C, H, W) of which a wavefront at a time is read and written: float32, ``fill`` beyond them."""

    def __init__(self, x: Tensor, reach: int, fill: int):
        self.tiles, self.channels, self.height, self.width = x.shape
        self.reach = reach
        self.row = self.width + 2 * reach  # pixels of a stored row
        shape = (self.tiles, self.height + reach, self.row, self.channels)
        self.store = torch.full(shape, float(fill), device=x.device)

    def slice(self, wave: Wave, dy: int, dx: int, count: int) -> Tensor:
        """The ``count`` pixels from (dy, dx) on of each position: a view (T, n, count C)."""
        c, reach = self.channels, self.reach
        y = wave.low
        first = ((y + dy + reach) * self.row + (wave.t - 2 * y) + dx + reach) * c
        tile = self.store.stride(0)
        return self.store.as_strided((self.tiles, wave.high - y, count * c), (tile, (self.row - 2) * c, 1), first)

    def known(self, wave: Wave, taps: list[tuple[int, int]]) -> Tensor:
        """(N, taps C): the pixels at ``taps`` (dy, dx), sorted, of each of the N = T n positions."""
        rows: dict[int, list[int]] = {}
        for dy, dx in taps:
            rows.setdefault(dy, []).append(dx)
        return torch.cat([self.slice(wave, dy, dxs[0], len(dxs)) for dy, dxs in rows.items()], 2).flatten(0, 1)

    def fill(self, x: Tensor) -> None:
        """Writes all of the images."""
        self.images().copy_(x)

    def strip(self, y: int, rows: int, taps: list[tuple[int, int]]) -> Tensor:
        """(N, taps C): the pixels at ``taps`` (dy, dx) of each of the N = T rows W positions from row y on."""
        reach = self.reach
        seen = [
            self.store[:, y + dy + reach : y + dy + reach + rows, dx + reach : dx + reach + self.width]
            for dy, dx in taps
        ]
        return torch.cat(seen, 3).flatten(0, 2)

    def put(self, wave: Wave, values: Tensor) -> None:
        """Writes (N, C)."""
        here = self.slice(wave, 0, 0, 1)
        here.copy_(values.view(here.shape))

    def firsts(self, wave: Wave) -> Tensor:
        """(N, C): the first pixels of the 2x2 blocks that the N positions lie in."""
        y = torch.arange(wave.low, wave.high, device=self.store.device)
        x = wave.t - 2 * y
        return self.store[:, self.reach + y - y % 2, self.reach + x - x % 2].flatten(0, 1)

    def images(self) -> Tensor:
        """(T, C, H, W)"""
        reach = self.reach
        return self.store[:, reach:, reach : reach + self.width].permute(0, 3, 1, 2)


class Rings:
    """What the causal convolutions of some blocks take in, of the last wavefronts: zero beyond the tiles.

    (SLOTS, blocks, T, H + 1, C)
    """

    def __init__(self, blocks: int, tiles: int, height: int, channels: int, dtype: torch.dtype, device: torch.device):
        self.store = torch.zeros((SLOTS, blocks, tiles, height + 1, channels), dtype=dtype, device=device)

    def neighbours(self, wave: Wave) -> list[Callable[[Tensor], Tensor]]:
        """Of each block a function that keeps a (N, C) of the N = T n positions, and gives what ``TAPS`` see there, one
        after the other: (N, 5 C). The blocks are asked in their order."""
        low, high = wave.low, wave.high
        channels = self.store.shape[4]
        own, before, second, third = (self.store[(wave.t - n) % SLOTS] for n in range(SLOTS))  # (blocks, T, H + 1, C)
        if low:
            own[:, :, low] = 0  # this row has ended: beyond the tile
        # Above to the right, and to the left: the rows low - 1 + y and low + y of one wavefront lie side by side.
        pair = (*own.shape[:2], high - low, 2 * channels)
        pairs = before[:, :, low:].as_strided(pair, (*own.stride()[:2], channels, 1))
        views = own[:, :, low + 1 : high + 1], pairs, second[:, :, low:high], third[:, :, low:high]
        return [partial(seen, block) for block in zip(*(view.unbind(0) for view in views))]


def seen(views: tuple[Tensor, ...], a: Tensor) -> Tensor:
    """Writes a (T n, C) into the first of the views (T, n, ...), and gives all of them side by side."""
    views[0].copy_(a.view(views[0].shape))
    return torch.cat(views, 2).flatten(0, 1)


class Strip:
    """Likewise of some rows of tiles (T, rows + 1, W + 2, C), of which the first is the last of the strip above."""

    def __init__(self, tiles: int, rows: int, width: int, channels: int, dtype: torch.dtype, device: torch.device):
        self.store = torch.zeros((tiles, rows + 1, width + 2, channels), dtype=dtype, device=device)

    def neighbours(self, rows: int, a: Tensor) -> Tensor:
        """Keeps a (N, C) of the next N = T rows W positions, and gives what ``TAPS`` see there: (N, 5 C)."""
        tiles, stored, columns, channels = self.store.shape
        width = columns - 2
        self.store[:, 0] = self.store[:, stored - 1]
        self.store[:, 1 : rows + 1, 1:-1] = a.view(tiles, rows, width, channels)
        seen = [self.store[:, 1 + dy : 1 + dy + rows, 1 + dx : 1 + dx + width] for dy, dx in TAPS]
        return torch.cat(seen, 3).flatten(0, 2)

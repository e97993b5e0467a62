"""Missing levels left out: stretched tones use few of the 256, and which ones no smooth distribution can tell."""

from __future__ import annotations

import numpy as np

from vdvae_codec.errors import FormatError
from vdvae_codec.images.classical import quick_size

NEIGHBOURS = 8  # levels on either side, among which the missing ones count
MIN_GAIN = 0.05  # bits per sub-pixel that missing levels promise
MIN_SHARE = MIN_GAIN / 8  # of a quick classical coding's bytes that they must save
_BYTES = 33  # of side information a channel: first level, 256 bits


class Levels:
    """Each channel's levels numbered, from a first one that keeps the tones' proportions.

    The side information is, of each channel, the first level's number and 256 bits: which levels it has.
    """

    code, name = 4, "levels"

    def forward(self, pixels: np.ndarray) -> tuple[np.ndarray, bytes] | None:
        """Pixels (H, W, C) uint8 with missing levels left out, if a quick classical coder finds that they matter."""
        counts = np.stack([np.bincount(plane, minlength=256) for plane in pixels.reshape(-1, pixels.shape[2]).T])
        if sum(map(promised_bits, counts)) < MIN_GAIN * pixels.size:
            return None
        present = counts > 0
        firsts = np.array([first_number(p) for p in present])
        tables = (present.cumsum(1) - 1 + firsts[:, None]).clip(0).astype(np.uint8)
        coded = np.stack([table[pixels[..., c]] for c, table in enumerate(tables)], -1)
        if quick_size(coded) > (1 - MIN_SHARE) * quick_size(pixels):
            return None
        return coded, np.column_stack([firsts.astype(np.uint8), np.packbits(present, 1)]).tobytes()

    def inverse(self, coded: np.ndarray, side_info: bytes) -> np.ndarray:
        """What ``forward`` was given. Raises FormatError."""
        if len(side_info) != _BYTES * coded.shape[2]:
            raise FormatError("side_info: levels are damaged")
        rows = np.frombuffer(side_info, np.uint8).reshape(-1, _BYTES)
        return np.stack([levels_of(coded[..., c], row) for c, row in enumerate(rows)], -1)


def promised_bits(counts: np.ndarray) -> float:
    """What a smooth distribution spends on levels that a channel with these counts (256,) lacks in its midst."""
    present = counts > 0
    low, high = np.flatnonzero(present)[[0, -1]]
    possible = np.zeros(256)
    possible[low : high + 1] = 1
    neighbours = np.ones(2 * NEIGHBOURS + 1)
    share = np.convolve(present, neighbours, "same") / np.convolve(possible, neighbours, "same").clip(1)
    return -float(counts @ np.log2(share.clip(1e-9)))


def first_number(present: np.ndarray) -> int:
    """Of the lowest level of a channel, (256,) bool which it has: so that tones keep their proportions."""
    low, high = np.flatnonzero(present)[[0, -1]]
    return round(int(low) * float(present.sum()) / int(high - low + 1))


def levels_of(numbers: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Levels (H, W) uint8 of a channel from their numbers and its 33 bytes of side information."""
    present = np.unpackbits(row[1:]).astype(bool)
    first, count = int(row[0]), int(present.sum())
    if int(numbers.min()) < first or int(numbers.max()) >= first + count:
        raise FormatError("side_info: a level that the channel does not have")
    table = np.zeros(256, np.uint8)
    table[first : first + count] = np.flatnonzero(present)[: 256 - first]
    levels: np.ndarray = table[numbers]
    return levels

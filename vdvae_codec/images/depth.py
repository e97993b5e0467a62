"""Samples of 16 bits as 8 for a model and the bits below them, which are mostly noise: an image file.

Levels that no sample has are left out first where that saves a bit: images of 10, 12 or 14 bits have many of these.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vdvae_codec.errors import ImageError
from vdvae_codec.images.classical import FORMATS, quick_size, smallest_file
from vdvae_codec.images.files import file_pixels, highest, with_channels

_HOW = struct.Struct("BB")  # bits below, and whether the file holds their differences
_BITMAP = 1 << 13  # bytes of all levels


@dataclass(frozen=True)
class Depth:
    """What makes 16 bits of 8: ``how``, and ``file`` with the bits below, empty if there are none."""

    how: bytes = b""
    file: bytes = b""

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.how) + len(self.file)


def split(samples: np.ndarray) -> tuple[np.ndarray, Depth]:
    """The highest 8 bits (H, W, C) uint8 of samples (H, W, C) uint16, C from 1 to 4, and the others."""
    numbers, levels = _numbered(samples)
    high, bits = highest(numbers)
    if not bits:
        return high, Depth(_HOW.pack(0, 0) + levels)
    low = (numbers & ((1 << bits) - 1)).astype(np.uint8)
    chosen, apart = min((low, 0), (differences(low, bits), 1), key=lambda choice: quick_size(choice[0]))
    return high, Depth(_HOW.pack(bits, apart) + levels, smallest_file(chosen))


def joined(high: np.ndarray, depth: Depth) -> np.ndarray:
    """The samples (H, W, C) uint16 of what ``split`` gave. Raises ImageError for what it cannot have given."""
    if len(depth.how) < _HOW.size:
        raise ImageError("depth: too short")
    bits, apart = _HOW.unpack_from(depth.how)
    if bits > 8 or apart > 1 or (bits > 0) != bool(depth.file):
        raise ImageError("depth: impossible bits")
    numbers: np.ndarray = high.astype(np.uint16) << np.uint16(bits)
    if bits:
        low = with_channels(file_pixels(depth.file, FORMATS, high.shape[:2]), high.shape[2])
        low = sums(low, bits) if apart else low
        if int(low.max()) >> bits:
            raise ImageError("depth: impossible bits")
        numbers = numbers | low
    levels = _levels(depth.how[_HOW.size :])
    if levels is None:
        return numbers
    if int(numbers.max()) >= len(levels):
        raise ImageError("depth: a level that it has not")
    found: np.ndarray = levels[numbers]
    return found


def differences(low: np.ndarray, bits: int) -> np.ndarray:
    """low (H, W, C) uint8 less left plus upper less upper left, in ``bits`` bits, which ``sums`` undoes."""
    x = np.pad(low, ((1, 0), (1, 0), (0, 0)))
    out: np.ndarray = (x[1:, 1:] - x[1:, :-1] - x[:-1, 1:] + x[:-1, :-1]) & np.uint8((1 << bits) - 1)
    return out


def sums(x: np.ndarray, bits: int) -> np.ndarray:
    out: np.ndarray = x.cumsum(0, dtype=np.uint8).cumsum(1, dtype=np.uint8) & np.uint8((1 << bits) - 1)
    return out


def _numbered(samples: np.ndarray) -> tuple[np.ndarray, bytes]:
    """Numbers (H, W, C) uint16 of the levels that samples have, and these packed; or the samples, and nothing."""
    seen = np.bincount(samples.reshape(-1), minlength=1 << 16) > 0
    known = next((levels for levels in _scales() if not (seen & ~levels).any()), seen)
    used, reach = int(known.sum()), int(np.flatnonzero(seen)[-1]) + 1
    packed = zlib.compress(np.packbits(known).tobytes(), 9)
    saved_bits = (reach - 1).bit_length() - (used - 1).bit_length()
    if saved_bits <= 0 or 8 * len(packed) >= saved_bits * samples.size:
        return samples, b""
    return (np.cumsum(known) - 1).astype(np.uint16)[samples], packed


def _scales() -> Iterator[np.ndarray]:
    """Which levels (65536,) bool 8, 9, ... 15 bits have that were brought to 16."""
    for bits in range(8, 16):
        values, free = np.arange(1 << bits), 16 - bits
        scaled = (2 * 65535 * values + values[-1]) // (2 * values[-1])
        for levels in (values << free, scaled, values << free | values >> bits - free):  # the last repeats the bits
            yield np.bincount(levels, minlength=1 << 16) > 0


def _levels(packed: bytes) -> np.ndarray | None:
    if not packed:
        return None
    try:
        bitmap = zlib.decompressobj().decompress(packed, _BITMAP + 1)
    except zlib.error as error:
        raise ImageError("depth: the levels are damaged") from error
    if len(bitmap) != _BITMAP:
        raise ImageError("depth: the levels are damaged")
    levels: np.ndarray = np.flatnonzero(np.unpackbits(np.frombuffer(bitmap, np.uint8))).astype(np.uint16)
    return levels

"""What every transform is, and the bytes that say which were applied: of each its code, LEB128 length, own bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np

from vdvae_codec.errors import FormatError


class Coded(NamedTuple):
    """What a model codes in the place of an image."""

    pixels: np.ndarray  # (H, W, C) uint8, of the image's shape
    side_info: bytes  # how ``inverse`` gets back; empty: nothing was applied
    chroma_mask: np.ndarray | None  # (H/2, W/2) bool, rounded up: 2x2 blocks that code one pixel's colours alone


class Transform(Protocol):
    """A reversible change of pixels that makes them cheaper to code."""

    @property
    def code(self) -> int:
        """In files, 0..255: never given to another transform."""

    @property
    def name(self) -> str:
        """For people."""

    def forward(self, pixels: np.ndarray) -> tuple[np.ndarray, bytes] | None:
        """Pixels (H, W, C) uint8 to coded ones of the same shape and the bytes that ``inverse`` needs; None: no use."""

    def inverse(self, coded: np.ndarray, side_info: bytes) -> np.ndarray:
        """What ``forward`` was given: ``coded`` is left as it is. Raises FormatError."""


def pack(parts: Iterable[tuple[int, bytes]]) -> bytes:
    """Side information of transforms, (code, own bytes) each, in the order of their application."""
    return b"".join(bytes([code]) + _leb128(len(own)) + own for code, own in parts)


def unpack(side_info: bytes) -> list[tuple[int, bytes]]:
    """What ``pack`` was given. Raises FormatError if it ends too early or names a transform twice."""
    parts: dict[int, bytes] = {}
    at = 0
    while at < len(side_info):
        code, start = side_info[at], at + 1
        length, start = _length(side_info, start)
        at = start + length
        if at > len(side_info) or code in parts:
            raise FormatError("side_info: damaged")
        parts[code] = side_info[start:at]
    return list(parts.items())


def _leb128(number: int) -> bytes:
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + _leb128(rest) if rest else bytes([low])


def _length(data: bytes, start: int) -> tuple[int, int]:
    """A LEB128 number of up to 35 bits at ``start``, and where it ends."""
    number = 0
    for n, byte in enumerate(data[start : start + 5]):
        number |= (byte & 127) << 7 * n
        if byte < 128:
            return number, start + n + 1
    raise FormatError("side_info: damaged")

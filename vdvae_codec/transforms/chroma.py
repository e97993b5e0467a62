"""Colours kept on every second pixel, as PhotoCD has them and grey images in RGB: those between are not coded.

Of a marked 2x2 block all but the first pixel are green alone: red and blue less green are means of those of the first
pixels around them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from vdvae_codec.errors import FormatError

MASK_BITS = 0.5  # that a marked block may cost at most: it saves about 5 where colours were means, 0.3 by chance
Array = Any  # of numpy, of signed integers, or of torch, of whole floats
OTHERS = ((0, 1), (1, 0), (1, 1))  # offsets of a block's other pixels


class Chroma:
    """Marks blocks of the image, mirrored so that the colours that were kept lie on first pixels.

    The side information is how it is mirrored (1 top to bottom, 2 left to right), then a bit for each block.
    """

    code, name = 5, "chroma"

    def forward(self, pixels: np.ndarray) -> tuple[np.ndarray, bytes] | None:
        """The image, mirrored so that most blocks are marked; None if their mask costs more than it saves."""
        if pixels.shape[2] != 3:
            return None
        masks = [blocks_between(mirrored(pixels, flips)) for flips in range(4)]
        flips = max(range(4), key=lambda n: int(masks[n].sum()))
        packed = np.packbits(masks[flips]).tobytes()
        if 8 * len(zlib.compress(packed, 9)) >= MASK_BITS * masks[flips].sum():
            return None
        return np.ascontiguousarray(mirrored(pixels, flips)), bytes([flips]) + packed

    def inverse(self, coded: np.ndarray, side_info: bytes) -> np.ndarray:
        """What ``forward`` was given, whatever the colours that were not coded. Raises FormatError."""
        mask = self.mask(side_info, *coded.shape[:2])
        if coded.shape[2] != 3:
            raise FormatError("side_info: chroma of a grey image")
        pixels = coded.copy()
        for others, means in others_and_means(pixels):
            here = mask[: others.shape[0], : others.shape[1]]
            for c, mean in zip((0, 2), means):
                np.copyto(others[..., c], others[..., 1] + mean, where=here)
        return np.ascontiguousarray(mirrored(pixels, side_info[0]))

    def mask(self, side_info: bytes, height: int, width: int) -> np.ndarray:
        """(H/2, W/2) bool, rounded up: the marked blocks. Raises FormatError before memory is asked for."""
        shape = (-(-height // 2), -(-width // 2))
        if len(side_info) != 1 + -(-shape[0] * shape[1] // 8) or side_info[0] > 3:
            raise FormatError("side_info: chroma is damaged")
        bits = np.unpackbits(np.frombuffer(side_info, np.uint8, offset=1), count=shape[0] * shape[1])
        return bits.view(bool).reshape(shape)


def between(first: Array, offset: tuple[int, int]) -> Array:
    """Colours of the pixels at an offset of 2x2 blocks from those of the first pixels, (..., H/2, W/2).

    Means of the two or four first pixels around, halves rounded up, the last row and column repeated.
    """
    height, width = first.shape[-2:]
    dy, dx = offset
    total = first
    if dy:
        total = total + total[..., [*range(1, height), height - 1], :]
    if dx:
        total = total + total[..., [*range(1, width), width - 1]]
    return (total + (dy + dx)) // (1 << dy + dx)


def others_and_means(pixels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each offset of ``OTHERS``: a view (h, w, 3) of these pixels of (H, W, 3) uint8, and the colours ``between``.

    These are (2, h, w) uint8: red and blue less green, modulo 256.
    """
    first = pixels[::2, ::2].astype(np.int16)
    colours = np.stack([first[..., 0] - first[..., 1], first[..., 2] - first[..., 1]])
    for dy, dx in OTHERS:
        others = pixels[dy::2, dx::2]
        yield others, between(colours, (dy, dx))[:, : others.shape[0], : others.shape[1]].astype(np.uint8)


def blocks_between(pixels: np.ndarray) -> np.ndarray:
    """(H/2, W/2) bool, rounded up: 2x2 blocks of (H, W, 3) uint8 whose other pixels have the colours ``between``."""
    mask = np.ones((-(-pixels.shape[0] // 2), -(-pixels.shape[1] // 2)), bool)
    for others, means in others_and_means(pixels):
        for c, mean in zip((0, 2), means):
            mask[: mean.shape[0], : mean.shape[1]] &= others[..., c] - others[..., 1] == mean
    return mask


def mirrored(pixels: np.ndarray, flips: int) -> np.ndarray:
    """The image mirrored top to bottom (1), left to right (2), both (3) or not (0): a view."""
    return pixels[:: -1 if flips & 1 else 1, :: -1 if flips & 2 else 1]

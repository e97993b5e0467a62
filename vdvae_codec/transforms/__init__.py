"""Reversible changes of an image's pixels that make them cheaper to code, found by trying them: numpy alone.

A new one is a module with a ``base.Transform`` and a place in ``FIRST`` or ``THEN``. The first of ``FIRST`` that
applies is taken, then each of ``THEN``.
"""

from __future__ import annotations

import numpy as np

from vdvae_codec.errors import FormatError
from vdvae_codec.transforms import base
from vdvae_codec.transforms.base import Coded, Transform
from vdvae_codec.transforms.chroma import Chroma
from vdvae_codec.transforms.levels import Levels
from vdvae_codec.transforms.ycc import CONVERSIONS

__all__ = ["Coded", "Transform", "chroma_mask", "forward", "inverse", "names"]

MIN_PIXELS = 64 * 64  # smaller images have too few colours to tell, and no bytes to spare
CHROMA = Chroma()
FIRST: tuple[Transform, ...] = (*CONVERSIONS, Levels())
THEN: tuple[Transform, ...] = (CHROMA,)
BY_CODE = {transform.code: transform for transform in (*FIRST, *THEN)}


def forward(pixels: np.ndarray, *, masked: bool = True) -> Coded:
    """Pixels (H, W, 1 or 3) uint8 to what is coded in their place; the same array if nothing applies.

    ``masked`` is whether the model can leave out the colours of a chroma mask.
    """
    if pixels.shape[0] * pixels.shape[1] < MIN_PIXELS:
        return Coded(pixels, b"", None)
    parts: list[tuple[int, bytes]] = []
    for group in (FIRST, *((transform,) for transform in THEN if masked or transform is not CHROMA)):
        for transform in group:
            done = transform.forward(pixels)
            if done is not None:
                pixels = done[0]
                parts.append((transform.code, done[1]))
                break
    side_info = base.pack(parts)
    return Coded(pixels, side_info, chroma_mask(side_info, *pixels.shape[:2]))


def inverse(coded: np.ndarray, side_info: bytes) -> np.ndarray:
    """What ``forward`` was given, (H, W, C) uint8; of masked blocks ``coded`` may hold any colours. Raises FormatError.

    ``coded`` is left as it is, and is what comes back where nothing was applied.
    """
    applied = [(_known(code), own) for code, own in base.unpack(side_info)]
    for transform, own in reversed(applied):
        coded = transform.inverse(coded, own)
    return coded


def chroma_mask(side_info: bytes, height: int, width: int) -> np.ndarray | None:
    """``Coded.chroma_mask`` of an image of this size; None where all colours are coded. Raises FormatError."""
    parts = dict(base.unpack(side_info))
    for code in parts:
        _known(code)
    return CHROMA.mask(parts[CHROMA.code], height, width) if CHROMA.code in parts else None


def names(side_info: bytes) -> list[str]:
    """Of the transforms that were applied, in their order. Raises FormatError for damaged bytes."""
    return [BY_CODE[code].name if code in BY_CODE else f"transform {code}" for code, _ in base.unpack(side_info)]


def _known(code: int) -> Transform:
    if code not in BY_CODE:
        raise FormatError(f"side_info: transform {code} is unknown: a newer vdvae-codec is needed")
    return BY_CODE[code]

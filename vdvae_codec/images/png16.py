"""Samples of 16 bits in the scanlines of a PNG, of which Pillow keeps eight (PNG specification, chapters 7 and 9)."""

from __future__ import annotations

import struct
import zlib

import numpy as np

from vdvae_codec.errors import ImageError

CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by colour type
HEADER = struct.Struct(">IIBBBBB")  # width, height, bits, colour type, compression, filter, interlace
_LEVEL = 4  # of zlib
_ROWS = 64  # that are filtered at a time


def read_scanlines(header: bytes, compressed: bytes) -> np.ndarray | None:
    """Samples (H, W, C) uint16 of a PNG's IHDR and IDATs; None for one of other samples, or interlaced.

    Raises ImageError for what is damaged. Memory is bounded by what the header says.
    """
    if len(header) != HEADER.size:
        return None
    width, height, bits, kind, _, _, interlace = HEADER.unpack(header)
    if bits != 16 or interlace or kind not in CHANNELS:
        return None
    size = 2 * CHANNELS[kind]  # bytes of a pixel
    length = height * (1 + width * size)
    try:
        lines = zlib.decompressobj().decompress(compressed, length + 1)
    except zlib.error as error:
        raise ImageError("the PNG's pixels are damaged") from error
    if len(lines) != length:
        raise ImageError("the PNG's pixels are damaged")
    rows = np.frombuffer(lines, np.uint8).reshape(height, 1 + width * size)
    if int(rows[:, 0].max()) > 4:
        raise ImageError("the PNG's pixels are damaged")
    pixels = unfiltered(rows[:, 0], rows[:, 1:].reshape(height, width, size))
    return pixels.view(">u2").astype(np.uint16)


def unfiltered(kinds: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Bytes (H, W, S) uint8 of filtered ones, whose rows are of the ``kinds`` (H,): diagonal after diagonal."""
    height, width, size = x.shape
    out = np.zeros((height + 1, width + 1, size), np.uint8)
    for diagonal in range(height + width - 1):
        y = np.arange(max(0, diagonal - width + 1), min(height, diagonal + 1))
        at = diagonal - y
        predicted = prediction(kinds[y][:, None], out[y + 1, at], out[y, at + 1], out[y, at])
        out[y + 1, at + 1] = x[y, at] + predicted
    return np.ascontiguousarray(out[1:, 1:])


def prediction(kind: np.ndarray, left: np.ndarray, up: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """uint8, as the filters 0 (none), 1 (left), 2 (up), 3 (their mean) and 4 (Paeth) have it."""
    a, b, c = (v.astype(np.int16) for v in (left, up, corner))
    far = [np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)]
    paeth = np.where((far[0] <= far[1]) & (far[0] <= far[2]), a, np.where(far[1] <= far[2], b, c))
    chosen: np.ndarray = np.choose(kind, [np.zeros_like(a), a, b, (a + b) >> 1, paeth]).astype(np.uint8)
    return chosen


def write_scanlines(pixels: np.ndarray) -> tuple[bytes, bytes]:
    """IHDR and IDAT of samples (H, W, C) uint16; each row by the filter whose bytes are smallest, as signed ones."""
    height, width, channels = pixels.shape
    x = np.zeros((height + 1, width + 1, 2 * channels), np.uint8)
    x[1:, 1:] = pixels.astype(">u2").view(np.uint8).reshape(height, width, -1)
    packer, parts = zlib.compressobj(_LEVEL), []
    for first in range(0, height, _ROWS):
        own, before = x[first + 1 : first + 1 + _ROWS], x[first : first + _ROWS][: height - first]
        around = own[:, :-1], before[:, 1:], before[:, :-1]
        tried = np.stack([own[:, 1:] - prediction(np.array(kind), *around) for kind in range(5)])
        sizes = np.abs(tried.view(np.int8).astype(np.int16)).sum((2, 3), dtype=np.int64)  # (5, rows)
        best = sizes.argmin(0)
        lines = tried[best, np.arange(len(own))].reshape(len(own), -1)
        parts.append(packer.compress(np.concatenate([best[:, None].astype(np.uint8), lines], 1).tobytes()))
    kind = next(kind for kind, count in CHANNELS.items() if count == channels)
    return HEADER.pack(width, height, 16, kind, 0, 0, 0), b"".join([*parts, packer.flush()])

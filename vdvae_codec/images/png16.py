"""PNGs with samples of 16 bits, of which Pillow keeps eight."""

from __future__ import annotations

import zlib

import numpy as np

from vdvae_codec.errors import ImageError
from vdvae_codec.images.chunks import COLOUR_TYPES, HEADER, chunks
from vdvae_codec.images.scanlines import filtered, least, scanlines, unfiltered

_LEVEL = 4  # of zlib
_ORDER = (0, 1, 2, 3, 4)  # of filters, as libpng tries them


def read_png(data: bytes) -> np.ndarray | None:
    """Samples (H, W, C) uint16 of a PNG; None for one of other samples, or interlaced.

    Raises ImageError for what is damaged. Memory is bounded by what the header says.
    """
    found = list(chunks(data))
    if not found or len(found[0][1]) != HEADER.size:
        return None
    width, height, bits, kind, _, _, interlaced = HEADER.unpack(found[0][1])
    channels = {own: count for count, own in COLOUR_TYPES.items()}.get(kind)
    if bits != 16 or interlaced or channels is None:
        return None
    length = height * (1 + 2 * channels * width)
    try:
        compressed = b"".join(part for name, part in found if name == b"IDAT")
        lines = zlib.decompressobj().decompress(compressed, length + 1)
        if len(lines) != length:
            raise ValueError("of another size")
        rows = np.frombuffer(lines, np.uint8).reshape(height, -1)
        samples = unfiltered(rows[:, 1:].reshape(height, width, -1), rows[:, 0])
    except (zlib.error, ValueError) as error:
        raise ImageError("the PNG's pixels are damaged") from error
    return samples.view(">u2").astype(np.uint16)


def write_deep(pixels: np.ndarray) -> tuple[bytes, bytes]:
    """IHDR and IDAT of samples (H, W, C) uint16; each row by the filter whose differences are least."""
    height, width, channels = pixels.shape
    passes, step = scanlines(pixels, 16, False), 2 * channels
    lines = filtered(passes, least(passes, _ORDER, step), step)
    return HEADER.pack(width, height, 16, COLOUR_TYPES[channels], 0, 0, 0), zlib.compress(lines, _LEVEL)

"""Classical lossless coders: what is stored where they are smaller than a model, and a quick judge of sizes."""

from __future__ import annotations

import sys
import zlib

import numpy as np

from vdvae_codec.errors import ImageError
from vdvae_codec.images.files import OPTIONS, Picture, encode, file_pixels, with_channels

FORMATS = ("PNG", "WEBP")  # Pillow's names of those in which ``best_file`` writes a new file
_WEBP_SIDE = 16383  # the largest side that WebP can hold
_SMALL = 256 * 256  # pixels up to which PNG is tried beside WebP
_PNG_FRAME = 57  # bytes of a PNG around its compressed pixels


def best_file(picture: Picture, beside_bytes: int = 0) -> tuple[bytes, str]:
    """The smallest file that holds exactly the picture, and its suffix: the input itself, a WebP or a PNG.

    A new file carries no metadata: that is the container's, and counted here, as is what it needs ``beside_bytes``; and
    a WebP may have another number of channels (``with_channels``). The input itself is ``picture.data``, the same
    object. Raises ImageError for pixels that no such file can hold.
    """
    best, suffix, limit = picture.data, picture.suffix, len(picture.data) or sys.maxsize
    pixels = picture.pixels
    if pixels is None or picture.notice:
        return best, suffix
    limit -= beside_bytes + metadata_bytes(picture)
    for format, options in _coders(pixels):
        data = encode(_held(pixels, format), format, {}, options)
        if len(data) < limit and np.array_equal(with_channels(file_pixels(data), pixels.shape[2]), pixels):
            best, suffix, limit = data, f".{format.lower()}", len(data)
    if not best:
        raise ImageError(f"{picture.name or 'pixels'}: no image file holds them exactly")
    return best, suffix


def metadata_bytes(picture: Picture) -> int:
    """About what they take in a table."""
    return sum(len(zlib.compress(value)) for value in picture.metadata.values())


def smallest_file(pixels: np.ndarray) -> bytes:
    """A WebP or PNG of (H, W, 1 to 4) uint8, maybe of another number of channels (``with_channels``)."""
    files = (encode(_held(pixels, format), format, {}, options) for format, options in _coders(pixels))
    return min(files, key=len)


def _coders(pixels: np.ndarray) -> list[tuple[str, dict[str, int]]]:
    """Pillow's names and options of the coders that are worth trying on (H, W, C) uint8."""
    webp = max(pixels.shape) <= _WEBP_SIDE
    png = not webp or pixels.shape[0] * pixels.shape[1] <= _SMALL
    return [("WEBP", OPTIONS["WEBP"])] * webp + [("PNG", {"optimize": 1})] * png


def _held(pixels: np.ndarray, format: str) -> np.ndarray:
    """Of pixels (H, W, C) uint8 what a file of Pillow's ``format`` can hold: WebP has no grey, and drops opacity."""
    if format != "WEBP":
        return pixels
    transparent = pixels.shape[2] in (2, 4) and bool((pixels[..., -1] < 255).any())
    return with_channels(pixels, 4 if transparent else 3)


def plane_file(plane: np.ndarray) -> bytes:
    """The smaller one of a PNG and a WebP, whose channels are all the same, of (H, W, 1) uint8."""
    png = encode(plane, "PNG", {}, {"optimize": 1})
    if max(plane.shape) > _WEBP_SIDE:
        return png
    return min(png, encode(_held(plane, "WEBP"), "WEBP", {}, OPTIONS["WEBP"]), key=len)


def quick_size(pixels: np.ndarray) -> int:
    """Bytes of a fast classical coding of (H, W, 1 to 4) uint8: 0.1 s a megapixel, within 5 % of the thorough one.

    Grey images, and those that WebP cannot hold, are judged by their PNG.
    """
    if pixels.shape[2] < 3 or max(pixels.shape) > _WEBP_SIDE:
        return len(encode(pixels, "PNG", {}, {"compress_level": 3}))
    return len(encode(pixels, "WEBP", {}, {"lossless": True, "quality": 0, "method": 1, "exact": True}))


def rough_size(pixels: np.ndarray) -> int:
    """Bytes that zlib makes of the differences from the pixels on the left, mostly within 30 % of a PNG: 0.1 ms for
    32x32 pixels."""
    differences = pixels.copy()
    differences[:, 1:] -= pixels[:, :-1]
    return _PNG_FRAME + len(zlib.compress(differences.tobytes(), 1))


def is_jpeg(data: bytes) -> bool:
    return data[:3] == b"\xff\xd8\xff"

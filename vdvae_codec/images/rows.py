"""Files that hold rows of pixels as they are: where in the file, as which samples, and all other bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_LAYOUT = struct.Struct("<8sIB")  # suffix, number of strips, and which samples
_STRIP = struct.Struct("<QIIB")  # place of the first row in the file, rows, bytes from one to the next, whether upwards
# Samples: bytes; bytes B, G, R (and A); 16 bits, low or high byte first; inks, 255 less what the pixels have.
_AS_THEY_ARE, _BLUE_FIRST, _LITTLE, _BIG, INKS = range(5)
_ORDERS = {_LITTLE: "<u2", _BIG: ">u2"}
DEEP = tuple(_ORDERS)  # samples of 16 bits
_RAW_MODES = {  # Pillow's names to samples and channels
    "L": (_AS_THEY_ARE, 1), "LA": (_AS_THEY_ARE, 2), "RGB": (_AS_THEY_ARE, 3), "RGBA": (_AS_THEY_ARE, 4),
    "BGR": (_BLUE_FIRST, 3), "BGRA": (_BLUE_FIRST, 4), "I;16": (_LITTLE, 1), "I;16B": (_BIG, 1),
    "CMYK": (INKS, 4), "RGB;16L": (_LITTLE, 3), "RGB;16B": (_BIG, 3), "RGBA;16L": (_LITTLE, 4), "RGBA;16B": (_BIG, 4),
}  # fmt: skip
_BGR = {3: [2, 1, 0], 4: [2, 1, 0, 3]}
Strip = tuple[int, int, int, int]


def deep_rows(data: bytes, tiles: Sequence[Any], width: int, height: int) -> np.ndarray | None:
    """The samples (H, W, C) uint16 of a file whose rows lie in ``tiles``, as Pillow has these; None for any other."""
    layout = _layout_of(tiles, width)
    if layout is None or layout[0] not in _ORDERS:
        return None
    samples, channels, strips = layout
    rows = np.empty((height, 2 * channels * width), np.uint8)
    try:
        for part, place in _strip_views(strips, rows, np.frombuffer(data, np.uint8)):
            part[:] = place
    except ValueError:
        return None
    return rows.view(_ORDERS[samples]).astype(np.uint16).reshape(height, width, channels)


def rows_around(data: bytes, suffix: str, pixels: np.ndarray, tiles: Sequence[Any]) -> bytes | None:
    """Layout, strips, and all bytes of the file that are no pixels (H, W, C) uint8 or uint16; None where the rows are
    not in it as they are."""
    layout = _layout_of(tiles, pixels.shape[1])
    if layout is None or layout[1] != pixels.shape[2]:
        return None
    samples, _, strips = layout
    head = _LAYOUT.pack(suffix.encode(), len(strips), samples) + b"".join(_STRIP.pack(*own) for own in strips)
    try:
        _, taken = _spread(strips, samples, pixels, len(data))
    except ValueError:
        return None
    rest: bytes = np.frombuffer(data, np.uint8)[~taken].tobytes()
    return head + rest


def file_of_rows(around: bytes, pixels: np.ndarray) -> bytes:
    """The file. Raises ValueError or struct.error for what ``rows_around`` cannot have given."""
    _, count, samples = _LAYOUT.unpack_from(around)
    start = _LAYOUT.size + count * _STRIP.size
    if len(around) < start:
        raise ValueError("ends within its strips")
    strips = list(_STRIP.iter_unpack(around[_LAYOUT.size : start]))
    rest = np.frombuffer(around, np.uint8)[start:]
    out, taken = _spread(strips, samples, pixels, len(rest) + pixels.nbytes)
    out[~taken] = rest
    return out.tobytes()


def samples_of(around: bytes) -> int:
    """Which samples the file has; 0 for what says none."""
    return around[_LAYOUT.size - 1] if len(around) >= _LAYOUT.size else 0


def _layout_of(tiles: Sequence[Any], width: int) -> tuple[int, int, list[Strip]] | None:
    """Which samples, how many channels, and the strips of rows that lie in a file as they are."""
    strips: list[Strip] = []
    samples, channels = _AS_THEY_ARE, 0
    for decoder, (left, top, right, bottom), place, args in tiles:
        mode, stride, direction = args if isinstance(args, tuple) and len(args) == 3 else (args, 0, 1)
        if decoder != "raw" or mode not in _RAW_MODES or (left, right) != (0, width):
            return None
        samples, channels = _RAW_MODES[mode]
        size = width * channels * (2 if samples in _ORDERS else 1)
        strips.append((place, bottom - top, stride or size, direction < 0))
    return (samples, channels, strips) if strips else None


def _spread(strips: list[Strip], samples: int, pixels: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A file (size,) uint8 with its pixels alone, and where they are (size,) bool. Raises ValueError."""
    if samples > INKS or (samples in _ORDERS) != (pixels.dtype == np.uint16):
        raise ValueError("no such samples")
    if samples == _BLUE_FIRST:
        pixels = pixels[..., _BGR[pixels.shape[2]]]
    elif samples in _ORDERS:
        pixels = pixels.astype(_ORDERS[samples]).view(np.uint8)
    elif samples == INKS:
        pixels = ~pixels
    out, taken = np.zeros(size, np.uint8), np.zeros(size, bool)
    rows = np.ascontiguousarray(pixels).reshape(len(pixels), -1)
    for (part, place), (_, mark) in zip(_strip_views(strips, rows, out), _strip_views(strips, rows, taken)):
        place[:], mark[:] = part, True
    if int(taken.sum()) != rows.size:
        raise ValueError("the strips do not hold the rows")
    return out, taken


def _strip_views(
    strips: list[Strip], rows: np.ndarray, file: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The rows (n, bytes) of each strip, the top one first as the file has them, and their place in ``file``.

    Raises ValueError for strips that do not lie in it, or are not all the rows.
    """
    own, top, item = rows.shape[1], 0, file.itemsize
    for place, count, stride, upwards in strips:
        end = place + (count - 1) * stride + own
        if not 0 < count <= len(rows) - top or stride < own or end > len(file):
            raise ValueError("a strip lies outside")
        part = rows[top : top + count]
        view = np.lib.stride_tricks.as_strided(file[place:end], (count, own), (stride * item, item))
        yield part[::-1] if upwards else part, view
        top += count
    if top != len(rows):
        raise ValueError("the strips do not hold the rows")

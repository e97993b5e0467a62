"""Samples to the scanlines of a PNG, these to what it deflates, and back: passes, packed bits, filters of rows
(https://www.w3.org/TR/png/#9Filters)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

KINDS = 5  # of filters: none, left, up, mean, Paeth
# first row, first column, rows and columns between: Adam7's passes
_ADAM7 = (
    (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1),
)  # fmt: skip
_BLOCK = 1 << 20  # bytes of rows that are filtered at once


def scanlines(samples: np.ndarray, depth: int, interlaced: bool) -> list[np.ndarray]:
    """Rows (h, bytes) uint8 of each pass that is not empty, of samples (H, W, C) of ``depth`` bits, 8 or 16 or (C = 1)
    less."""
    steps = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    parts = (samples[y::dy, x::dx] for y, x, dy, dx in steps)
    return [_packed(part, depth) for part in parts if part.size]


def filtered(passes: list[np.ndarray], kinds: np.ndarray, step: int) -> bytes:
    """What is deflated: passes of rows, each behind its filter of ``kinds`` (rows of all passes,) uint8; ``step`` bytes
    lie between a byte and the one on its left. Raises ValueError for other kinds and another number of rows."""
    if len(kinds) != sum(map(len, passes)) or kinds.max() >= KINDS:
        raise ValueError("no filters of these rows")
    parts, top = list[bytes](), 0
    for rows, above in _blocks(passes):
        own = kinds[top : top + len(rows)]
        out = np.empty((len(rows), rows.shape[1] + 1), np.uint8)
        out[:, 0] = own
        for kind in np.unique(own):
            at = own == kind
            out[at, 1:] = _differences(rows[at], above[at], int(kind), step)
        parts.append(out.tobytes())
        top += len(rows)
    return b"".join(parts)


def unfiltered(x: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Bytes (H, W, S) uint8 of filtered ones, S to a pixel, whose rows have the filters ``kinds`` (H,): diagonal after
    diagonal. Raises ValueError for other kinds."""
    if kinds.max() >= KINDS:
        raise ValueError("no filters")
    height, width, size = x.shape
    out = np.zeros((height + 1, width + 1, size), np.uint8)
    for diagonal in range(height + width - 1):
        y = np.arange(max(0, diagonal - width + 1), min(height, diagonal + 1))
        at = diagonal - y
        left, above, corner = out[y + 1, at], out[y, at + 1], out[y, at]
        means = np.asarray((left.astype(np.uint16) + above) >> 1, np.uint8)
        tried = [np.zeros_like(left), left, above, means, _paeth(left, above, corner)]
        out[y + 1, at + 1] = x[y, at] + np.choose(kinds[y][:, None], tried)
    return np.ascontiguousarray(out[1:, 1:])


def least(passes: list[np.ndarray], order: tuple[int, ...], step: int) -> np.ndarray:
    """Filters (rows of all passes,) uint8 whose differences, as numbers from -128 to 127, have the least sum of
    magnitudes; of equal ones the first in ``order``."""
    found = []
    for rows, above in _blocks(passes):
        sums = [
            np.abs(_differences(rows, above, kind, step).view(np.int8).astype(np.int16)).sum(1, np.int64)
            for kind in order
        ]
        found.append(np.array(order, np.uint8)[np.argmin(sums, 0)])
    return np.concatenate(found)


def kinds_in(data: bytes, passes: list[np.ndarray]) -> np.ndarray | None:
    """The filters of all rows that ``data``, as of ``filtered``, says; None for data of another size, and where they
    are none."""
    if len(data) != size_of(passes):
        return None
    bytes_, at, found = np.frombuffer(data, np.uint8), 0, []
    for rows in passes:
        size = len(rows) * (rows.shape[1] + 1)
        found.append(bytes_[at : at + size : rows.shape[1] + 1])
        at += size
    kinds = np.concatenate(found)
    return kinds if kinds.max() < KINDS else None


def size_of(passes: list[np.ndarray]) -> int:
    """Bytes of rows with their filters."""
    return sum(len(rows) * (rows.shape[1] + 1) for rows in passes)


def _packed(samples: np.ndarray, depth: int) -> np.ndarray:
    if depth < 8:
        bits = samples >> np.arange(depth - 1, -1, -1, dtype=np.uint8) & 1  # of (h, w, 1)
        return np.packbits(bits.reshape(len(samples), -1), axis=1)
    return np.ascontiguousarray(samples, f">u{depth // 8}").view(np.uint8).reshape(len(samples), -1)


def _blocks(passes: list[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of a pass and those above them, some at a time."""
    for rows in passes:
        count = max(1, _BLOCK // rows.shape[1])
        for top in range(0, len(rows), count):
            block = rows[top : top + count]
            above = np.empty_like(block)
            above[0], above[1:] = rows[top - 1] if top else 0, block[:-1]
            yield block, above


def _differences(rows: np.ndarray, above: np.ndarray, kind: int, step: int) -> np.ndarray:
    """Rows (h, bytes) uint8 less what a filter makes of their neighbours."""
    return np.subtract(rows, _predicted(rows, above, kind, step)) if kind else rows


def _predicted(rows: np.ndarray, above: np.ndarray, kind: int, step: int) -> np.ndarray:
    if kind == 2:
        return above
    left = _shifted(rows, step)
    if kind == 1:
        return left
    if kind == 3:
        return np.asarray((left.astype(np.uint16) + above) >> 1, np.uint8)
    return _paeth(left, above, _shifted(above, step))


def _paeth(left: np.ndarray, above: np.ndarray, corner: np.ndarray) -> np.ndarray:
    a, b, c = left.astype(np.int16), above.astype(np.int16), corner.astype(np.int16)
    to_left, to_above, to_corner = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    by_above = np.where(to_above <= to_corner, above, corner)
    return np.asarray(np.where((to_left <= to_above) & (to_left <= to_corner), left, by_above))


def _shifted(rows: np.ndarray, step: int) -> np.ndarray:
    out = np.zeros_like(rows)
    out[:, step:] = rows[:, :-step]
    return out

"""How the IDATs of a PNG are made again from its samples, byte for byte: a recipe of the filters of rows, the settings
of what deflated them, and the sizes of IDATs. docs/format.md has its bytes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from vdvae_codec.errors import DeflateError
from vdvae_codec.images.deflate import Settings, settings_of, stream_of
from vdvae_codec.images.scanlines import KINDS, filtered, kinds_in, least, scanlines, size_of

_HEAD = struct.Struct("<?I2s4BBHI")  # the fields of a recipe
_RUN = struct.Struct("<II")  # bytes of an IDAT, and how many have them
_LISTED = 255  # rule of filters that are told row by row; one below KINDS says that all rows have it
_LEAST = {5: (0, 1, 2, 3, 4), 6: (0, 2, 1, 3, 4), 7: (0, 2, 1, 4)}  # rules: of libpng, of Pillow's optimize, of Pillow


class _Head(NamedTuple):
    interlaced: bool
    crc: int  # of the zlib stream
    header: bytes  # of the zlib stream
    level: int  # this and the next three: Settings
    memory: int
    strategy: int
    window: int
    rule: int  # of filters
    runs: int  # of IDATs of one size
    tail: int  # bytes in the IDATs behind the zlib stream

    @property
    def settings(self) -> Settings:
        return Settings(self.level, self.memory, self.strategy, self.window)


def recipe_of(idats: Sequence[bytes], samples: np.ndarray, depth: int, interlaced: bool) -> bytes | None:
    """By which ``idats_of`` makes the contents of the IDATs of a PNG from its samples (H, W, C), of ``depth`` bits;
    None where no settings that are tried do."""
    data = b"".join(idats)
    passes, step = scanlines(samples, depth, interlaced), _step(samples, depth)
    inflater = zlib.decompressobj()
    try:
        rows = inflater.decompress(data, size_of(passes) + 1)
    except zlib.error:
        return None
    kinds, tail = kinds_in(rows, passes), inflater.unused_data
    if not inflater.eof or kinds is None or not all(idats) or filtered(passes, kinds, step) != rows:
        return None
    stream = data[: len(data) - len(tail)]
    rule = _rule(kinds, passes, step)
    settings = settings_of(stream, rows)
    if settings is None:
        return None
    runs = [(size, len(list(same))) for size, same in groupby(map(len, idats))]
    if len(runs) >= 1 << 16:
        return None
    head = _Head(interlaced, zlib.crc32(stream), stream[:2], *settings, rule, len(runs), len(tail))
    listed = kinds.tobytes() if rule == _LISTED else b""
    return b"".join([_HEAD.pack(*head), *(_RUN.pack(*run) for run in runs), tail, listed])


def idats_of(recipe: bytes, samples: np.ndarray, depth: int) -> list[bytes]:
    """Contents of the IDATs of samples (H, W, C). Raises ValueError or struct.error for what is no recipe of them,
    DeflateError where this machine's zlib gives other bytes than the one that the recipe was found with."""
    head, runs, tail, listed = _parsed(recipe)
    passes, step = scanlines(samples, depth, head.interlaced), _step(samples, depth)
    rows = filtered(passes, _kinds(head.rule, listed, passes, step), step)
    stream = stream_of(head.header, rows, head.settings)
    if zlib.crc32(stream) != head.crc:
        version = zlib.ZLIB_RUNTIME_VERSION
        raise DeflateError(f"zlib {version} of this machine deflates its pixels to other bytes than its file had")
    data = stream + tail
    if any(size == 0 for size, _ in runs) or sum(size * count for size, count in runs) != len(data):
        raise ValueError("IDATs of another size")
    sizes = [size for size, count in runs for _ in range(count)]
    ends = np.cumsum(sizes)
    return [data[end - size : end] for size, end in zip(sizes, ends.tolist())]


def is_interlaced(recipe: bytes) -> bool:
    """Raises struct.error."""
    return _parsed(recipe)[0].interlaced


def words_of(recipe: bytes) -> str:
    """What a recipe says, for people. Raises ValueError or struct.error."""
    head, runs, _, listed = _parsed(recipe)
    count = sum(count for _, count in runs)
    filters = "listed" if listed else "by least differences" if head.rule in _LEAST else f"all {head.rule}"
    return (
        f"zlib of level {head.level}, memory {head.memory}, strategy {head.strategy}, window {head.window}; "
        f"filters {filters}, IDATs {count}" + ", interlaced" * head.interlaced
    )


def _parsed(recipe: bytes) -> tuple[_Head, list[tuple[int, int]], bytes, bytes]:
    """Its fields; runs of IDATs, what is behind the zlib stream, and filters."""
    head = _Head(*_HEAD.unpack_from(recipe))
    end = _HEAD.size + head.runs * _RUN.size
    if len(recipe) < end + head.tail:
        raise ValueError("the recipe ends early")
    runs = list(_RUN.iter_unpack(recipe[_HEAD.size : end]))
    return head, runs, recipe[end : end + head.tail], recipe[end + head.tail :]


def _step(samples: np.ndarray, depth: int) -> int:
    return max(1, int(samples.shape[2]) * depth // 8)


def _rule(kinds: np.ndarray, passes: list[np.ndarray], step: int) -> int:
    if (kinds == kinds[0]).all():
        return int(kinds[0])
    return next((r for r, order in _LEAST.items() if np.array_equal(least(passes, order, step), kinds)), _LISTED)


def _kinds(rule: int, listed: bytes, passes: list[np.ndarray], step: int) -> np.ndarray:
    """Raises ValueError."""
    if rule in _LEAST:
        return least(passes, _LEAST[rule], step)
    if rule < KINDS:
        return np.full(sum(map(len, passes)), rule, np.uint8)
    if rule != _LISTED:
        raise ValueError("no rule of filters")
    return np.frombuffer(listed, np.uint8)

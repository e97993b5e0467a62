"""The settings of zlib that gave a zlib stream (RFC 1950), found by trying them, and the stream again."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import NamedTuple

MEMORIES = (8, 9)  # zlib's default, libpng's and Python's; Pillow's and optipng's
_STEP = 1 << 16  # bytes that are deflated before what they gave is compared
_LEVELS = ((1, 0), (5, 4, 3, 2), (6,), (9, 8, 7))  # by FLEVEL of the header
_STRATEGIES = (zlib.Z_FILTERED, zlib.Z_DEFAULT_STRATEGY)  # libpng's of filtered rows, and of others
_PLAIN = ((1, zlib.Z_RLE), (1, zlib.Z_HUFFMAN_ONLY), (9, zlib.Z_FIXED), (6, zlib.Z_FIXED))  # whose FLEVEL is 0
_LOOKAHEAD = 262  # bytes of a window in which no match begins


class Settings(NamedTuple):
    """Arguments of zlib's deflateInit2."""

    level: int
    memory: int
    strategy: int
    window: int  # its bits; the header may say less


def settings_of(stream: bytes, data: bytes) -> Settings | None:
    """With which this machine's zlib makes the zlib stream of ``data``; None if none of those that are tried do.

    Wrong ones are left where the first byte differs. The header's two bytes need not be zlib's: libpng lowers the
    window's size in them.
    """
    body = memoryview(stream)[2:-4]
    return next((own for own in _likely(stream, len(data)) if _gives(own, body, data)), None)


def stream_of(header: bytes, data: bytes, settings: Settings) -> bytes:
    """The zlib stream of a header, 2 bytes, and ``data``. Raises ValueError for settings that zlib does not have."""
    return b"".join([header, *_deflated(data, settings), zlib.adler32(data).to_bytes(4, "big")])


def _likely(stream: bytes, size: int) -> Iterator[Settings]:
    """Settings that fit a stream's header, the likeliest first."""
    window = max(9, 8 + (stream[0] >> 4))
    fits = size + _LOOKAHEAD <= 1 << window  # and so no other window gives other matches
    windows = [window] if fits else list(dict.fromkeys((window, min(15, window + 1), 15)))
    levels = _LEVELS[stream[1] >> 6]
    pairs = [(level, strategy) for level in levels for strategy in _STRATEGIES]
    for bits in windows:
        for memory in MEMORIES:
            for level, strategy in (*pairs, *(_PLAIN if levels == _LEVELS[0] else ())):
                yield Settings(level, memory, strategy, bits)


def _gives(settings: Settings, body: memoryview, data: bytes) -> bool:
    at = 0
    for part in _deflated(data, settings):
        if body[at : at + len(part)] != part:
            return False
        at += len(part)
    return at == len(body)


def _deflated(data: bytes, settings: Settings) -> Iterator[bytes]:
    """Raw deflate."""
    level, memory, strategy, window = settings
    if not (0 <= level <= 9 and 1 <= memory <= 9 and 0 <= strategy <= 4 and 9 <= window <= 15):
        raise ValueError("no settings of zlib")
    deflater = zlib.compressobj(level, zlib.DEFLATED, -window, memory, strategy)
    for at in range(0, len(data), _STEP):
        yield deflater.compress(data[at : at + _STEP])
    yield deflater.flush()

"""The chunks of which a PNG is made (https://www.w3.org/TR/png/#5DataRep)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from vdvae_codec.errors import ImageError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHUNK = struct.Struct(">I4s")  # length and type
HEADER = struct.Struct(">IIBBBBB")  # IHDR: width, height, bits, colour type, two methods, whether interlaced
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by channels, of what has no palette


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and contents of each chunk of a PNG; what lies behind the last one comes as of the type IEND, if anything.

    Raises ImageError for what ends early and for wrong checksums.
    """
    at, kind = len(SIGNATURE), b""
    while kind != b"IEND":
        if len(data) < at + 12:
            raise ImageError("the PNG has no end chunk")
        length, kind = CHUNK.unpack_from(data, at)
        contents, at = data[at + 8 : at + 8 + length], at + 12 + length
        if len(data) < at or zlib.crc32(kind + contents) != int.from_bytes(data[at - 4 : at], "big"):
            raise ImageError(f"the checksum of the PNG's chunk {kind.decode('latin-1')} is wrong")
        if kind != b"IEND":
            yield kind, contents
    if at < len(data):
        yield b"IEND", data[at:]


def chunk(kind: bytes, contents: bytes) -> bytes:
    return CHUNK.pack(len(contents), kind) + contents + zlib.crc32(kind + contents).to_bytes(4, "big")

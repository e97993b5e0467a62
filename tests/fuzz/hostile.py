"""Hostile files: bytes of real ones changed, with checksums that are right again where they would give it away.

Every function takes a generator of random numbers first, and draws all that it does from it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from io import BytesIO

import numpy as np

from vdvae_codec.format import vdz
from vdvae_codec.format.vdz import Found, Reader
from vdvae_codec.images.chunks import SIGNATURE

Rng = np.random.Generator
HEAD = struct.Struct("<4sBIQ")  # marker, flags, bytes of the table, bytes of the payload
CRC = struct.Struct("<I")
END = struct.Struct("<II8s")  # of the index: CRC, bytes, marker
NUMBERS = (0, 1, 2, 7, 127, 128, 255, 2**10, 2**14, 2**20, 2**24, 2**31, 2**32 - 1, 2**32, 2**53, 2**60, 2**63, 2**69)
FIXED = ("<B", "<H", ">H", "<I", ">I", "<Q")  # how other files hold numbers


def at(rng: Rng, data: bytes) -> int:
    return int(rng.integers(len(data) + 1))


def flip(rng: Rng, data: bytes) -> bytes:
    place = at(rng, data)
    return data[:place] + bytes(b ^ 1 << int(rng.integers(8)) for b in data[place : place + 1]) + data[place + 1 :]


def insert(rng: Rng, data: bytes) -> bytes:
    place = at(rng, data)
    return data[:place] + rng.bytes(int(rng.integers(1, 9))) + data[place:]


def delete(rng: Rng, data: bytes) -> bytes:
    place = at(rng, data)
    return data[:place] + data[place + int(rng.integers(1, 9)) :]


def repeat(rng: Rng, data: bytes) -> bytes:
    place = at(rng, data)
    part = data[place : place + int(rng.integers(1, 65))]
    return data[:place] + part * int(rng.integers(2, 9)) + data[place + len(part) :]


def truncate(rng: Rng, data: bytes) -> bytes:
    return data[: at(rng, data)]


def varint(rng: Rng, data: bytes) -> bytes:
    """Another number in the place of a byte."""
    place = at(rng, data)
    return data[:place] + vdz._varints(NUMBERS[rng.integers(len(NUMBERS))]) + data[place + 1 :]


def fixed(rng: Rng, data: bytes) -> bytes:
    """Another number of 1 to 8 bytes."""
    place, layout = at(rng, data), FIXED[rng.integers(len(FIXED))]
    size = struct.calcsize(layout)
    number = NUMBERS[rng.integers(len(NUMBERS))] % 256**size
    return data[:place] + struct.pack(layout, number) + data[place + size :]


EDITS: tuple[Callable[[Rng, bytes], bytes], ...] = (flip, insert, delete, repeat, truncate, varint, fixed)


def edited(rng: Rng, data: bytes) -> bytes:
    """One to four edits."""
    for _ in range(int(rng.integers(1, 5))):
        data = EDITS[rng.integers(len(EDITS))](rng, data)
    return data


def spliced(rng: Rng, data: bytes, other: bytes) -> bytes:
    """The beginning of one file and the end of another."""
    return data[: at(rng, data)] + other[at(rng, other) :]


# A .vdz in its parts


def segments_of(data: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """Flags, table (unpacked) and payload of each segment."""
    return [segment_of(data, found) for found in Reader(BytesIO(data)).segments]


def segment_of(data: bytes, found: Found) -> tuple[bytes, bytes, bytes]:
    _, flags, table, payload = HEAD.unpack_from(data, found.start)
    start = found.start + HEAD.size + CRC.size
    return bytes([flags]), vdz._unpack(data[start : start + table]), data[start + table : start + table + payload]


def index_of(data: bytes) -> bytes:
    """Unpacked; empty if there is none."""
    _, size, marker = END.unpack_from(data, len(data) - END.size)
    return vdz._unpack(data[-END.size - size : -END.size]) if marker == b"VDZINDEX" else b""


def packed(rng: Rng, table: bytes) -> bytes:
    kind = int(rng.integers(2))
    return bytes([kind]) + (zlib.compress(table, 1, -zlib.MAX_WBITS) if kind else table)


def sealed(rng: Rng, flags: bytes, table: bytes, payload: bytes) -> bytes:
    """A segment whose checksums and sizes are right."""
    own = packed(rng, table)
    head = HEAD.pack(b"SEGM", flags[0], len(own), len(payload))
    return head + CRC.pack(zlib.crc32(own, zlib.crc32(head))) + own + payload + CRC.pack(zlib.crc32(payload))


def joined(rng: Rng, segments: Sequence[bytes], index: bytes) -> bytes:
    own = packed(rng, index)
    end = own + END.pack(zlib.crc32(own), len(own), b"VDZINDEX") if index else b""
    return b"".join([vdz.MAGIC, bytes([vdz.VERSION]), *segments, end])


def resized(index: bytes, sizes: Sequence[int]) -> bytes:
    """The index with the sizes that segments have now: else no edit of several would be read past it."""
    numbers = vdz._Numbers(index)
    count = numbers.varint()
    images = [(numbers.varint(), numbers.varint())[1] for _ in range(count)]
    rows = (number for row in zip(sizes, images) for number in row)
    return vdz._varints(count, *rows) + numbers.rest()


def rebuilt(rng: Rng, data: bytes, part: int) -> bytes:
    """One segment's table (1) or payload (2) edited, with everything that says so repaired."""
    segments, index = segments_of(data), index_of(data)
    own = list(segments[n := int(rng.integers(len(segments)))])
    own[part] = edited(rng, own[part])
    segments[n] = (own[0], own[1], own[2])
    whole = [sealed(rng, *segment) for segment in segments]
    return joined(rng, whole, resized(index, [len(s) for s in whole]) if index else b"")


def table(rng: Rng, data: bytes) -> bytes:
    return rebuilt(rng, data, 1)


def payload(rng: Rng, data: bytes) -> bytes:
    return rebuilt(rng, data, 2)


def index(rng: Rng, data: bytes) -> bytes:
    """The index edited, or one where there was none."""
    whole = [sealed(rng, *segment) for segment in segments_of(data)]
    return joined(rng, whole, edited(rng, index_of(data) or vdz._varints(2, 9, 1, 9, 1) + b"a\0a\0a\0a"))


def shuffled(rng: Rng, data: bytes) -> bytes:
    """Segments left out, doubled, or in another order."""
    whole = [sealed(rng, *segment) for segment in segments_of(data)]
    chosen = [whole[n] for n in rng.integers(len(whole), size=rng.integers(1, len(whole) + 2))]
    return joined(rng, chosen, index_of(data))


# A PNG in its parts


def chunks(rng: Rng, data: bytes) -> bytes:
    """A PNG with one chunk edited, whose checksum and length are right."""
    if not data.startswith(SIGNATURE):
        return edited(rng, data)
    parts, place = [], len(SIGNATURE)
    while place < len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        parts.append(data[place + 4 : place + 8 + size])
        place += 12 + size
    n = int(rng.integers(len(parts)))
    parts[n] = parts[n][:4] + edited(rng, parts[n][4:])
    whole = (len(part[4:]).to_bytes(4, "big") + part + zlib.crc32(part).to_bytes(4, "big") for part in parts)
    return SIGNATURE + b"".join(whole)

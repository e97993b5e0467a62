"""The bytes of a .vdz file: a fixed header, a small table and the payload, each under a CRC-32; little-endian.

offset  bytes  field
     0      8  magic
     8      1  format version: 1, or 3 if the table says what became of the colours
     9      1  kind: 0 = a model's entropy coded payload, 1 = the payload is a whole image file
    10      1  channels: 1 grey, 3 RGB; 0 for a file
    11      1  reserved, 0
    12      8  width and height of the image in pixels
    20      4  height and width of a tile in pixels; 0 for a file
    24     16  digest of the model; zeros for a file
    40      4  bytes of the table
    44      8  bytes of the payload
    52      4  CRC-32 of the decoded pixels
    56      4  CRC-32 of header bytes 0..55 followed by the table
    60         table: model name (length byte, UTF-8); runs of equal group sizes (count, then size and repeat of each);
               metadata (count, then key byte, method byte, length and bytes of each); numbers are LEB128 varints
               payload
            4  CRC-32 of the payload
"""

from __future__ import annotations

import itertools
import re
import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum

from vdvae_codec.errors import FormatError

MAGIC = b"\x89VDZ\r\n\x1a\n"
PLAIN, COLOURS = 1, 3  # format versions; 2 and 4 are archives of many images
MAX_METADATA = 1 << 26  # bytes of all metadata entries together, uncompressed
MAX_GROUPS = 1 << 20

_HEADER = struct.Struct("<8s4BIIHH16sIQI")
_CRC = struct.Struct("<I")
_TABLE = _HEADER.size + _CRC.size  # where the table starts
KEYS = ("icc", "exif", "xmp", "suffix", "colours", "cells")  # a key's code is its position
_RAW, _ZLIB = 0, 1  # methods of a metadata entry


class Kind(IntEnum):
    """What the payload is."""

    MODEL = 0  # words of the entropy coder
    FILE = 1  # a whole image file


def require(condition: bool, message: str) -> None:
    if not condition:
        raise FormatError(message)


@dataclass(frozen=True)
class Container:
    """Content of a .vdz file. FormatError if the fields contradict each other."""

    kind: Kind
    channels: int  # 1 grey, 3 RGB; 0 for a file
    width: int
    height: int
    tile: tuple[int, int]  # height, width; (0, 0) for a file
    groups: tuple[int, ...]  # number of tiles that are coded together, in coding order; empty for a file
    model: str  # name; empty for a file
    digest: bytes  # 16 bytes that identify the model's integers; zeros for a file
    metadata: dict[str, bytes]
    """icc, exif, xmp; suffix: under which a file payload is written, such as b".png"; colours: how the pixels are got
    from those that the model codes (``colours.redo``); cells: a bit for each 2x2 pixels (``hierarchy.Group``)."""
    payload: bytes
    pixels_crc: int  # CRC-32 of the decoded pixels' bytes

    def __post_init__(self) -> None:
        require(self.kind in tuple(Kind), f"header: unknown kind {self.kind}")
        sides = (self.width, self.height)
        require(all(0 < side < 1 << 32 for side in sides), f"header: impossible size {self.width}x{self.height}")
        require(0 <= self.pixels_crc < 1 << 32, "header: impossible checksum")
        require(len(self.digest) == 16, "header: a model digest has 16 bytes")
        if self.kind == Kind.MODEL:
            require(self.channels in (1, 3), f"header: {self.channels} channels, expected 1 or 3")
            require(all(0 < side < 1 << 16 for side in self.tile), "header: impossible tile size")
            require(self.model.isprintable() and 0 < len(self.model.encode()) < 256, "table: impossible model name")
            require(len(self.groups) <= MAX_GROUPS and 0 not in self.groups, "table: impossible groups")
            tiles = -(-self.height // self.tile[0]) * -(-self.width // self.tile[1])
            require(sum(self.groups) == tiles, f"table: groups of {sum(self.groups)} tiles for an image of {tiles}")
            require(len(self.payload) % 4 == 0, "payload: not a whole number of 32-bit words")
        else:
            require(self.version == PLAIN, "metadata: an image file's colours are its own")
            unused = (self.channels, self.tile, self.groups, self.model, self.digest)
            require(unused == (0, (0, 0), (), "", bytes(16)), "header: an image file's payload has no model fields")
        for key in self.metadata:
            require(key in KEYS, f"metadata: unknown key {key!r}")
        require(sum(map(len, self.metadata.values())) <= MAX_METADATA, "metadata: more than 64 MiB")
        suffix = self.metadata.get("suffix", b".png")
        require(re.fullmatch(rb"\.[a-z0-9]{1,15}", suffix) is not None, "metadata: impossible suffix")

    @property
    def version(self) -> int:
        return COLOURS if {"colours", "cells"} & set(self.metadata) else PLAIN

    def to_bytes(self) -> bytes:
        table = self._name_and_groups() + self._metadata()
        shape = (self.width, self.height, *self.tile)
        lengths = (len(table), len(self.payload))
        header = _HEADER.pack(
            MAGIC, self.version, self.kind, self.channels, 0, *shape, self.digest, *lengths, self.pixels_crc
        )
        header_crc = _CRC.pack(zlib.crc32(table, zlib.crc32(header)))
        return b"".join((header, header_crc, table, self.payload, _CRC.pack(zlib.crc32(self.payload))))

    @staticmethod
    def from_bytes(data: bytes) -> Container:
        """Parses and checks a whole file; raises FormatError, and nothing else, for what ``to_bytes`` cannot write."""
        require(data[: len(MAGIC)] == MAGIC, "not a .vdz file")
        version = data[len(MAGIC)] if len(data) > len(MAGIC) else PLAIN
        require(version <= COLOURS, f"format version {version} is unknown: a newer vdvae-codec is needed")
        require(version in (PLAIN, COLOURS), f"header: impossible format version {version}")
        require(len(data) >= _TABLE, "truncated within the header")
        _, _, kind, channels, reserved, *shape, digest, table_bytes, payload_bytes, crc = _HEADER.unpack_from(data)
        start = _TABLE + table_bytes
        require(start <= len(data), "truncated within the header's table, or the header is damaged")
        table = data[_TABLE:start]
        header_crc = zlib.crc32(table, zlib.crc32(data[: _HEADER.size]))
        require(header_crc == _CRC.unpack_from(data, _HEADER.size)[0], "the header is damaged")
        end = start + payload_bytes
        require(end + _CRC.size <= len(data), f"truncated: {len(data)} of {end + _CRC.size} bytes")
        require(end + _CRC.size == len(data), f"{len(data) - end - _CRC.size} bytes follow the end of the file")
        payload = data[start:end]
        require(zlib.crc32(payload) == _CRC.unpack_from(data, end)[0], "the payload is damaged")
        require(reserved == 0, "header: the reserved byte is not zero")
        require(kind in tuple(Kind), f"header: unknown kind {kind}")

        reader = _Reader(table)
        model, groups, metadata = reader.name(), reader.groups(), reader.metadata()
        require(reader.at_end, "table: unexpected bytes at the end")
        width, height, *tile = shape
        fields = (Kind(kind), channels, width, height, (tile[0], tile[1]), groups, model, digest)
        container = Container(*fields, metadata, payload, crc)
        require(container.version == version, f"metadata: not that of format version {version}")
        return container

    def sizes(self) -> dict[str, int]:
        """Bytes of the file's parts: header (with model name, groups and checksums), metadata and payload."""
        header = _TABLE + len(self._name_and_groups()) + _CRC.size
        return {"header": header, "metadata": len(self._metadata()), "payload": len(self.payload)}

    def _name_and_groups(self) -> bytes:
        name = self.model.encode()
        runs = [(size, len(list(run))) for size, run in itertools.groupby(self.groups)]
        return bytes([len(name)]) + name + _varints(len(runs), *itertools.chain(*runs))

    def _metadata(self) -> bytes:
        parts = [_varints(len(self.metadata))]
        for code, key in enumerate(KEYS):
            if key in self.metadata:
                raw = self.metadata[key]
                method, stored = min((_RAW, raw), (_ZLIB, zlib.compress(raw, 9)), key=lambda choice: len(choice[1]))
                parts += [bytes([code, method]), _varints(len(stored)), stored]
        return b"".join(parts)


def _varints(*numbers: int) -> bytes:
    """Unsigned LEB128: 7 bits a byte, lowest first, the top bit says that more follow."""
    out = bytearray()
    for number in numbers:
        while number > 127:
            out.append(number & 127 | 128)
            number >>= 7
        out.append(number)
    return bytes(out)


class _Reader:
    """Takes a table apart from front to back; FormatError where it ends too early or holds the impossible."""

    def __init__(self, data: bytes):
        self._data = data
        self._position = 0

    @property
    def at_end(self) -> bool:
        return self._position == len(self._data)

    def take(self, count: int) -> bytes:
        require(count <= len(self._data) - self._position, "table: truncated")
        self._position += count
        return self._data[self._position - count : self._position]

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self) -> int:
        number = 0
        for shift in range(0, 70, 7):
            byte = self.byte()
            number |= (byte & 127) << shift
            if byte < 128:
                return number
        raise FormatError("table: a number is too large")

    def name(self) -> str:
        try:
            return self.take(self.byte()).decode()
        except UnicodeDecodeError as error:
            raise FormatError("table: the model name is not UTF-8") from error

    def groups(self) -> tuple[int, ...]:
        groups: list[int] = []
        for _ in range(self.varint()):
            size, repeat = self.varint(), self.varint()
            require(len(groups) + repeat <= MAX_GROUPS, "table: impossible groups")
            groups += [size] * repeat
        return tuple(groups)

    def metadata(self) -> dict[str, bytes]:
        metadata: dict[str, bytes] = {}
        budget = MAX_METADATA
        for _ in range(self.varint()):
            code, method = self.byte(), self.byte()
            stored = self.take(self.varint())
            require(code < len(KEYS), f"metadata: unknown key code {code}")
            require(method in (_RAW, _ZLIB), f"metadata: unknown method {method}")
            require(KEYS[code] not in metadata, f"metadata: two entries of {KEYS[code]}")
            value = stored if method == _RAW else _inflate(stored, budget)
            budget -= len(value)
            require(budget >= 0, "metadata: more than 64 MiB")
            metadata[KEYS[code]] = value
        return metadata


def _inflate(stored: bytes, limit: int) -> bytes:
    """Undoes zlib.compress, but stops after ``limit`` + 1 bytes of output."""
    inflater = zlib.decompressobj()
    try:
        value = inflater.decompress(stored, limit + 1)
    except zlib.error as error:
        raise FormatError("metadata: damaged") from error
    require(len(value) > limit or (inflater.eof and not inflater.unused_data), "metadata: damaged")
    return value

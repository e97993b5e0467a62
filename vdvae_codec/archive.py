"""The bytes of an archive of many images: segments that stand alone, and an index at the end; little-endian.

offset  bytes  field
     0      8  magic, as of single images
     8      1  format version: 4; 2, which knew no colours
     9      1  kind, 2
    10      2  reserved, 0
    12         segments:
               4   marker
               4   bytes of the table
               8   bytes of the payload
               4   CRC-32 of these 16 bytes followed by the table
                   table: JSON, compressed by xz (the fields of ``Segment``)
                   payload: the entropy coder's words, then the files that are stored as they are
               4   CRC-32 of the payload
               index:
                   JSON, compressed by xz: where each segment begins, how many images it holds, its first and last name
               4   CRC-32 of the index
               4   bytes of the index
               8   the magic again

A damaged segment costs its own images. Without the index, segments are found one behind the other.
"""

from __future__ import annotations

import base64
import itertools
import json
import lzma
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from vdvae_codec.container import KEYS, MAGIC, MAX_METADATA, require
from vdvae_codec.errors import FormatError

VERSIONS, KIND = (2, 4), 2
MAX_TABLE = 1 << 28  # bytes of a table or an index, uncompressed
MARKER = b"SEGM"

_START = struct.Struct("<8sBBH")
_HEAD = struct.Struct("<4sIQ")
_CRC = struct.Struct("<I")
_END = struct.Struct("<II8s")


@dataclass(frozen=True)
class Entry:
    """One image of a segment."""

    name: str  # path below the folder, with slashes
    modified: int | None  # seconds since 1970
    shape: tuple[int, int, int] | None  # height, width, channels of what the model codes; None for a stored file
    file_bytes: int = 0  # of a stored file
    suffix: str = ""  # of a stored file that is not the original
    metadata: dict[str, bytes] = field(default_factory=dict)  # icc, exif, xmp, colours, of what the model codes


@dataclass(frozen=True)
class Segment:
    """Images that are coded together. FormatError if the fields contradict each other."""

    model: str
    digest: bytes
    entries: tuple[Entry, ...]
    groups: tuple[int, ...]
    direct: int  # number of groups that borrow nothing
    pixels_crc: int  # CRC-32 of all decoded pixels, image after image
    word_bytes: int
    payload: bytes  # words, then stored files one behind the other

    def __post_init__(self) -> None:
        require(len({e.name for e in self.entries}) == len(self.entries), "table: two images of one name")
        for entry in self.entries:
            require(is_safe(entry.name), f"table: impossible name {entry.name!r}")
            shape = entry.shape
            require(
                shape is None or (all(0 < s < 1 << 32 for s in shape[:2]) and shape[2] in (1, 3)),
                f"table: impossible shape of {entry.name}",
            )
            require(set(entry.metadata) <= set(KEYS), f"table: unknown metadata of {entry.name}")
            require(entry.file_bytes >= 0, f"table: impossible size of {entry.name}")
        require(all(size > 0 for size in self.groups) and self.direct >= 0, "table: impossible groups")
        require(self.word_bytes % 4 == 0, "payload: not a whole number of 32-bit words")
        stored = sum(e.file_bytes for e in self.entries)
        require(self.word_bytes + stored == len(self.payload), "payload: its size differs from what its table says")

    def files(self) -> Iterator[tuple[Entry, bytes]]:
        """The stored files."""
        start = self.word_bytes
        for entry in self.entries:
            if entry.shape is None:
                yield entry, self.payload[start : start + entry.file_bytes]
                start += entry.file_bytes


def is_safe(name: str) -> bool:
    """Whether a name is a plain relative path: no root, no drive, no '..', nothing that a terminal would obey."""
    parts = PurePosixPath(name).parts
    odd = re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\\]|^[A-Za-z]:", name)
    return not odd and bool(parts) and "/".join(parts) == name and parts[0] != "/" and ".." not in parts


class Writer:
    """Writes an archive to a binary file, segment by segment."""

    def __init__(self, file: BinaryIO):
        self._file, self._index = file, []  # type: tuple[BinaryIO, list[list[Any]]]
        self.table_bytes = 0
        self._file.write(_START.pack(MAGIC, VERSIONS[-1], KIND, 0))

    def add(self, segment: Segment) -> None:
        table = _pack(_to_json(segment))
        self._index.append([
            self._file.tell(), len(segment.entries), segment.entries[0].name, segment.entries[-1].name,
        ])  # fmt: skip
        head = _HEAD.pack(MARKER, len(table), len(segment.payload))
        crcs = (_CRC.pack(zlib.crc32(table, zlib.crc32(head))), _CRC.pack(zlib.crc32(segment.payload)))
        for part in (head, crcs[0], table, segment.payload, crcs[1]):
            self._file.write(part)
        self.table_bytes += len(table) + _HEAD.size + 2 * _CRC.size

    def finish(self) -> None:
        index = _pack(self._index)
        self._file.write(index + _END.pack(zlib.crc32(index), len(index), MAGIC))
        self.table_bytes += len(index) + _END.size + _START.size


@dataclass(frozen=True)
class Found:
    """A segment's place in an archive, and what the index says of it."""

    start: int
    count: int | None = None
    first: str = "?"
    last: str = "?"

    def __str__(self) -> str:
        if self.count is None:
            return f"the images of the segment at byte {self.start}"
        return f"{self.count} images, {self.first} to {self.last}," if self.count > 1 else self.first


class Reader:
    """Reads an archive; raises FormatError if it is none."""

    def __init__(self, file: BinaryIO):
        self._file = file
        file.seek(0)
        start = file.read(_START.size)
        require(is_archive(start), "not an archive of images")
        require(start[10:] == bytes(2), "header: the reserved bytes are not zero")
        self.size = file.seek(0, 2)
        self.complete = True
        try:
            self.segments = self._indexed()
        except FormatError:
            self.complete = False
            self.segments = list(self._walked())

    def _at(self, start: int, count: int) -> bytes:
        require(start >= 0 and start + count <= self.size, "truncated")
        self._file.seek(start)
        return self._file.read(count)

    def _indexed(self) -> list[Found]:
        crc, count, magic = _END.unpack(self._at(self.size - _END.size, _END.size))
        require(magic == MAGIC, "truncated")
        index = self._at(self.size - _END.size - count, count)
        require(zlib.crc32(index) == crc, "the index is damaged")
        found = []
        for row in _unpack(index):
            require(isinstance(row, list) and [type(v) for v in row] == [int, int, str, str], "index: damaged")
            found.append(Found(*row))
        return found

    def _walked(self) -> Iterator[Found]:
        start = _START.size
        while start + _HEAD.size <= self.size:
            marker, table_bytes, payload_bytes = _HEAD.unpack(self._at(start, _HEAD.size))
            if marker != MARKER:
                return
            yield Found(start)
            start += _HEAD.size + 2 * _CRC.size + table_bytes + payload_bytes

    def entries(self, found: Found) -> tuple[Entry, ...]:
        """The images of a segment, from its table alone; raises FormatError if that is damaged."""
        return _entries(self._table(found)[0])

    def segment(self, found: Found) -> Segment:
        """A whole segment; raises FormatError if it is damaged."""
        values, start, size = self._table(found)
        payload = self._at(start, size)
        require(zlib.crc32(payload) == _CRC.unpack(self._at(start + size, _CRC.size))[0], "its payload is damaged")
        return _from_json(values, payload)

    def _table(self, found: Found) -> tuple[Any, int, int]:
        """A segment's table, and where its payload begins and how long it is."""
        head = self._at(found.start, _HEAD.size)
        marker, table_bytes, payload_bytes = _HEAD.unpack(head)
        crc = _CRC.unpack(self._at(found.start + _HEAD.size, _CRC.size))[0]
        require(marker == MARKER, "its header is damaged")
        start = found.start + _HEAD.size + _CRC.size
        table = self._at(start, table_bytes)
        require(zlib.crc32(table, zlib.crc32(head)) == crc, "its table is damaged")
        return _unpack(table), start + table_bytes, payload_bytes


def is_archive(start: bytes) -> bool:
    """Whether a file that starts with these bytes is an archive; raises FormatError for one of a newer version."""
    if start[: len(MAGIC)] != MAGIC or len(start) < _START.size or start[9] != KIND:
        return False
    require(start[8] <= VERSIONS[-1], f"format version {start[8]} is unknown: a newer vdvae-codec is needed")
    return start[8] in VERSIONS


def _pack(values: Any) -> bytes:
    raw = json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode()
    return lzma.compress(raw, lzma.FORMAT_XZ, lzma.CHECK_NONE, preset=9)


def _unpack(data: bytes) -> Any:
    try:
        inflater = lzma.LZMADecompressor(lzma.FORMAT_XZ)
        raw = inflater.decompress(data, MAX_TABLE)
        require(inflater.eof and not inflater.unused_data, "table: damaged")
        return json.loads(raw)
    except (lzma.LZMAError, ValueError, RecursionError) as error:
        raise FormatError("table: damaged") from error


def _runs(values: Any) -> list[Any]:
    """[value, repeat] of each run, which is how columns of a table are kept."""
    return [[value, len(list(run))] for value, run in itertools.groupby(values)]


def _to_json(s: Segment) -> dict[str, Any]:
    return {
        "model": s.model, "digest": s.digest.hex(), "groups": _runs(s.groups), "direct": s.direct,
        "pixels_crc": s.pixels_crc, "word_bytes": s.word_bytes, "names": [e.name for e in s.entries],
        "modified": _runs(e.modified for e in s.entries), "shapes": _runs(e.shape for e in s.entries),
        "files": [[e.file_bytes, e.suffix] for e in s.entries if e.shape is None],
        "metadata": [
            [n, key, base64.b64encode(value).decode()]
            for n, e in enumerate(s.entries) for key, value in e.metadata.items()
        ],
    }  # fmt: skip


def _entries(values: Any) -> tuple[Entry, ...]:
    try:
        count = len(values["names"])
        columns = []
        for name in ("modified", "shapes"):
            runs = values[name]
            require(sum(repeat for _, repeat in runs) == count, f"table: {name} do not fit")
            columns.append([value for value, repeat in runs for _ in range(repeat)])
        files, metadata = iter(values["files"]), [dict[str, bytes]() for _ in range(count)]
        for n, key, value in values["metadata"]:
            metadata[n][key] = base64.b64decode(value, validate=True)
        require(sum(len(v) for m in metadata for v in m.values()) <= MAX_METADATA, "table: more than 64 MiB")
        entries = []
        for name, modified, shape, own in zip(values["names"], *columns, metadata):
            size, suffix = (0, "") if shape is not None else next(files)
            kinds = [type(name), type(size), type(suffix), *(type(s) for s in shape or ())]
            require(kinds == [str, int, str, *[int] * len(shape or ())], "table: damaged")
            require(modified is None or type(modified) is int, "table: damaged")
            height, width, channels = shape or (0, 0, 0)
            entries.append(Entry(name, modified, shape and (height, width, channels), size, suffix, own))
        require(next(files, None) is None, "table: files do not fit")
        return tuple(entries)
    except (KeyError, TypeError, ValueError, IndexError, StopIteration, AttributeError) as error:
        raise FormatError("table: damaged") from error


def _from_json(values: Any, payload: bytes) -> Segment:
    entries = _entries(values)
    try:
        require(all(type(v) is int for run in values["groups"] for v in run), "table: damaged")
        require(sum(repeat for _, repeat in values["groups"]) <= 1 << 24, "table: impossible groups")
        groups = tuple(size for size, repeat in values["groups"] for _ in range(repeat))
        numbers = (values["direct"], values["pixels_crc"], values["word_bytes"])
        require(all(type(n) is int for n in numbers) and type(values["model"]) is str, "table: damaged")
        digest = bytes.fromhex(values["digest"])
        return Segment(values["model"], digest, entries, groups, *numbers, payload)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError("table: damaged") from error

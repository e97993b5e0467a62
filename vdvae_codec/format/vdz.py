"""The bytes of a .vdz file, version 1: segments that stand alone, and an index of several (docs/format.md).

A file of one image is one segment of one image. Every byte is under a CRC-32, all numbers are bounded before memory is
asked for, and what ``Writer`` cannot have written is a FormatError. No torch, no pickle, nothing is executed.
"""

from __future__ import annotations

import itertools
import lzma
import re
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, BinaryIO, TypeVar

from vdvae_codec.errors import FormatError

T = TypeVar("T")

MAGIC = b"\x89VDZ\r\n\x1a\n"
VERSION = 1
KEYS = (  # a key's code is its position
    "icc", "exif", "xmp", "side_info", "frame", "alpha", "channels", "suffix", "depth",
)  # fmt: skip
MAX_TABLE = 1 << 26  # bytes of a table or an index, unpacked
MAX_NAMES = 1 << 24  # bytes of a table that are names
MAX_NAME = 1 << 12  # characters
MAX_IMAGES = 1 << 17  # of a segment
MAX_GROUPS = 1 << 20
MAX_SIDE = 1 << 32
MAX_TIME = 1 << 63

_START = struct.Struct("<8sB")
_HEAD = struct.Struct("<4sBIQ")
_CRC = struct.Struct("<I")
_END = struct.Struct("<II8s")
_MARKER, _INDEX = b"SEGM", b"VDZINDEX"
_LAST = 1  # flag of the last segment
_RAW, _DEFLATE, _LZMA = 0, 1, 2  # how a table is packed
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
_DIGEST_BYTES = 16
_LOW = struct.Struct("<Q")  # bytes of the file with the bits below the highest eight
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,15}")


def require(condition: bool, message: str) -> None:
    if not condition:
        raise FormatError(message)


@dataclass(frozen=True)
class Entry:
    """What a segment's table says of one image."""

    name: str  # path below a folder, with slashes; "" for a single image
    modified: int | None  # seconds since 1970
    height: int
    width: int
    channels: int  # grey or R, G, B that the model codes, 1 or 3; with transparency 2 or 4; 0: a file is stored
    file_bytes: int = 0  # of a stored file
    suffix: str = ""  # of a stored file, such as ".webp"
    original: bool = False  # whether the stored file is the input as it was
    metadata: dict[str, bytes] = field(default_factory=dict)  # by KEYS

    @property
    def coded(self) -> bool:
        return self.channels > 0

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels

    @property
    def pixel_channels(self) -> int:
        """Of the pixels; 0 where the stored file alone says it."""
        return self.metadata["channels"][0] if "channels" in self.metadata else self.channels

    @property
    def parts(self) -> list[tuple[int, int, int]]:
        """Shapes of what the model codes: the colours, and the transparency unless the table has it."""
        colours, opaque = 2 * ((self.channels - 1) // 2) + 1, self.channels % 2 == 1 or "alpha" in self.metadata
        alpha = [] if opaque else [(self.height, self.width, 1)]
        return [(self.height, self.width, colours), *alpha] if self.coded else []

    @property
    def low_bytes(self) -> int:
        """Of the file in the payload that holds the bits below the highest eight of samples of 16; 0 for none."""
        return int(_LOW.unpack_from(self.metadata["depth"])[0]) if "depth" in self.metadata else 0

    @property
    def depth(self) -> bytes:
        """How samples of 16 bits are got from 8 and that file (``images.depth``); empty for others."""
        return self.metadata.get("depth", b"")[_LOW.size :]

    @property
    def payload_bytes(self) -> int:
        """Of files."""
        return self.file_bytes + self.low_bytes

    @property
    def side_info(self) -> bytes:
        """How the pixels are got from those that the model codes (``transforms``)."""
        return self.metadata.get("side_info", b"")


@dataclass(frozen=True)
class Segment:
    """Images that are coded together. FormatError if the fields contradict each other."""

    entries: tuple[Entry, ...]
    model: str  # name; "" where nothing is coded
    digest: bytes  # 16 bytes that identify the model's integers; zeros where nothing is coded
    groups: tuple[int, ...]  # number of tiles that are coded together, in coding order
    direct: int  # number of groups, the first ones, that borrow nothing
    pixels_crc: int  # CRC-32 of all pixels whose images are coded, image after image
    word_bytes: int  # of the entropy coder
    payload: bytes  # words, then stored files one behind the other
    stacks: tuple[int, ...] = ()  # bytes of the words of each group, where each has a stack of its own

    def __post_init__(self) -> None:
        require(0 < len(self.entries) <= MAX_IMAGES, "table: no images, or too many")
        require(len(_joined(e.name for e in self.entries)) < MAX_NAMES, "table: the names are too long")
        require(len({e.name for e in self.entries}) == len(self.entries), "table: two images of one name")
        for entry in self.entries:
            check_entry(entry, alone=len(self.entries) == 1)
        coded = any(e.coded for e in self.entries)
        require(len(self.digest) == _DIGEST_BYTES, "table: a model digest has 16 bytes")
        require(0 <= self.pixels_crc < 1 << 32, "table: impossible checksum")
        if coded:
            name = self.model
            require(name.isprintable() and 0 < len(name.encode()) < 256, "table: impossible model name")
        else:
            unused = (self.model, self.digest, self.groups, self.pixels_crc, self.word_bytes)
            require(unused == ("", bytes(_DIGEST_BYTES), (), 0, 0), "table: a model that codes nothing")
        require(len(self.groups) <= MAX_GROUPS and all(size > 0 for size in self.groups), "table: impossible groups")
        require(0 <= self.direct <= len(self.groups), "table: impossible groups")
        require(self.word_bytes >= 0 == self.word_bytes % 4, "payload: not a whole number of 32-bit words")
        apart = len(self.stacks) == len(self.groups) == self.direct and sum(self.stacks) == self.word_bytes
        whole = all(size >= 0 == size % 4 for size in self.stacks)
        require(not self.stacks or (apart and whole), "table: the stacks do not fit the groups")
        stored = sum(e.payload_bytes for e in self.entries)
        require(self.word_bytes + stored == len(self.payload), "payload: its size differs from what its table says")

    def words(self) -> Iterator[bytes]:
        """Of each stack."""
        start = 0
        for size in self.stacks or (self.word_bytes,):
            yield self.payload[start : start + size]
            start += size

    def files(self) -> Iterator[bytes | None]:
        """The stored file of each image, None where it is coded."""
        for entry, start in self._starts():
            yield None if entry.coded else self.payload[start : start + entry.file_bytes]

    def lows(self) -> Iterator[bytes]:
        """The file of each image that holds the bits below the highest eight, empty for none."""
        for entry, start in self._starts():
            yield self.payload[start + entry.file_bytes : start + entry.payload_bytes]

    def _starts(self) -> Iterator[tuple[Entry, int]]:
        start = self.word_bytes
        for entry in self.entries:
            yield entry, start
            start += entry.payload_bytes


def depth_entry(how: bytes, low_bytes: int) -> dict[str, bytes]:
    """Metadata of samples of 16 bits, of which a file of ``low_bytes`` holds some; none for those of 8."""
    return {"depth": _LOW.pack(low_bytes) + how} if how else {}


def check_entry(entry: Entry, alone: bool) -> None:
    """Raises FormatError for what no image is; only one that is ``alone`` may have no name."""
    name = entry.name
    require(is_safe(name) or (alone and not name), f"table: impossible name {name[:MAX_NAME]!r}")
    sizes = 0 < entry.height < MAX_SIDE and 0 < entry.width < MAX_SIDE and 0 <= entry.channels <= 4
    require(sizes, f"table: impossible shape {entry.width}x{entry.height}x{entry.channels}")
    require(entry.modified is None or -MAX_TIME <= entry.modified < MAX_TIME, "table: impossible time")
    require(set(entry.metadata) <= set(KEYS), f"table: unknown metadata of {name!r}")
    if entry.coded:
        require((entry.file_bytes, entry.suffix, entry.original) == (0, "", False), "table: a coded image with a file")
    else:
        require(entry.file_bytes > 0, "table: an empty file")
        require(_SUFFIX.fullmatch(entry.suffix) is not None, "table: impossible suffix")
        require("side_info" not in entry.metadata, "table: side information of a stored file")
    count = entry.metadata.get("channels", b"\1")
    require(not entry.coded or "channels" not in entry.metadata, "table: channels of a coded image twice")
    require(len(count) == 1 and 1 <= count[0] <= 4, "table: impossible channels")
    depth = entry.metadata.get("depth", bytes(_LOW.size + 1))
    require(len(depth) > _LOW.size and ("depth" not in entry.metadata or not entry.original), "table: impossible depth")
    own = entry.metadata.get("suffix", b".png").decode("latin-1")
    require(_SUFFIX.fullmatch(own) is not None, "table: impossible suffix")
    require(not (entry.name and "suffix" in entry.metadata), "table: a suffix beside a name")
    require(entry.channels in (2, 4) or "alpha" not in entry.metadata, "table: transparency of an opaque image")


def check_images(found: Found, entries: Sequence[Entry]) -> None:
    """Raises FormatError if the images of a segment are others than the index says."""
    indexed = (found.count, found.first, found.last)
    fits = found.count is None or indexed == (len(entries), entries[0].name, entries[-1].name)
    require(fits, "the index says other images of it")


def is_safe(name: str) -> bool:
    """Whether a name is a plain relative path: no root, no drive, no '..', nothing that a terminal would obey."""
    if len(name) > MAX_NAME:
        return False
    parts = PurePosixPath(name).parts
    odd = re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\\]|^[A-Za-z]:", name)
    return not odd and bool(parts) and "/".join(parts) == name and parts[0] != "/" and ".." not in parts


def is_vdz(start: bytes) -> bool:
    """Whether a file that starts with these bytes is a .vdz."""
    return start[: len(MAGIC)] == MAGIC


class Writer:
    """Writes a .vdz to a binary file, segment by segment; each waits until it is known whether it is the last."""

    def __init__(self, file: BinaryIO):
        self._file, self._held = file, None  # type: tuple[BinaryIO, Segment | None]
        self._index: list[tuple[int, Sequence[Entry]]] = []  # bytes and images of the segments
        self.table_bytes = 0  # all that is neither words nor stored files
        self._write(_START.pack(MAGIC, VERSION))

    def add(self, segment: Segment) -> None:
        if self._held is not None:
            self._segment(self._held, 0)
        self._held = segment

    def finish(self) -> None:
        """Ends the file; it must have a segment."""
        assert self._held is not None
        self._segment(self._held, _LAST)
        if len(self._index) > 1:
            numbers = [_varints(size, len(entries)) for size, entries in self._index]
            names = _joined(name for _, es in self._index for name in (es[0].name, es[-1].name))
            table = _pack(b"".join([_varints(len(numbers)), *numbers, names]))
            self._write(table + _END.pack(zlib.crc32(table), len(table), _INDEX))

    def _segment(self, segment: Segment, flags: int) -> None:
        table = _pack(_table(segment))
        head = _HEAD.pack(_MARKER, flags, len(table), len(segment.payload))
        self._write(head + _CRC.pack(zlib.crc32(table, zlib.crc32(head))) + table)
        self._file.write(segment.payload)
        self._write(_CRC.pack(zlib.crc32(segment.payload)))
        size = _HEAD.size + 2 * _CRC.size + len(table) + len(segment.payload)
        self._index.append((size, segment.entries))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self.table_bytes += len(data)


@dataclass(frozen=True)
class Found:
    """A segment's place in a file, and what the index says of it."""

    start: int
    count: int | None = None
    first: str = "?"
    last: str = "?"
    size: int | None = None  # bytes
    ends: bool | None = None  # whether it is the last one

    def __str__(self) -> str:
        if self.count is None:
            return f"the images of the segment at byte {self.start}"
        return f"{self.count} images, {self.first} to {self.last}," if self.count > 1 else self.first or "the image"

    def surrounds(self, name: str) -> bool:
        """Whether a name is between the first and the last one: a folder's images are in the order of their paths."""
        return self.first.split("/") <= name.split("/") <= self.last.split("/")


class Reader:
    """Reads a .vdz; raises FormatError if it is none.

    ``complete`` is false where segments are missing at the end, ``trouble`` then says why; those that are there can be
    read, one behind the other.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        file.seek(0)
        start = file.read(_START.size)
        require(is_vdz(start), "not a .vdz file")
        require(len(start) == _START.size, "truncated within the header")
        require(start[8] == VERSION, f"format version {start[8]} is unknown: a newer vdvae-codec is needed")
        self.size = file.seek(0, 2)
        self.complete, self.trouble = True, ""
        try:
            self.segments = self._indexed()
        except FormatError:
            self.segments = self._walked()

    def _at(self, start: int, count: int) -> bytes:
        require(start >= 0 and start + count <= self.size, f"truncated: {self.size} of {start + count} bytes")
        self._file.seek(start)
        return self._file.read(count)

    def _indexed(self) -> list[Found]:
        crc, count, magic = _END.unpack(self._at(self.size - _END.size, _END.size))
        require(magic == _INDEX, "no index")
        table = self._at(self.size - _END.size - count, count)
        require(zlib.crc32(table) == crc, "the index is damaged")
        numbers = _Numbers(_unpack(table))
        segments = numbers.varint()
        require(1 < segments <= self.size // _HEAD.size, "index: damaged")
        sizes = [(numbers.varint(), numbers.varint()) for _ in range(segments)]
        require(all(0 < images <= MAX_IMAGES for _, images in sizes), "index: damaged")
        names = _names(numbers.rest(), 2 * segments, MAX_TABLE)
        require(len(names) == 2 * segments and all(is_safe(name) or not name for name in names), "index: damaged")
        *starts, end = itertools.accumulate((size for size, _ in sizes), initial=_START.size)
        require(end == self.size - _END.size - count, "index: damaged")
        rows = zip(starts, sizes, names[::2], names[1::2])
        return [
            Found(start, images, first, last, size, n == segments - 1)
            for n, (start, (size, images), first, last) in enumerate(rows)
        ]

    def _walked(self) -> list[Found]:
        """The segments one behind the other, as far as their heads go; ``trouble`` if the last of them is missing."""
        found: list[Found] = []
        start, flags = _START.size, 0
        while not flags & _LAST and start + _HEAD.size <= self.size:
            marker, flags, table_bytes, payload_bytes = _HEAD.unpack(self._at(start, _HEAD.size))
            if marker != _MARKER or flags > _LAST:
                self._incomplete("the header of a segment is damaged")
                return found
            found.append(Found(start))
            start += _HEAD.size + 2 * _CRC.size + table_bytes + payload_bytes
        if not flags & _LAST:
            self._incomplete(f"truncated: it ends after {self.size} bytes, before its last segment")
        elif len(found) > 1:
            self._incomplete("the index at the end is missing or damaged: segments are taken as they come")
        elif start > self.size:
            self._incomplete(f"truncated: {self.size} of {start} bytes")
        elif start < self.size:
            self._incomplete(f"{self.size - start} bytes follow the end of the file")
        return found

    def _incomplete(self, trouble: str) -> None:
        self.complete, self.trouble = False, trouble

    def whole(self) -> list[Found]:
        """All segments; raises FormatError where some are missing."""
        require(self.complete, self.trouble)
        return self.segments

    @cached_property
    def starts(self) -> list[int]:
        """How many images there are before each segment, and in all, as the index says; a lone segment's table says so.

        Raises FormatError.
        """
        counts = [len(self.entries(found)) if found.count is None else found.count for found in self.whole()]
        return [0, *itertools.accumulate(counts)]

    def place(self, n: int) -> tuple[int, int]:
        """The segment of the ``n``-th image, from the end if negative, and its place there.

        Raises IndexError, and FormatError as ``starts``.
        """
        n = range(self.starts[-1])[n]
        segment = bisect_right(self.starts, n) - 1
        return segment, n - self.starts[segment]

    def entries(self, found: Found) -> tuple[Entry, ...]:
        """The images of a segment, from its table alone; raises FormatError if that is damaged."""
        entries: tuple[Entry, ...] = _fields(self._table(found)[0])[0]
        for entry in entries:
            check_entry(entry, alone=len(entries) == 1)
        check_images(found, entries)
        return entries

    def model(self, found: Found) -> str:
        """The name of the model of a segment, from its table alone; empty where it has none. Raises FormatError."""
        name: str = _fields(self._table(found)[0])[1]
        return name

    def segment(self, found: Found) -> Segment:
        """A whole segment; raises FormatError if it is damaged."""
        numbers, start, size = self._table(found)
        payload = self._at(start, size)
        require(zlib.crc32(payload) == _CRC.unpack(self._at(start + size, _CRC.size))[0], "the payload is damaged")
        *fields, stacks = _fields(numbers)
        segment = Segment(*fields, payload, stacks)  # type: ignore[call-arg]
        check_images(found, segment.entries)
        return segment

    def _table(self, found: Found) -> tuple[_Numbers, int, int]:
        """A segment's table, and where its payload begins and how long it is."""
        head = self._at(found.start, _HEAD.size)
        marker, flags, table_bytes, payload_bytes = _HEAD.unpack(head)
        require(marker == _MARKER and flags <= _LAST, "the header is damaged")
        size = _HEAD.size + 2 * _CRC.size + table_bytes + payload_bytes
        fits = found.size in (None, size) and found.ends in (None, bool(flags & _LAST))
        require(fits, "the index says another size of it")  # else images between two segments would be hidden
        crc = _CRC.unpack(self._at(found.start + _HEAD.size, _CRC.size))[0]
        start = found.start + _HEAD.size + _CRC.size
        table = self._at(start, table_bytes)
        require(zlib.crc32(table, zlib.crc32(head)) == crc, "the header is damaged")
        return _Numbers(_unpack(table)), start + table_bytes, payload_bytes


def _table(s: Segment) -> bytes:
    """A segment's table, unpacked: columns over the images, runs of equal values where they are likely."""
    names = _joined(e.name for e in s.entries)
    parts = [_varints(len(names)), names, _short(s.model)]
    if s.model:
        runs = list(_runs(s.groups))
        parts += [s.digest, _CRC.pack(s.pixels_crc)]
        parts += [_varints(s.word_bytes // 4, s.direct, len(runs), *itertools.chain(*runs))]
        parts += [_varints(len(s.stacks), *(size // 4 for size in s.stacks))]
    for value, repeat in _runs(e.modified for e in s.entries):
        parts.append(_varints(0 if value is None else 1 + _zigzag(value), repeat))
    for shape, repeat in _runs(e.shape for e in s.entries):
        parts.append(_varints(*shape, repeat))
    for e in s.entries:
        if not e.coded:
            parts.append(_varints(e.file_bytes, e.original) + _short(e.suffix))
    for e in s.entries:
        parts.append(_varints(len(e.metadata)))
        for code, key in enumerate(KEYS):
            if key in e.metadata:
                parts.append(_varints(code, len(e.metadata[key])) + e.metadata[key])
    return b"".join(parts)


def _fields(numbers: _Numbers) -> tuple[Any, ...]:
    """All fields of a ``Segment`` but the payload, from what ``_table`` gave."""
    names = _names(numbers.take(numbers.varint()), MAX_IMAGES)
    model = numbers.text()
    digest, crc, word_bytes, direct = bytes(_DIGEST_BYTES), 0, 0, 0
    groups, stacks = [], []  # type: list[int], list[int]
    if model:
        digest, crc = numbers.take(_DIGEST_BYTES), _CRC.unpack(numbers.take(_CRC.size))[0]
        word_bytes, direct, runs = 4 * numbers.varint(), numbers.varint(), numbers.varint()
        for _ in range(runs):
            size, repeat = numbers.varint(), numbers.varint()
            require(0 < repeat <= MAX_GROUPS - len(groups), "table: impossible groups")
            groups += [size] * repeat
        count = numbers.varint()
        require(count in (0, len(groups)), "table: the stacks do not fit the groups")
        stacks = [4 * numbers.varint() for _ in range(count)]
    modified = [None if n == 0 else _unzigzag(n - 1) for (n,) in numbers.column(1, len(names))]
    shapes = numbers.column(3, len(names))
    files = [(0, "", False) if shape[2] else numbers.file() for shape in shapes]
    metadata = [numbers.metadata() for _ in names]
    require(numbers.at_end, "table: unexpected bytes at the end")
    rows = zip(names, modified, shapes, files, metadata)
    entries = tuple(
        Entry(name, time, height, width, channels, *file, own)
        for name, time, (height, width, channels), file, own in rows
    )
    return entries, model, digest, tuple(groups), direct, crc, word_bytes, tuple(stacks)


class _Numbers:
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

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._position)

    def varint(self) -> int:
        number = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            number |= (byte & 127) << shift
            if byte < 128:
                return number
        raise FormatError("table: a number is too large")

    def text(self) -> str:
        """A length byte, and UTF-8."""
        return _text(self.take(self.take(1)[0]))

    def column(self, width: int, count: int) -> list[tuple[int, ...]]:
        """``count`` rows of ``width`` numbers, kept as runs of equal ones."""
        rows: list[tuple[int, ...]] = []
        while len(rows) < count:
            row, repeat = tuple(self.varint() for _ in range(width)), self.varint()
            require(0 < repeat <= count - len(rows), "table: a column does not fit")
            rows += [row] * repeat
        return rows

    def file(self) -> tuple[int, str, bool]:
        """Bytes, suffix and originality of a stored file."""
        size, original, suffix = self.varint(), self.varint(), self.text()
        require(original < 2, "table: damaged")
        return size, suffix, bool(original)

    def metadata(self) -> dict[str, bytes]:
        own: dict[str, bytes] = {}
        for _ in range(self.varint()):
            code = self.varint()
            require(code < len(KEYS) and KEYS[code] not in own, f"table: unknown or repeated metadata {code}")
            own[KEYS[code]] = self.take(self.varint())
        return own


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FormatError("table: a name is not UTF-8") from error


def _joined(names: Iterable[str]) -> bytes:
    return "\0".join(names).encode(errors="surrogatepass")


def _names(data: bytes, most: int, most_bytes: int = MAX_NAMES) -> list[str]:
    """What ``_joined`` was given; FormatError for more than ``most``."""
    require(len(data) < most_bytes and data.count(0) < most, "table: too many names, or too long ones")
    return _text(data).split("\0")


def _short(text: str) -> bytes:
    """A length byte, and UTF-8."""
    data = text.encode()
    return bytes([len(data)]) + data


def _runs(values: Iterable[T]) -> Iterator[tuple[T, int]]:
    """(value, repeat) of each run of equal values."""
    return ((value, len(list(run))) for value, run in itertools.groupby(values))


def _zigzag(value: int) -> int:
    return 2 * value if value >= 0 else -2 * value - 1


def _unzigzag(value: int) -> int:
    return -(value + 1 >> 1) if value & 1 else value >> 1


def _varints(*numbers: int) -> bytes:
    """Unsigned LEB128: 7 bits a byte, lowest first, the top bit says that more follow."""
    out = bytearray()
    for number in numbers:
        while number > 127:
            out.append(number & 127 | 128)
            number >>= 7
        out.append(number)
    return bytes(out)


def _pack(table: bytes) -> bytes:
    """A byte that says how, and the table so that it is shortest; raises FormatError if it is too large to be read."""
    require(len(table) < MAX_TABLE, "table: too much metadata for one segment")
    deflated = zlib.compress(table, 9, -zlib.MAX_WBITS)
    packed = lzma.compress(table, lzma.FORMAT_RAW, filters=_FILTERS)
    kinds = ((_RAW, table), (_DEFLATE, deflated), (_LZMA, packed))
    kind, shortest = min(kinds, key=lambda choice: len(choice[1]))
    return bytes([kind]) + shortest


def _unpack(data: bytes) -> bytes:
    """What ``_pack`` was given, of bounded size."""
    require(len(data) > 0 and data[0] <= _LZMA, "table: damaged")
    if data[0] == _RAW:
        return data[1:]
    inflater = (
        zlib.decompressobj(-zlib.MAX_WBITS) if data[0] == _DEFLATE
        else lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS)
    )
    try:
        table: bytes = inflater.decompress(data[1:], MAX_TABLE)
    except (zlib.error, lzma.LZMAError) as error:
        raise FormatError("table: damaged") from error
    require(len(table) < MAX_TABLE and inflater.eof and not inflater.unused_data, "table: damaged")
    return table

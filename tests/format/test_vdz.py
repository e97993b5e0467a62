"""The bytes of a .vdz: what is written is read again, and nothing else is read as anything but what it is."""

from __future__ import annotations

import dataclasses
import itertools
import lzma
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vdvae_codec.errors import FormatError
from vdvae_codec.format import vdz
from vdvae_codec.format.vdz import Entry, Found, Reader, Segment, Writer, is_safe, is_vdz

HEAD_BYTES, CRC_BYTES, START_BYTES = 17, 4, 9
MOST_MEMORY = 300 << 20  # bytes, of a whole process
DIGEST = bytes(range(16))
CODED = Entry("a/b.png", 1_500_000_000, 300, 700, 3, metadata={"icc": bytes(300), "side_info": b"\3\0"})
GREY = Entry("a/c.png", None, 2, 3, 1, metadata={"exif": b"Exif\0\0II*\0", "xmp": b"<x/>"})
STORED = Entry("d.png", -5, 1, 2, 0, 9, ".png", True)
REPLACED = Entry("größe.tif", 1_500_000_000, 20, 30, 0, 11, ".webp", False, {"xmp": b""})
MIXED = Segment((CODED, GREY, STORED, REPLACED), "photo-2", DIGEST, (1, 2, 2, 1), 2, 0x12345678, 8, bytes(range(28)))
APART = Segment((CODED, GREY), "photo-2", DIGEST, (4, 2), 2, 0x12345678, 12, bytes(range(12)), (8, 4))
FILES = Segment((STORED, REPLACED), "", bytes(16), (), 0, 0, 0, bytes(20))
ALONE = Segment((Entry("", None, 2, 3, 1),), "m", b"0123456789abcdef", (1,), 1, 7, 4, b"\1\2\3\4")
KEPT = Segment((Entry("", None, 300, 2, 0, 5, ".png", True),), "", bytes(16), (), 0, 0, 0, b"file!")
GOLDEN_ALONE = (
    "8956445a0d0a1a0a01"
    "5345474d01250000000400000000000000173b4ffb"
    "0000016d30313233343536373839616263646566070000000101010101000001020301010001020304cdfb3cb6"
)
GOLDEN_KEPT = (
    "8956445a0d0a1a0a01"
    "5345474d011200000005000000000000000463db3a"
    "0000000001ac020200010501042e706e670066696c652181705083"
)


def written(*segments: Segment) -> bytes:
    file = BytesIO()
    writer = Writer(file)
    for segment in segments:
        writer.add(segment)
    writer.finish()
    assert len(file.getvalue()) == writer.table_bytes + sum(len(s.payload) for s in segments)
    return file.getvalue()


def read(data: bytes) -> list[Segment]:
    """All segments; raises FormatError if any is damaged or missing."""
    reader = Reader(BytesIO(data))
    if not reader.complete:
        raise FormatError(reader.trouble)
    segments = [reader.segment(found) for found in reader.segments]
    assert [reader.model(found) for found in reader.segments] == [segment.model for segment in segments]
    assert [reader.entries(found) for found in reader.segments] == [segment.entries for segment in segments]
    return segments


def left(data: bytes) -> Iterator[Segment]:
    """Those segments of a file that can be read."""
    reader = Reader(BytesIO(data))
    for found in reader.segments:
        try:
            yield reader.segment(found)
        except FormatError as error:
            assert "\n" not in str(error) and str(found)


def random_text(rng: np.random.Generator) -> str:
    return "".join(rng.choice(list("ab Z09._-äß中🙂"), rng.integers(1, 12))).replace("..", "x").strip(".") + "x"


def random_entry(rng: np.random.Generator, number: int) -> Entry:
    name = "/".join([*(random_text(rng) for _ in range(rng.integers(3))), f"{number}"])
    modified = [None, int(rng.integers(-(2**63), 2**63)), 1_600_000_000][rng.integers(3)]
    height, width = (int(2 ** rng.uniform(0, 32)) for _ in range(2))
    keys = [key for key in vdz.KEYS if rng.random() < 0.3]
    metadata = {key: rng.bytes(rng.integers(200)) for key in keys}
    metadata.pop("suffix", None)  # of images without a name alone
    if "depth" in metadata:
        metadata |= vdz.depth_entry(bytes(3), int(rng.integers(50)))
    if "channels" in metadata:
        metadata["channels"] = bytes([rng.integers(1, 5)])
    if rng.random() < 0.7:
        metadata.pop("channels", None)
        channels = int(rng.integers(1, 5)) if "alpha" not in metadata else int(rng.choice([2, 4]))
        return Entry(name, modified, height, width, channels, metadata=metadata)
    metadata.pop("alpha", None)
    metadata.pop("side_info", None)
    original = bool(rng.integers(2)) and "depth" not in metadata
    return Entry(name, modified, height, width, 0, int(rng.integers(1, 50)), ".webp", original, metadata)


def random_segment(rng: np.random.Generator) -> Segment:
    entries = tuple(random_entry(rng, n) for n in range(rng.integers(1, 30)))
    stored = sum(entry.payload_bytes for entry in entries)
    if not any(entry.coded for entry in entries):
        return Segment(entries, "", bytes(16), (), 0, 0, 0, rng.bytes(stored))
    groups = tuple(int(n) for size in range(rng.integers(6)) for n in [2**size] * rng.integers(1, 300))
    word_bytes = 4 * int(rng.integers(100))
    return Segment(
        entries, random_text(rng), rng.bytes(16), groups, int(rng.integers(len(groups) + 1)),
        int(rng.integers(2**32)), word_bytes, rng.bytes(word_bytes + stored),
    )


def parts_of(data: bytes, found: Found) -> tuple[bytes, bytes, bytes]:
    """A segment's head, its table, unpacked, and what follows the table in the file."""
    head = data[found.start : found.start + HEAD_BYTES]
    start = found.start + HEAD_BYTES + CRC_BYTES
    end = start + struct.unpack_from("<I", head, 5)[0]
    return head, vdz._unpack(data[start:end]), data[end:]


def sealed(head: bytes, table: bytes, rest: bytes, packing: int = 0) -> bytes:
    """A file of one segment whose table is ``table``, with checksums that are right."""
    packed = bytes([packing]) + table
    head = head[:5] + struct.pack("<I", len(packed)) + head[9:]
    crc = struct.pack("<I", zlib.crc32(packed, zlib.crc32(head)))
    return vdz.MAGIC + b"\1" + head + crc + packed + rest


def taken_apart(*segments: Segment) -> tuple[bytes, bytes, bytes]:
    data = written(*segments)
    return parts_of(data, Reader(BytesIO(data)).segments[0])


def indexed(segments: bytes, index: bytes, packing: int = 0) -> bytes:
    """A file of segments with an index whose checksum is right."""
    table = bytes([packing]) + index
    return segments + table + struct.pack("<II8s", zlib.crc32(table), len(table), b"VDZINDEX")


def check_refused_or_consistent(data: bytes) -> None:
    """What is read could have been written."""
    try:
        segments = read(data)
    except FormatError as error:
        assert "\n" not in str(error)
        return
    assert read(written(*segments)) == segments


def test_golden_bytes() -> None:
    assert written(KEPT).hex() == GOLDEN_KEPT  # its table is too small to be packed
    assert read(bytes.fromhex(GOLDEN_KEPT)) == [KEPT]
    assert read(bytes.fromhex(GOLDEN_ALONE)) == [ALONE]
    assert is_vdz(bytes.fromhex(GOLDEN_ALONE)) and not is_vdz(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize("seed", range(20))
def test_random_segments(seed: int) -> None:
    rng = np.random.default_rng(seed)
    segments = [random_segment(rng) for _ in range(1 + seed % 4)]
    data = written(*segments)
    assert read(data) == segments
    assert (b"VDZINDEX" in data[-8:]) == (len(segments) > 1)
    for segment in segments:
        files = iter(segment.files())
        assert [len(file) for file in files if file] == [e.file_bytes for e in segment.entries if not e.coded]


def test_each_group_may_have_a_stack_of_its_own() -> None:
    assert read(written(APART, MIXED)) == [APART, MIXED]
    assert list(APART.words()) == [bytes(range(8)), bytes(range(8, 12))] and list(MIXED.words()) == [bytes(range(8))]
    for stacks in ((12,), (8, 8), (6, 6), (8, 0, 4), (-4, 16)):
        with pytest.raises(FormatError, match="stacks"):
            dataclasses.replace(APART, stacks=stacks)
    with pytest.raises(FormatError, match="stacks"):
        dataclasses.replace(APART, direct=1)


def test_files_lie_behind_the_words() -> None:
    assert list(MIXED.files()) == [None, None, MIXED.payload[8:17], MIXED.payload[17:]]
    assert list(FILES.files()) == [bytes(9), bytes(11)]


def test_the_index_says_where_segments_are_and_what_they_hold() -> None:
    data = written(MIXED, FILES, ALONE)
    reader = Reader(BytesIO(data))
    assert [(f.count, f.first, f.last) for f in reader.segments] == [
        (4, "a/b.png", "größe.tif"), (2, "d.png", "größe.tif"), (1, "", "")
    ]
    assert [data[f.start : f.start + 4] for f in reader.segments] == [b"SEGM"] * 3
    assert [str(f) for f in reader.segments] == [
        "4 images, a/b.png to größe.tif,", "2 images, d.png to größe.tif,", "the image"
    ]
    assert reader.starts == [0, 4, 6, 7]
    assert [reader.place(n) for n in (0, 3, 4, 6, -1, -7)] == [(0, 0), (0, 3), (1, 0), (2, 0), (2, 0), (0, 0)]
    for n in (7, -8):
        with pytest.raises(IndexError):
            reader.place(n)
    damaged = data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]
    walked = Reader(BytesIO(damaged))
    assert not walked.complete and "index" in walked.trouble
    assert [f.start for f in walked.segments] == [f.start for f in reader.segments]
    assert list(left(damaged)) == [MIXED, FILES, ALONE]


def test_tables_of_many_alike_images_are_small() -> None:
    entries = tuple(Entry(f"{n:05}.png", 1_500_000_000 + n // 100, 32, 32, 3) for n in range(10_000))
    segment = Segment(entries, "m", DIGEST, tuple([1, 2, 4, 8] + [16] * 700), 1, 0, 0, b"")
    data = written(segment)
    assert read(data) == [segment] and len(data) < 5_000


@pytest.mark.parametrize("segment", [MIXED, APART, FILES, ALONE])
def test_no_cut_is_read(segment: Segment) -> None:
    data = written(segment)
    for length in range(len(data)):
        with pytest.raises(FormatError):
            read(data[:length])
    with pytest.raises(FormatError, match="follow"):
        read(data + b"\0")


@pytest.mark.parametrize("segment", [MIXED, APART, FILES, ALONE])
def test_no_flip_is_read(segment: Segment) -> None:
    data = written(segment)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            read(bytes(damaged))


def test_damage_of_one_segment_leaves_the_others() -> None:
    segments = [MIXED, FILES, ALONE]
    data = written(*segments)
    starts = [found.start for found in Reader(BytesIO(data)).segments]
    for place in range(START_BYTES, len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        found = list(left(bytes(damaged)))
        hit = sum(start <= place for start in starts) - 1
        in_index = place >= starts[2] + len(written(ALONE)) - START_BYTES
        assert found == (segments if in_index else segments[:hit] + segments[hit + 1 :])
        with pytest.raises(FormatError):
            read(bytes(damaged))
    for length in range(START_BYTES, len(data)):
        found = list(left(data[:length]))
        assert found == segments[: len(found)]
        assert len(found) >= sum(start <= length for start in starts) - 1


def test_messages() -> None:
    data = written(MIXED)
    for bad, message in {
        b"\x89PNG\r\n\x1a\n" + data[8:]: r"not a \.vdz", b"": r"not a \.vdz", data[:8]: "truncated within the header",
        data[:8] + b"\2" + data[9:]: "version 2 .* newer vdvae-codec is needed", data + b"?": "1 bytes follow",
        data[:-1]: "truncated: .* of", data[:9]: "before its last segment",
        data[:-1] + bytes([data[-1] ^ 1]): "payload is damaged", data[:30] + b"?" + data[31:]: "header is damaged",
        data[:13] + b"\2" + data[14:]: "header of a segment is damaged",
    }.items():
        with pytest.raises(FormatError, match=message):
            read(bad)
    for version in (0, 2, 3, 255):
        with pytest.raises(FormatError, match=f"format version {version} is unknown"):
            read(data[:8] + bytes([version]) + data[9:])


@pytest.mark.parametrize(
    "segment",
    [dataclasses.replace(MIXED, entries=(dataclasses.replace(CODED, metadata={"icc": b"12"}), *MIXED.entries[1:])),
     FILES, ALONE],
)
def test_edits_behind_right_checksums(segment: Segment) -> None:
    """Each byte of the head and of the table by others, left out, doubled, and by numbers of every size."""
    head, table, rest = taken_apart(segment)
    numbers = [vdz._varints(2**bits) for bits in (14, 20, 32, 60, 69)] + [b"\xff" * 12]
    for n, byte in enumerate(table):
        values = [bytes([v]) for v in {0, 1, 127, 255, byte ^ 1, byte ^ 128, (byte + 1) % 256}]
        for new in (*values, b"", bytes([byte, byte]), *numbers):
            check_refused_or_consistent(sealed(head, table[:n] + new + table[n + 1 :], rest))
    for n, byte in enumerate(head):
        for value in {0, 1, 127, 255, byte ^ 1, byte ^ 128}:
            check_refused_or_consistent(sealed(head[:n] + bytes([value]) + head[n + 1 :], table, rest))
    for length in range(len(table)):
        with pytest.raises(FormatError):
            read(sealed(head, table[:length], rest))


def test_random_tables_behind_right_checksums() -> None:
    rng = np.random.default_rng(0)
    head, _, rest = taken_apart(MIXED)
    for n in range(3000):
        table = rng.bytes(rng.integers(60)) if n % 2 else rng.integers(0, 5, rng.integers(60), np.uint8).tobytes()
        check_refused_or_consistent(sealed(head, table, rest, packing=n % 5))


def test_an_index_that_counts_other_images() -> None:
    data = written(FILES, ALONE)
    count = struct.unpack_from("<I", data, len(data) - 12)[0]
    body, index = data[: -16 - count], vdz._unpack(data[-16 - count : -16])
    assert index[2] == 2  # segments, bytes of the first, its images
    reader = Reader(BytesIO(indexed(body, index[:2] + b"\3" + index[3:])))
    assert reader.starts == [0, 3, 4]
    for read_part in (reader.entries, reader.segment):
        with pytest.raises(FormatError, match="other images of it"):
            read_part(reader.segments[0])
    for impossible in (b"\0", vdz._varints(vdz.MAX_IMAGES + 1)):
        reader = Reader(BytesIO(indexed(body, index[:2] + impossible + index[3:])))
        with pytest.raises(FormatError, match="index at the end is missing or damaged"):
            reader.place(0)


def test_an_index_may_hold_more_names_than_a_table() -> None:
    count = vdz.MAX_NAMES // (2 * vdz.MAX_NAME) + 1
    entries = [Entry(f"{n:0{vdz.MAX_NAME}}", None, 1, 1, 0, 1, ".png", True) for n in range(count)]
    data = written(*[Segment((e,), "", bytes(16), (), 0, 0, 0, b"x") for e in entries])
    reader = Reader(BytesIO(data))
    assert reader.complete and [found.first for found in reader.segments] == [e.name for e in entries]


def test_edits_of_the_index_behind_right_checksums() -> None:
    segments = [MIXED, FILES, ALONE]
    data = written(*segments)
    count = struct.unpack_from("<I", data, len(data) - 12)[0]
    body, index = data[: -16 - count], vdz._unpack(data[-16 - count : -16])
    assert read(indexed(body, index)) == segments
    numbers = [vdz._varints(2**bits) for bits in (14, 32, 60, 69)] + [b"\xff" * 12]
    for n, byte in enumerate(index):
        for new in (*(bytes([v]) for v in {0, 1, 27, 255, byte ^ 1, byte ^ 128}), b"", *numbers):
            edited = indexed(body, index[:n] + new + index[n + 1 :])
            reader = Reader(BytesIO(edited))
            assert "\x1b" not in "".join(map(str, reader.segments))
            assert all(segment in segments for segment in left(edited))


@pytest.mark.parametrize(
    "rows",
    [
        lambda a, b, c: [(a + b, 4), (c, 1)], lambda a, b, c: [(a, 4), (b + c, 2)],  # a segment of three is hidden
        lambda a, b, c: [(a, 4), (b, 0), (c, 1)], lambda a, b, c: [(a, 3), (b, 2), (c, 1)],
        lambda a, b, c: [(0, 1), (a, 4), (b, 2), (c, 1)], lambda a, b, c: [(0, 0), (a + b + c, 0)],
    ],
)
def test_an_index_hides_no_image(rows: Any) -> None:
    segments = [MIXED, FILES, ALONE]
    body = b"".join([written(MIXED)[:START_BYTES], *(written_open(segment) for segment in segments[:2])])
    body += written(ALONE)[START_BYTES:]
    starts = [found.start for found in Reader(BytesIO(body)).segments] + [len(body)]
    numbers = rows(*np.diff(starts).tolist())
    names = "\0".join(["a/b.png", "größe.tif", "d.png", "größe.tif", *[""] * 4][: 2 * len(numbers)]).encode()
    index = vdz._varints(len(numbers), *itertools.chain(*numbers)) + names
    with pytest.raises(FormatError):
        read(indexed(body, index))


def written_open(segment: Segment) -> bytes:
    """A segment that is not the last of its file."""
    head, table, rest = taken_apart(segment)
    return sealed(head[:4] + b"\0" + head[5:], table, rest)[START_BYTES:]


@pytest.mark.parametrize(
    "fields",
    [
        {"entries": ()}, {"entries": (CODED, CODED)}, {"digest": bytes(15)}, {"digest": bytes(17)}, {"model": ""},
        {"model": "two\nlines"}, {"model": "\udc80"}, {"model": "x" * 256}, {"groups": (1, 0)}, {"groups": (1, -1)},
        {"groups": (1,) * (vdz.MAX_GROUPS + 1)}, {"direct": 5}, {"direct": -1}, {"pixels_crc": 2**32},
        {"pixels_crc": -1}, {"word_bytes": 6}, {"word_bytes": 12}, {"word_bytes": -4}, {"payload": bytes(27)},
        {"payload": bytes(29)}, {"entries": (Entry("x" * vdz.MAX_NAMES, None, 1, 1, 3),), "payload": bytes(8)},
    ],
)
def test_segments_that_contradict_themselves(fields: dict[str, Any]) -> None:
    with pytest.raises(FormatError) as error:
        dataclasses.replace(MIXED, **fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"height": 0}, {"width": 0}, {"height": 2**32}, {"width": 2**32}, {"channels": 5},
        {"metadata": {"alpha": b"1"}},
        {"channels": -1}, {"name": ""}, {"modified": 2**63}, {"modified": -(2**63) - 1}, {"file_bytes": 1},
        {"suffix": ".png"}, {"original": True}, {"metadata": {"comment": b""}}, {"metadata": {"suffix": b".PNG"}},
        {"channels": 0},
    ],
)
def test_impossible_images(fields: dict[str, Any]) -> None:
    entries = (dataclasses.replace(CODED, **fields), *MIXED.entries[1:])
    with pytest.raises(FormatError) as error:
        dataclasses.replace(MIXED, entries=entries)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [{"suffix": s} for s in ("", "png", ".", ".p-g", "./x", ".a\n", ".ä", "." + "x" * 16)]
    + [{"file_bytes": 0}, {"metadata": {"side_info": b""}}],
)
def test_impossible_files(fields: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        dataclasses.replace(FILES, entries=(dataclasses.replace(STORED, **fields), REPLACED))


@pytest.mark.parametrize(
    "fields", [{"model": "m"}, {"digest": DIGEST}, {"groups": (1,)}, {"pixels_crc": 1}, {"word_bytes": 4}]
)
def test_a_segment_that_codes_nothing_names_no_model(fields: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        dataclasses.replace(FILES, **fields)


def test_bounds_are_within() -> None:
    widest = Entry("x", 2**63 - 1, 2**32 - 1, 2**32 - 1, 3)
    oldest = dataclasses.replace(widest, name="y", modified=-(2**63))
    segment = Segment((widest, oldest), "ä" * 127, DIGEST, (2**60,) * vdz.MAX_GROUPS, vdz.MAX_GROUPS, 2**32 - 1, 0, b"")
    assert read(written(segment)) == [segment]


def test_what_could_not_be_read_is_not_written() -> None:
    heavy = dataclasses.replace(ALONE.entries[0], metadata={"icc": bytes(vdz.MAX_TABLE)})
    writer = Writer(BytesIO())
    writer.add(dataclasses.replace(ALONE, entries=(heavy,)))
    with pytest.raises(FormatError, match="too much metadata"):
        writer.finish()


@pytest.mark.parametrize("name", ["a", "a/b", ".hidden", "a b", "ä/中🙂", "CD:a", "...", "a..b", " a", "x" * 4096])
def test_names_that_are_safe(name: str) -> None:
    assert is_safe(name)


@pytest.mark.parametrize(
    "name",
    ["", "/a", "../a", "a/../../b", "a//b", "./a", "a/", ".", "C:a", "a:b", "a\\b", "a\nb", "a\x1b[2J", "a\x9b2J", "..",
     "\ud800", "a\0b", "a\x7f", "x" * 4097],
)
def test_names_that_are_not_safe(name: str) -> None:
    assert not is_safe(name)
    with pytest.raises(FormatError, match="impossible name"):
        Segment((Entry(name, None, 1, 1, 3), GREY), "m", DIGEST, (1,), 1, 0, 0, b"")


def deflated(parts: Iterable[bytes]) -> bytes:
    packer = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    return b"".join(packer.compress(part) for part in parts) + packer.flush()


def lzma_packed(parts: Iterable[bytes]) -> bytes:
    packer = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 0}])
    return b"".join(packer.compress(part) for part in parts) + packer.flush()


def repeated(part: bytes, total: int) -> Iterator[bytes]:
    return itertools.repeat(part * (2**20 // len(part)), total >> 20)


def bombs() -> Iterator[bytes]:
    """Small files that claim much."""
    head, table, rest = taken_apart(ALONE)
    behind = table[1:].split(b"m", 1)[1]  # digest and checksum, words, direct groups, runs of groups, and the images
    crc, end = behind[:20], table[-6:]
    yield sealed(head, deflated(repeated(b"\xff", 2**27)), rest, packing=1)
    yield sealed(head, lzma_packed(repeated(b"\0", 2**27)), rest, packing=2)
    most, allowed = 2**26 - 2**20, 2**24 - 2**20
    for name, size in ((b"\0", most), (b"a", most), (b"\x1b", allowed), (b"a", allowed), (b"\0a", allowed)):
        names = [vdz._varints(size + 4), "🙂".encode(), *repeated(name, size), table[1:]]
        yield sealed(head, deflated(names), rest, packing=1)
    runs = [b"\0\1m", crc, vdz._varints(1, 1, 2**25)]
    for size, repeat in ((1, 0), (1, 1), (2**60, 2**60)):
        yield sealed(head, deflated([*runs, *repeated(vdz._varints(size, repeat), 2**25), end]), rest, packing=1)
    yield sealed(head, b"\0\1m" + behind.replace(end, b"\0" + vdz._varints(2**60) + end[2:]), rest)
    body, ends = written(ALONE), b"a\0a\0a\0a"
    yield indexed(body, deflated([vdz._varints(2**25), *repeated(b"\1\1", 2**26 - 2**21), ends]), packing=1)
    yield indexed(body, deflated([vdz._varints(2, 9, 1, 9, 1), *repeated(b"\0", 2**26 - 2**21)]), packing=1)
    yield indexed(body, deflated(repeated(b"\0", 2**27)), packing=1)
    yield indexed(body, vdz._varints(2**60) + b"\1\1" * 4 + ends)


def largest() -> Iterator[bytes]:
    """What takes most memory of what is allowed."""
    entries = tuple(Entry(f"{n:x}", n, 1 + n, 1, 3) for n in range(vdz.MAX_IMAGES))
    yield written(Segment(entries, "m", DIGEST, (1,) * vdz.MAX_GROUPS, 1, 0, 0, b""))
    head, table, rest = taken_apart(ALONE)
    size = 2**26 - 2**20
    icc = [table[:-1], vdz._varints(1, 0, size), *repeated(b"\0", size)]
    yield sealed(head, deflated(icc), rest, packing=1)


READ_ALL = """
import re, resource, sys
from pathlib import Path
from vdvae_codec.errors import FormatError
from vdvae_codec.format.vdz import Reader

def peak_bytes():
    if sys.platform == "linux":  # getrusage counts the process that this one was started by
        return 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

for name in sys.argv[1:]:
    with open(name, "rb") as file:
        reader = Reader(file)
        try:
            for found in reader.segments:
                reader.segment(found)
            read = "read" if reader.complete else "incomplete"
        except FormatError:
            read = "refused"
        print(read, peak_bytes())
"""


def test_bombs_take_little_memory(tmp_path: Path) -> None:
    files = [*bombs(), *largest()]
    for n, data in enumerate(files):
        (tmp_path / f"{n:02}.vdz").write_bytes(data)
    paths = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run([sys.executable, "-c", READ_ALL, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [kind for kind, _ in lines] == ["refused"] * (len(files) - 6) + ["incomplete"] * 4 + ["read"] * 2
    assert max(int(peak) for _, peak in lines) < MOST_MEMORY, lines
    assert max(map(len, files[:-2])) < 2**20

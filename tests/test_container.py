import dataclasses
import random
import struct
import zlib

import pytest

from vdvae_codec.container import MAX_METADATA, Container, Kind, _varints
from vdvae_codec.errors import FormatError

METADATA = {"icc": bytes(3000), "exif": b"Exif\0\0II*\0", "xmp": b"<x/>" * 50, "suffix": b".tif"}
MODEL = Container(
    kind=Kind.MODEL, channels=3, width=700, height=300, tile=(152, 240), groups=(1, 2, 2, 1), model="photo-1",
    digest=bytes(range(16)), metadata=METADATA, payload=bytes(range(64)), pixels_crc=0x12345678,
)  # fmt: skip
FILE = Container(
    kind=Kind.FILE, channels=0, width=1, height=2, tile=(0, 0), groups=(), model="",
    digest=bytes(16), metadata={"suffix": b".png"}, payload=b"no image", pixels_crc=0,
)  # fmt: skip
TINY = Container(
    kind=Kind.MODEL, channels=1, width=3, height=2, tile=(16, 16), groups=(1,), model="m",
    digest=b"0123456789abcdef", metadata={"exif": b"E"}, payload=b"\x01\x02\x03\x04", pixels_crc=7,
)  # fmt: skip
GOLDEN = (
    "8956445a0d0a1a0a" "01000100" "03000000" "02000000" "1000" "1000" "30313233343536373839616263646566"
    "0a000000" "0400000000000000" "07000000" "a34518ab" "016d" "010101" "0101000145" "01020304" "cdfb3cb6"
)


def sealed(container: Container, table: bytes | None = None, patch: tuple[int, bytes] = (0, b"")) -> bytes:
    """The container's file with another table or header bytes, all checksums correct."""
    data = container.to_bytes()
    length = struct.unpack_from("<I", data, 40)[0]
    table = data[60 : 60 + length] if table is None else table
    header = bytearray(data[:56])
    header[40:44] = struct.pack("<I", len(table))
    header[patch[0] : patch[0] + len(patch[1])] = patch[1]
    return bytes(header) + struct.pack("<I", zlib.crc32(header + table)) + table + data[60 + length :]


def test_golden_bytes() -> None:
    assert TINY.to_bytes().hex() == GOLDEN
    assert Container.from_bytes(bytes.fromhex(GOLDEN)) == TINY


@pytest.mark.parametrize(
    "container",
    [
        MODEL,
        FILE,
        TINY,
        dataclasses.replace(MODEL, metadata={}, payload=b""),
        dataclasses.replace(MODEL, metadata={"xmp": b""}),
        dataclasses.replace(TINY, model="größer" * 30, width=(1 << 32) - 1, height=1, tile=(1, 65535), groups=(65537,)),
        dataclasses.replace(TINY, width=99_000, tile=(2, 1), groups=tuple([1] * 500 + [5] * 19_700)),
    ],
)
def test_round_trip(container: Container) -> None:
    data = container.to_bytes()
    assert Container.from_bytes(data) == container
    assert sum(container.sizes().values()) == len(data)


def test_sizes_and_compression_of_the_table() -> None:
    assert TINY.sizes() == {"header": 60 + 2 + 3 + 4, "metadata": 1 + 4, "payload": 4}
    assert MODEL.sizes()["metadata"] < 150  # of 3,224 raw bytes
    many = dataclasses.replace(TINY, width=2_000, tile=(2, 1), groups=(1,) * 2_000)
    assert many.sizes()["header"] == TINY.sizes()["header"] + 1  # the repeat takes two bytes


@pytest.mark.parametrize("container", [MODEL, FILE, TINY])
def test_truncation_at_every_byte(container: Container) -> None:
    data = container.to_bytes()
    for length in range(len(data)):
        with pytest.raises(FormatError):
            Container.from_bytes(data[:length])


@pytest.mark.parametrize("container", [MODEL, FILE, TINY])
def test_every_bit_flip(container: Container) -> None:
    data = container.to_bytes()
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            Container.from_bytes(bytes(damaged))


def test_messages() -> None:
    data = MODEL.to_bytes()
    with pytest.raises(FormatError, match=r"not a \.vdz"):
        Container.from_bytes(b"\x89PNG\r\n\x1a\n" + data[8:])
    with pytest.raises(FormatError, match=r"version 4 .* newer vdvae-codec is needed"):
        Container.from_bytes(data[:8] + b"\x04")
    with pytest.raises(FormatError, match="impossible format version 2"):
        Container.from_bytes(data[:8] + b"\x02")
    with pytest.raises(FormatError, match="1 bytes follow"):
        Container.from_bytes(data + b"\0")
    with pytest.raises(FormatError, match=r"truncated: .* of"):
        Container.from_bytes(data[:-1])
    with pytest.raises(FormatError, match="payload is damaged"):
        Container.from_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(FormatError, match="reserved"):
        Container.from_bytes(sealed(MODEL, patch=(11, b"\1")))
    with pytest.raises(FormatError, match="unknown kind 2"):
        Container.from_bytes(sealed(MODEL, patch=(9, b"\2")))
    with pytest.raises(FormatError, match="truncated"):  # a table of 4 GiB is not looked for
        Container.from_bytes(sealed(MODEL, patch=(40, b"\xff" * 4)))
    with pytest.raises(FormatError, match="truncated"):
        Container.from_bytes(sealed(MODEL, patch=(44, b"\xff" * 8)))


@pytest.mark.parametrize(
    "fields",
    [
        {"channels": 2},
        {"channels": 0},
        {"width": 0},
        {"height": 0},
        {"width": 1 << 32},
        {"tile": (0, 240)},
        {"tile": (152, 1 << 16)},
        {"groups": (1, 2, 2)},
        {"groups": (1, 2, 0, 2, 1)},
        {"groups": ()},
        {"model": ""},
        {"model": "two\nlines"},
        {"model": "\udc80"},
        {"model": "x" * 256},
        {"digest": bytes(15)},
        {"payload": bytes(5)},
        {"pixels_crc": 1 << 32},
        {"kind": 7},
        {"kind": Kind.FILE},
        {"kind": Kind.FILE, "channels": 0, "tile": (0, 0), "groups": (), "model": "",
         "digest": bytes(16), "metadata": {"colours": b"\0"}},
        {"metadata": {"comment": b""}},
        {"metadata": {"suffix": b"/../x"}},
        {"metadata": {"icc": bytes(MAX_METADATA), "xmp": b"1"}},
    ],
)
def test_inconsistent_fields(fields: dict[str, object]) -> None:
    with pytest.raises(FormatError) as error:
        dataclasses.replace(MODEL, **fields)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "offset, value",
    [(10, b"\2"), (10, b"\0"), (12, bytes(4)), (16, bytes(4)), (20, bytes(2)), (22, bytes(2)), (16, b"\xff" * 4)],
)
def test_inconsistent_header_with_good_checksums(offset: int, value: bytes) -> None:
    with pytest.raises(FormatError):
        Container.from_bytes(sealed(TINY, patch=(offset, value)))


def test_header_of_a_file_payload_has_no_model_fields() -> None:
    for offset, value in ((10, b"\3"), (20, b"\1"), (24, b"\1")):
        with pytest.raises(FormatError):
            Container.from_bytes(sealed(FILE, patch=(offset, value)))


def bomb(size: int) -> bytes:
    packed = zlib.compress(bytes(size), 9)
    return b"\1m\1\1\1" + b"\1\0\1" + _varints(len(packed)) + packed


@pytest.mark.parametrize(
    "table, message",
    [
        (b"", "truncated"),
        (b"\5m\1\1\1\0", "truncated"),
        (b"\1\xff\1\1\1\0", "UTF-8"),
        (b"\1m\1\1\1\0\0", "unexpected bytes"),
        (b"\1m\1\1" + b"\xff" * 9 + b"\1\0", "impossible groups"),
        (b"\1m\1" + b"\xff" * 9 + b"\1\1\0", "groups of"),
        (b"\1m\1" + b"\xff" * 20, "too large"),
        (b"\1m\1\1\1\1\6\0\0", "unknown key code 6"),
        (b"\1m\1\1\1\1\4\0\0", "not that of format version 1"),
        (b"\1m\1\1\1\1\0\2\0", "unknown method 2"),
        (b"\1m\1\1\1\2\0\0\0\0\0\0", "two entries of icc"),
        (b"\1m\1\1\1\1\0\0\2x", "truncated"),
        (b"\1m\1\1\1\1\0\1\2xy", "damaged"),
        (b"\1m\1\1\1\1\0\1\x0a" + zlib.compress(b"x") + b"?", "damaged"),
        (b"\1m\1\1\1\1\0\1\5" + zlib.compress(b"x")[:5], "damaged"),
        (bomb(MAX_METADATA + 1), "64 MiB"),
    ],
)
def test_impossible_tables_with_good_checksums(table: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        Container.from_bytes(sealed(TINY, table))


def test_metadata_limit_is_a_limit_of_the_sum() -> None:
    packed = zlib.compress(bytes(MAX_METADATA // 2 + 1), 9)
    entries = b"".join(bytes([key, 1]) + _varints(len(packed)) + packed for key in (0, 1))
    with pytest.raises(FormatError, match="64 MiB"):
        Container.from_bytes(sealed(TINY, b"\1m\1\1\1\2" + entries))
    assert len(Container.from_bytes(sealed(TINY, bomb(MAX_METADATA))).metadata["icc"]) == MAX_METADATA


def test_random_bytes() -> None:
    rng = random.Random(0)
    for _ in range(3000):
        kind = rng.randrange(4)
        if kind == 0:
            data = rng.randbytes(rng.randrange(200))
        elif kind == 1:
            data = TINY.to_bytes()[: rng.randrange(1, 70)] + rng.randbytes(rng.randrange(200))
        elif kind == 2:
            data = sealed(TINY, b"\1m" + rng.randbytes(rng.randrange(40)))
        else:
            data = sealed(TINY, b"\1m\1\1\1" + bytes(rng.choices(range(6), k=rng.randrange(30))))
        try:
            Container.from_bytes(data)
        except FormatError as error:
            assert "\n" not in str(error)

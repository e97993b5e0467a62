"""PNGs whose very bytes are made again from their pixels."""

import dataclasses
import itertools
import struct
import zlib

import numpy as np
import pytest
from image_samples import CODABLE, FILES_ONLY, GREY, INDEXED, RGB, TRANSPARENT, natural, saved, saved_image
from PIL import Image

from vdvae_codec.errors import DeflateError, ImageError
from vdvae_codec.images.chunks import SIGNATURE, chunk, chunks
from vdvae_codec.images.deflate import settings_of, stream_of
from vdvae_codec.images.files import NOT_EXACT, Picture, read_picture
from vdvae_codec.images.frame import exactness, framed, is_exact, loose
from vdvae_codec.images.scanlines import filtered, scanlines

HEAD = struct.Struct(">IIBBBBB")


def again(data: bytes, name: str = "x.png") -> Picture:
    """The picture as it comes out of a .vdz, having given the very file."""
    picture = read_picture(data, name, exact_file=True)
    assert picture.pixels is not None and is_exact(picture.metadata["frame"]), picture.notice
    decoded = dataclasses.replace(picture, data=b"")
    assert decoded.to_bytes() == (data, picture.suffix)
    return decoded


def made(idats: list[bytes], samples: np.ndarray, colour: int, interlaced: bool = False, depth: int = 8) -> bytes:
    """A PNG of the contents of its IDATs."""
    head = HEAD.pack(samples.shape[1], samples.shape[0], depth, colour, 0, 0, interlaced)
    body = b"".join(chunk(b"IDAT", contents) for contents in idats)
    return SIGNATURE + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


def rows(samples: np.ndarray, kinds: np.ndarray | None = None) -> bytes:
    """The filtered rows of samples (H, W, C) uint8."""
    passes = scanlines(samples, 8, False)
    return filtered(passes, np.zeros(len(samples), np.uint8) if kinds is None else kinds, samples.shape[2])


@pytest.mark.parametrize("level", range(1, 10))
@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA"])
def test_pngs_of_pillow_come_back_byte_for_byte(mode: str, level: int) -> None:
    image = Image.fromarray(natural(90, 110, 4)).convert(mode) if mode != "P" else Image.fromarray(RGB).quantize(200)
    again(saved_image(image, "PNG", compress_level=level))
    again(saved_image(image, "PNG", optimize=True, dpi=(300, 300)) + b"behind its end")


@pytest.mark.parametrize("strategy", [zlib.Z_FILTERED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE, zlib.Z_FIXED])
def test_strategies_of_zlib_are_found(strategy: int) -> None:
    decoded = again(saved(np.repeat(RGB, 5, 1), "PNG", compress_type=strategy))
    assert f"strategy {strategy}" in exactness(decoded.metadata["frame"])


@pytest.mark.parametrize("bits", [9, 12, 15])
def test_settings_of_zlib_are_found(bits: int) -> None:
    data = rows(natural(200, 150, 3))
    for level, memory, strategy in itertools.product(range(1, 10), (8, 9), (0, 1)):
        deflater = zlib.compressobj(level, zlib.DEFLATED, bits, memory, strategy)
        stream = deflater.compress(data) + deflater.flush()
        settings = settings_of(stream, data)
        assert settings is not None and stream_of(stream[:2], data, settings) == stream


def test_a_window_that_the_header_calls_smaller_is_found() -> None:
    """As libpng writes it for small images."""
    data = rows(natural(40, 33, 3))
    stream = zlib.compress(data, 9)
    header = 0x4800 | stream[1] & 0xC0
    header += 31 - header % 31
    small = header.to_bytes(2, "big") + stream[2:]
    assert zlib.decompress(small) == data
    again(made([small], natural(40, 33, 3), 2))


@pytest.mark.parametrize("sizes", [[1] * 30, [8192] * 9, [100, 200, 300, 50], [7]])
def test_sizes_of_idats_and_bytes_behind_the_stream_are_kept(sizes: list[int]) -> None:
    for tail in (b"", b"\0", b"of a careless program"):
        data = zlib.compress(rows(RGB)) + tail
        ends = [min(len(data), end) for end in itertools.accumulate(sizes)]
        parts = [data[a:b] for a, b in itertools.pairwise([0, *ends, len(data)]) if b > a]
        again(made(parts, RGB, 2))


@pytest.mark.parametrize("kind", range(6))
def test_filters_of_rows_are_kept(kind: int) -> None:
    """Each of the five, and a mixture that no rule gives."""
    mixed = np.random.default_rng(0).integers(0, 5, len(RGB), np.uint8)
    kinds = np.full(len(RGB), kind, np.uint8) if kind < 5 else mixed
    decoded = again(made([zlib.compress(rows(RGB, kinds))], RGB, 2))
    assert ("filters listed" if kind == 5 else f"filters all {kind}") in exactness(decoded.metadata["frame"])


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 3), (8, 8), (21, 34)])
def test_interlaced_pngs_come_back_byte_for_byte(shape: tuple[int, int]) -> None:
    for depth, samples in ((8, natural(*shape, 3)), (8, natural(*shape, 1)), (1, natural(*shape, 1) >> 7)):
        passes = scanlines(samples, depth, True)
        kinds = np.arange(sum(map(len, passes)), dtype=np.uint8) % 5
        stream = zlib.compress(filtered(passes, kinds, samples.shape[2]))
        data = made([stream], samples, samples.shape[2] - 1, True, depth)
        pixels = again(data).pixels
        assert pixels is not None and np.array_equal(pixels, samples * 255 if depth == 1 else samples)


@pytest.mark.parametrize("name", sorted(CODABLE | TRANSPARENT | INDEXED | FILES_ONLY))
def test_files_come_back_or_are_kept(name: str) -> None:
    data = (CODABLE | TRANSPARENT | INDEXED | FILES_ONLY)[name]
    picture, plain = read_picture(data, name, exact_file=True), read_picture(data, name)
    assert (dataclasses.replace(picture, data=b"") if picture.pixels is not None else picture).to_bytes()[0] == data
    assert (picture.notice == NOT_EXACT) == (plain.pixels is not None and picture.pixels is None)
    if picture.pixels is not None and plain.pixels is not None:
        assert np.array_equal(picture.pixels, plain.pixels)


def test_what_zlib_does_not_give_is_kept() -> None:
    deflater = zlib.compressobj(9)
    data = rows(RGB)
    flushed = deflater.compress(data[:1000]) + deflater.flush(zlib.Z_FULL_FLUSH) + deflater.compress(data[1000:])
    flushed += deflater.flush()
    stream = zlib.compress(data)
    for idats in ([flushed], [stream, b""], [zlib.compress(data + b"more")]):
        file = made(idats, RGB, 2)
        picture = read_picture(file, "x.png", exact_file=True)
        assert (picture.pixels, picture.notice, picture.to_bytes()[0]) == (None, NOT_EXACT, file)


def test_another_zlib_is_named_and_the_pixels_are_whole() -> None:
    """The frame of a machine whose zlib gives other bytes: another checksum of the stream."""
    file = saved(RGB, "PNG", dpi=(300, 300))
    decoded = again(file)
    frame = bytearray(decoded.metadata["frame"])
    frame[6] ^= 1
    elsewhere = dataclasses.replace(decoded, metadata={"frame": bytes(frame)})
    with pytest.raises(DeflateError, match=r"^zlib [\w.-]+ of this machine deflates its pixels to other bytes"):
        elsewhere.to_bytes()
    loosely, _ = elsewhere.to_bytes(exact=False)
    assert [c for c in chunks(loosely) if c[0] != b"IDAT"] == [c for c in chunks(file) if c[0] != b"IDAT"]
    assert np.array_equal(read_picture(loosely, "x.png").pixels, RGB)  # type: ignore[arg-type]
    assert loose(bytes(frame)) == read_picture(file, "x.png").metadata["frame"]
    assert elsewhere.portable() == {} and again(saved(RGB, "PNG")).to_bytes(".webp")[1] == ".webp"


def test_damaged_frames_are_refused() -> None:
    rng = np.random.default_rng(0)
    mixed = made([zlib.compress(rows(RGB, rng.integers(0, 5, len(RGB), np.uint8)))], RGB, 2)
    frames = [again(file).metadata["frame"] for file in (mixed, saved(GREY[..., 0], "PNG"), INDEXED["palette.png"])]
    for frame in frames:
        for end in range(1, len(frame)):
            for pixels in (RGB, GREY):
                refused(frame[:end], pixels)
        for _ in range(1500):
            damaged = np.frombuffer(frame, np.uint8).copy()
            damaged[rng.integers(1, 60, 2) % len(frame)] = rng.integers(0, 256, 2)
            for pixels in (RGB, GREY):
                refused(damaged.tobytes(), pixels)


def refused(frame: bytes, pixels: np.ndarray) -> None:
    try:
        assert len(framed(frame, pixels)) < 2 * len(frame) + 2 * pixels.size + 1000
    except ImageError as error:
        assert "\n" not in str(error)

import dataclasses
import struct
import zlib
from io import BytesIO
from itertools import starmap

import numpy as np
import pytest
from image_samples import AROUND, DEEP, ICC, INKS, NOISY, RGB, exif, natural, png, saved, with_chunks
from PIL import Image

from vdvae_codec.errors import ImageError
from vdvae_codec.images.chunks import HEADER, SIGNATURE, chunk, chunks
from vdvae_codec.images.depth import Depth, differences, joined, split, sums
from vdvae_codec.images.files import read_picture, write_image
from vdvae_codec.images.png16 import read_png

_nibbles = np.random.default_rng(3).integers(0, 16, (80, 90, 3), np.uint16)
SMOOTH = natural(80, 90, 3).astype(np.uint16) * 16 + _nibbles  # 12 bits
SAMPLES = {
    "noisy": NOISY, "grey": NOISY[..., :1], "8 bits": RGB.astype(np.uint16) * 257, "12 bits": SMOOTH,
    "12 bits, shifted": SMOOTH << 4, "12 bits, scaled": np.rint(SMOOTH * (65535 / 4095)).astype(np.uint16),
    "12 bits, repeated": SMOOTH << 4 | SMOOTH >> 8,
    "9 bits": SMOOTH >> 3, "one": NOISY[:1, :1, :1], "zero": np.zeros((3, 4, 2), np.uint16),
    "white": np.full((3, 4, 1), 65535, np.uint16),
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_come_back(name: str) -> None:
    high, depth = split(SAMPLES[name])
    assert high.dtype == np.uint8 and high.shape == SAMPLES[name].shape
    back = joined(high, depth)
    assert back.dtype == np.uint16 and np.array_equal(back, SAMPLES[name])


def test_bits_that_are_always_the_same_cost_nothing() -> None:
    bits = {name: split(samples)[1].how[0] for name, samples in SAMPLES.items()}
    assert [bits[name] for name in ("noisy", "8 bits", "9 bits", "white")] == [8, 0, 1, 8]
    kinds = ("12 bits", "12 bits, shifted", "12 bits, scaled", "12 bits, repeated")
    assert {bits[name] for name in kinds} == {4}
    sizes = [split(SAMPLES[name])[1].size for name in kinds]
    assert max(sizes) < min(sizes) + 600 < 0.6 * SMOOTH.size
    high, depth = split(SAMPLES["8 bits"])
    assert depth.file == b"" and depth.size < 400 and np.array_equal(high, RGB)
    assert all(np.array_equal(split(SAMPLES[name])[0], SMOOTH >> 4) for name in kinds[1:])


@pytest.mark.parametrize("bits", range(1, 9))
def test_differences(bits: int) -> None:
    low = (NOISY & ((1 << bits) - 1)).astype(np.uint8)
    assert differences(low, bits).max() < 1 << bits and np.array_equal(sums(differences(low, bits), bits), low)
    ramp = np.add.outer(3 * np.arange(40), 5 * np.arange(50))[..., None]
    assert not differences((ramp & ((1 << bits) - 1)).astype(np.uint8), bits)[1:, 1:].any()


def test_impossible_depths_are_refused() -> None:
    high, depth = split(NOISY)
    small, other = split(NOISY[:5])[1].file, split(SAMPLES["12 bits"])[1]
    levels = zlib.compress(bytes(8191) + b"\1")
    for how, file, line in (
        (b"", b"", "too short"), (b"\x09\0", depth.file, "impossible bits"), (b"\x08\2", depth.file, "impossible bits"),
        (b"\x08\0", b"", "impossible bits"), (b"\0\0", depth.file, "impossible bits"),
        (b"\x04\0", depth.file, "impossible bits"), (b"\x08\0", small, "not of the size"),
        (b"\x08\0", b"no image", "not an image"), (b"\0\0" + levels, b"", "a level that"),
        (b"\0\0" + zlib.compress(bytes(8193)), b"", "levels are damaged"), (b"\0\0x", b"", "levels are damaged"),
        (b"\x04\0", other.file, "not of the size"),
    ):  # fmt: skip
        with pytest.raises(ImageError, match=line):
            joined(high, Depth(how, file))


@pytest.mark.parametrize("name", DEEP | INKS)
def test_files_of_16_bits_and_of_inks(name: str) -> None:
    data = (DEEP | INKS)[name]
    picture = read_picture(data, name)
    assert picture.pixels is not None and picture.pixels.dtype == (np.uint8 if name in INKS else np.uint16)
    with Image.open(BytesIO(data)) as image:
        shown = np.atleast_3d(np.asarray(image.convert("LA") if name == "la16.png" else image))
        if name in INKS:
            assert np.array_equal(~shown, picture.pixels)
        elif shown.dtype == np.uint8 and not name.endswith(".ppm"):  # the highest 8 bits
            assert np.array_equal(shown, picture.pixels >> 8)
    again, suffix = dataclasses.replace(picture, data=b"").to_bytes()
    assert suffix == picture.suffix
    if suffix != ".png":
        assert again == data
        with pytest.raises(ImageError, match="inks" if name in INKS else "8 bits a sample|would lose"):
            dataclasses.replace(picture, data=b"").to_bytes(".webp")
    reread = read_picture(again, name).pixels
    assert reread is not None and np.array_equal(reread, picture.pixels)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_what_is_written_is_what_others_read(channels: int) -> None:
    """Pillow shows the highest 8 bits of colours, and with the bytes swapped the others."""
    pixels = np.ascontiguousarray(NOISY[..., :channels])
    for samples in (pixels, pixels.byteswap()):
        with Image.open(BytesIO(write_image(samples, {"icc": ICC, "exif": exif()}, ".png"))) as image:
            shown = np.asarray(image.convert("LA") if channels == 2 else image).reshape(samples.shape)
            assert np.array_equal(shown, samples if channels == 1 else samples >> 8)
            assert image.info["icc_profile"] == ICC and "exif" in image.info


def deep_png(width: int, height: int, kind: int, lines: bytes, interlaced: bool = False, bits: int = 16) -> bytes:
    header = HEADER.pack(width, height, bits, kind, 0, 0, interlaced)
    return SIGNATURE + b"".join(starmap(chunk, ((b"IHDR", header), (b"IDAT", lines), (b"IEND", b""))))


def test_scanlines_that_other_programs_filtered(photo: np.ndarray) -> None:
    """RGBA of 8 bits has the scanlines of 16-bit grey with transparency, LA those of grey."""
    rgba = np.dstack([photo, photo[::-1, :, 0]])
    for pixels, kind in ((rgba, 4), (np.ascontiguousarray(rgba[..., :2]), 0)):
        lines = b"".join(part for name, part in chunks(saved(pixels, "PNG", optimize=True)) if name == b"IDAT")
        rows = np.frombuffer(zlib.decompress(lines), np.uint8).reshape(len(pixels), -1)
        assert set(rows[:, 0]) >= {1, 3, 4}
        found = read_png(deep_png(pixels.shape[1], len(pixels), kind, lines))
        assert found is not None and np.array_equal(found, pixels.view(">u2").reshape(found.shape))


def test_damaged_and_other_scanlines() -> None:
    lines = dict(chunks(DEEP["noisy16.png"]))[b"IDAT"]
    rows = bytearray(zlib.decompress(lines))
    assert np.array_equal(read_png(deep_png(53, 37, 2, lines)), NOISY[..., :3])  # type: ignore[arg-type]
    wrong = bytes([5, *rows[1:]])
    for damaged in (lines[:-200], b"x" + lines, zlib.compress(rows[:-1]), zlib.compress(rows + b"x"), b"",
                    zlib.compress(wrong)):  # fmt: skip
        with pytest.raises(ImageError, match="pixels are damaged"):
            read_png(deep_png(53, 37, 2, damaged))
    assert read_png(deep_png(53, 37, 2, lines, interlaced=True)) is None
    assert read_png(deep_png(53, 37, 2, lines, bits=8)) is None and read_png(deep_png(53, 37, 3, lines)) is None


def test_chunks_around_16_bits_are_kept() -> None:
    for kind in AROUND:
        data = with_chunks(DEEP["noisy16.png"], {kind: AROUND[kind]}, {}, b"tail")
        picture = read_picture(data, "x.png")
        again, _ = dataclasses.replace(picture, data=b"").to_bytes()
        around = [[c for c in chunks(file) if c[0] != b"IDAT"] for file in (data, again)]
        assert around[0] == around[1] and picture.pixels is not None and picture.pixels.dtype == np.uint16


def test_interlaced_files_are_kept() -> None:
    """Adam7 of one pixel is that pixel."""
    data = bytearray(png(16, 2, NOISY[:1, :1, :3].astype(">u2").view(np.uint8).reshape(1, -1)))
    data[28] = 1
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    picture = read_picture(bytes(data), "x.png")
    assert data.startswith(SIGNATURE) and picture.pixels is None and picture.to_bytes() == (data, ".png")


@pytest.mark.parametrize("name", [name for name in DEEP if name.endswith(".png")])
def test_exact_files_of_16_bits(name: str) -> None:
    for data in (DEEP[name], write_image(read_picture(DEEP[name], name).pixels, {}, ".png")):  # type: ignore[arg-type]
        picture = read_picture(data, name, exact_file=True)
        assert picture.pixels is not None and picture.pixels.dtype == np.uint16
        assert dataclasses.replace(picture, data=b"").to_bytes() == (data, ".png")

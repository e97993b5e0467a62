import re
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from vdvae_codec.errors import ImageError
from vdvae_codec.images import (
    Picture,
    best_file,
    decode_file,
    image_files,
    read_picture,
    read_rgb,
    tile_boxes,
    tile_grid,
    write_image,
)

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">gr\xc3\xb6\xc3\x9fer</x:xmpmeta>'


def natural(height: int, width: int, channels: int) -> np.ndarray:
    """Smooth waves with a little noise, (H, W, C) uint8."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(channels), indexing="ij")
    waves = 128 + 60 * np.sin(x / 7 + c) + 50 * np.cos(y / 5 - c / 2)
    return (waves + np.random.default_rng(0).normal(0, 3, waves.shape)).clip(0, 255).astype(np.uint8)


RGB, GREY = natural(37, 53, 3), natural(37, 53, 1)


def saved(array: np.ndarray, format: str, **options: object) -> bytes:
    out = BytesIO()
    Image.fromarray(array).save(out, format, **options)
    return out.getvalue()


def converted(mode: str, format: str, **options: object) -> bytes:
    out = BytesIO()
    Image.fromarray(RGB).convert(mode).save(out, format, **options)
    return out.getvalue()


def exif(orientation: int = 1) -> bytes:
    tags = Image.Exif()
    tags[274] = orientation
    tags[271] = "a camera"
    tags[256] = 4000  # a width that is not this file's
    tags.get_ifd(0x8769)[36867] = "2020:01:02 03:04:05"
    return tags.tobytes()


def png(depth: int, colour: int, rows: np.ndarray) -> bytes:
    """A PNG by hand: ``rows`` (H, bytes of a row) uint8 with the width that they give."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    width = rows.shape[1] * 8 // (depth * {0: 1, 2: 3, 4: 2, 6: 4}[colour])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0))
    filtered = np.pad(rows, ((0, 0), (1, 0)))  # filter 0 in front of every row
    pixels = chunk(b"IDAT", zlib.compress(filtered.tobytes()))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def tiff(samples: np.ndarray, extra: dict[int, int] | None = None) -> bytes:
    """A TIFF by hand: samples (H, W, C) of any unsigned dtype; ``extra`` tags hold one number each."""
    height, width, channels = samples.shape
    body = samples.tobytes()
    depth = 8 * samples.itemsize
    tags = {256: (width,), 257: (height,), 258: (depth,) * channels, 259: (1,), 262: (2 if channels > 1 else 1,)}
    tags |= {273: (8,), 277: (channels,), 278: (height,), 279: (len(body),)}
    tags |= {tag: (value,) for tag, value in (extra or {}).items()}
    start = 8 + len(body)
    spill = start + 2 + 12 * len(tags) + 4
    entries, tail = b"", b""
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}I", *values)
        entries += struct.pack("<HHI", tag, 4, len(values))
        entries += packed if len(packed) == 4 else struct.pack("<I", spill + len(tail))
        tail += packed if len(packed) > 4 else b""
    return b"II*\0" + struct.pack("<I", start) + body + struct.pack("<H", len(tags)) + entries + bytes(4) + tail


WIDE = (RGB.astype(np.uint16) * 257 + 1).astype(">u2")
CODABLE = {
    "rgb.png": saved(RGB, "PNG"),
    "grey.png": saved(GREY[..., 0], "PNG"),
    "hand.png": png(8, 2, RGB.reshape(37, -1)),
    "rgb.bmp": saved(RGB, "BMP"),
    "grey.bmp": saved(GREY[..., 0], "BMP"),
    "rgb.ppm": saved(RGB, "PPM"),
    "grey.pgm": saved(GREY[..., 0], "PPM"),
    "comment.ppm": b"P6 # a\n# b\n53 \t37\n#c\n255\n" + RGB.tobytes(),
    "plain.pgm": b"P2\n53 37 255\n" + " ".join(map(str, GREY.ravel())).encode(),
    "rgb.tif": saved(RGB, "TIFF"),
    "grey.tiff": saved(GREY[..., 0], "TIFF"),
    "hand.tif": tiff(RGB),
    "deflate.tif": saved(RGB, "TIFF", compression="tiff_adobe_deflate"),
    "rgb.webp": saved(RGB, "WEBP", lossless=True),
    "rgb.tga": saved(RGB, "TGA"),
    "rgb.jpg": saved(RGB, "JPEG"),
    "grey.jpeg": saved(GREY[..., 0], "JPEG"),
}
FILES_ONLY = {
    "rgb16.png": png(16, 2, WIDE.view(np.uint8).reshape(37, -1)),
    "grey16.png": png(16, 0, WIDE[..., 0].copy().view(np.uint8)),
    "rgba16.png": png(16, 6, np.dstack([WIDE, WIDE[..., :1]]).view(np.uint8).reshape(37, -1)),
    "la16.png": png(16, 4, WIDE[..., :2].copy().view(np.uint8).reshape(37, -1)),
    "grey4.png": png(4, 0, GREY[..., 0]),
    "grey2.png": png(2, 0, GREY[..., 0]),
    "bits.png": converted("1", "PNG"),
    "palette.png": converted("P", "PNG"),
    "rgba.png": converted("RGBA", "PNG"),
    "la.png": converted("LA", "PNG"),
    "rgb_trns.png": saved(RGB, "PNG", transparency=(1, 2, 3)),
    "grey_trns.png": saved(GREY[..., 0], "PNG", transparency=7),
    "animated.png": saved(RGB, "PNG", save_all=True, append_images=[Image.fromarray(RGB[::-1])]),
    "animated.webp": saved(RGB, "WEBP", save_all=True, append_images=[Image.fromarray(RGB[::-1])], lossless=True),
    "animated.gif": saved(RGB, "GIF", save_all=True, append_images=[Image.fromarray(RGB[::-1])]),
    "still.gif": saved(GREY[..., 0], "GIF"),
    "rgb16.tif": tiff(WIDE.astype("<u2")),
    "grey16.tif": saved(WIDE[..., 0].astype(np.uint16), "TIFF"),
    "float.tif": saved(GREY[..., 0].astype(np.float32), "TIFF"),
    "padded.tif": tiff(natural(37, 53, 4), {338: 0}),
    "preview.tif": tiff(RGB, {330: 8}),
    "pages.tif": saved(RGB, "TIFF", save_all=True, append_images=[Image.fromarray(RGB)]),
    "cmyk.jpg": converted("CMYK", "JPEG"),
    "dim.ppm": b"P6 53 37 15\n" + (RGB >> 4).tobytes(),
    "dim.pgm": b"P2 53 37 15\n" + " ".join(map(str, GREY.ravel() >> 4)).encode(),
    "deep.ppm": b"P6 53 37 65535\n" + WIDE.tobytes(),
    "two.ppm": saved(RGB, "PPM") * 2,
    "bits16.bmp": b"",  # filled in below
    "pixels.jp2": saved(RGB, "JPEG2000"),
}
_bmp = bytearray(saved(RGB[:, :26], "BMP"))  # rows of 26 * 3 + 2 = 80 bytes, declared to be 40 pixels of 16 bits
_bmp[18:22], _bmp[28:30] = struct.pack("<I", 40), struct.pack("<H", 16)
FILES_ONLY["bits16.bmp"] = bytes(_bmp)


@pytest.mark.parametrize("name", CODABLE)
def test_codable(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(CODABLE[name])
    picture = read_picture((tmp_path / name).read_bytes(), str(tmp_path / name))
    expected = GREY if "grey" in name or "pgm" in name else RGB
    assert picture.pixels is not None and picture.pixels.dtype == np.uint8
    assert picture.pixels.shape == expected.shape and picture.pixels.flags.writeable
    if picture.format != "JPEG":
        assert np.array_equal(picture.pixels, expected)
    assert (picture.height, picture.width) == (37, 53)
    assert picture.suffix == Path(name).suffix
    assert picture.data == CODABLE[name]
    assert picture.metadata == {}
    assert np.array_equal(read_rgb(tmp_path / name), np.broadcast_to(picture.pixels, RGB.shape))


@pytest.mark.parametrize("name", FILES_ONLY)
def test_not_codable(name: str) -> None:
    data = FILES_ONLY[name]
    picture = read_picture(data, name)
    assert picture.pixels is None
    assert picture.data == data
    assert picture.suffix == Path(name).suffix
    assert decode_file(data).shape[:2] == (picture.height, picture.width)
    if name != "rgba.png":
        assert best_file(picture) == (data, Path(name).suffix)


def test_jpeg_xl_is_kept_as_a_file() -> None:
    pytest.importorskip("pillow_jxl")
    data = saved(RGB, "JXL", lossless=True)
    picture = read_picture(data, "x.jxl")
    assert (picture.format, picture.suffix, picture.pixels) == ("JXL", ".jxl", None)
    assert np.array_equal(decode_file(data), RGB)


@pytest.mark.parametrize(
    "name, suffix",
    [("a.PNG", ".png"), ("a.jpg", ".jpg"), ("a", ".png"), ("b/a.tar", ".png"), ("a.png~", ".png"), (".png", ".png")],
)
def test_suffix(name: str, suffix: str) -> None:
    assert read_picture(CODABLE["rgb.png"], name).suffix == suffix


def test_suffix_of_a_nameless_jpeg() -> None:
    assert read_picture(CODABLE["rgb.jpg"], "upload").suffix == ".jpeg"


def test_suffixes_fit_the_container() -> None:
    assert all(re.fullmatch(r"\.[a-z0-9]{1,15}", suffix) for suffix in Image.registered_extensions())


@pytest.mark.parametrize("name", ["rgb.png", "rgb.jpg", "rgb.bmp", "rgb.ppm", "rgb.tif", "rgb.webp", "rgb.tga"])
def test_truncated(name: str) -> None:
    data = CODABLE[name]
    for length in (0, 1, 10, 30, len(data) // 2, len(data) - 60):
        with pytest.raises(ImageError, match=re.escape(name)) as error:
            read_picture(data[:length], name)
        assert "\n" not in str(error.value) and "0x" not in str(error.value)
        with pytest.raises(ImageError):
            decode_file(data[:length])


def test_unreadable(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"notes\.txt: not an image"):
        read_picture(b"just words", "notes.txt")
    (tmp_path / "x.png").write_bytes(b"just words")
    with pytest.raises(ImageError, match=r"x\.png: not an image"):
        read_rgb(tmp_path / "x.png")
    with pytest.raises(ImageError, match=r"y\.png"):
        read_rgb(tmp_path / "y.png")


def test_damaged_files_raise_nothing_else() -> None:
    rng = np.random.default_rng(0)
    for name, data in CODABLE.items():
        for _ in range(20):
            damaged = np.frombuffer(data, np.uint8).copy()
            damaged[rng.integers(0, min(len(data), 200), 3)] = rng.integers(0, 256, 3)
            if damaged[12:24].tobytes() != data[12:24]:
                continue  # sizes: Pillow would allocate what they say
            try:
                read_picture(damaged.tobytes(), name)
            except ImageError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp", ".PNG"])
@pytest.mark.parametrize("pixels", [RGB, GREY, RGB[:1, :1], GREY[:1, :1]])
def test_write_image(suffix: str, pixels: np.ndarray) -> None:
    if suffix == ".pgm" and pixels.shape[2] == 3:
        with pytest.raises(ImageError, match="grey"):
            write_image(pixels, {}, suffix)
        return
    picture = read_picture(write_image(pixels, {}, suffix), "x" + suffix)
    assert picture.pixels is not None
    if suffix == ".webp" and pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, 2)
    assert np.array_equal(picture.pixels, pixels)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".gif", ".jxl", ".avif", ".xyz", ""])
def test_lossy_or_unknown_suffix(suffix: str) -> None:
    with pytest.raises(ImageError, match="not a lossless format"):
        write_image(RGB, {}, suffix)


def test_write_image_refuses_other_arrays() -> None:
    for pixels in (RGB[..., 0], RGB.astype(np.int16), np.dstack([GREY, GREY])):
        with pytest.raises(ImageError, match="expected"):
            write_image(pixels, {}, ".png")
    with pytest.raises(ImageError, match="cannot write the image as WEBP"):
        write_image(np.zeros((1, 16384, 3), np.uint8), {}, ".webp")


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
@pytest.mark.parametrize("pixels", [RGB, GREY])
def test_metadata_is_kept(suffix: str, pixels: np.ndarray, tmp_path: Path) -> None:
    metadata = {"icc": ICC, "exif": exif(), "xmp": XMP, "suffix": b".gif"}
    path = tmp_path / f"x{suffix}"
    path.write_bytes(write_image(pixels, metadata, suffix))
    picture = read_picture(path.read_bytes(), path.name)
    assert picture.metadata["icc"] == ICC
    assert picture.metadata["xmp"] == XMP
    assert picture.pixels is not None and np.array_equal(picture.pixels[..., :1], pixels[..., :1])
    with Image.open(path) as image:
        tags = image.getexif()
        assert tags[271] == "a camera"
        assert tags.get_ifd(0x8769)[36867] == "2020:01:02 03:04:05"
    if suffix == ".png":
        assert picture.metadata == {key: metadata[key] for key in ("icc", "exif", "xmp")}


def test_large_profiles_and_unreadable_text_are_kept() -> None:
    metadata = {"icc": np.random.default_rng(0).bytes(3 << 20), "xmp": b"\xff\xfe\0not UTF-8"}
    assert read_picture(write_image(RGB, metadata, ".png"), "x.png").metadata == metadata


def test_orientation_is_kept_and_not_applied() -> None:
    data = saved(RGB, "JPEG", exif=exif(6), quality=95)
    picture = read_picture(data, "x.jpg")
    assert picture.pixels is not None and picture.pixels.shape == RGB.shape
    again = read_picture(write_image(picture.pixels, picture.metadata, ".png"), "x.png")
    assert again.pixels is not None and np.array_equal(again.pixels, picture.pixels)
    assert again.metadata["exif"] == picture.metadata["exif"] == exif(6)


@pytest.mark.parametrize("name", CODABLE)
def test_best_file(name: str) -> None:
    picture = read_picture(CODABLE[name], name)
    data, suffix = best_file(picture)
    assert len(data) <= len(CODABLE[name])
    assert picture.pixels is not None and np.array_equal(decode_file(data), picture.pixels.squeeze())
    if data == picture.data:
        assert suffix == picture.suffix
    else:
        assert suffix == {"WEBP": ".webp", "PNG": ".png"}[read_picture(data, "x").format]


def test_best_file_of_a_large_flat_picture_is_webp() -> None:
    flat = np.repeat(np.repeat(natural(20, 20, 3), 16, 0), 16, 1)
    data, suffix = best_file(read_picture(saved(flat, "PNG"), "x.png"))
    assert suffix == ".webp" and np.array_equal(decode_file(data), flat)


def test_best_file_of_rgba_carries_metadata() -> None:
    pixels = natural(64, 64, 4)
    pixels[:20, :, 3] = 0  # colours under full transparency count
    picture = read_picture(saved(pixels, "PNG", compress_level=0, exif=exif(), icc_profile=ICC), "x.png")
    data, suffix = best_file(picture)
    assert picture.pixels is None and data != picture.data
    assert np.array_equal(decode_file(data), pixels)
    again = read_picture(data, f"x{suffix}")
    assert again.metadata["icc"] == ICC and "exif" in again.metadata


def test_best_file_counts_metadata() -> None:
    noise = np.random.default_rng(0).bytes(5000)
    plain = read_picture(saved(RGB, "PNG", compress_level=9), "x.png")
    heavy = Picture(plain.pixels, {"xmp": noise}, "PNG", plain.data, ".png", plain.width, plain.height)
    assert best_file(plain)[0] != plain.data
    assert best_file(heavy)[0] == plain.data


@pytest.mark.parametrize(
    "size", [(1, 1), (2, 9), (10000, 3), (3, 10000), (256, 256), (257, 256), (512, 768), (513, 1025), (9, 8)]
)
@pytest.mark.parametrize("largest, multiple", [(256, 16), (64, 64), (100, 16), (8, 1)])
def test_tiles_cover_each_pixel_once(size: tuple[int, int], largest: int, multiple: int) -> None:
    tile = tile_grid(*size, largest, multiple)
    hits = np.zeros(size, np.uint8)
    boxes = tile_boxes(*size, tile)
    for y0, x0, y1, x1 in boxes:
        assert 0 < y1 - y0 <= tile[0] and 0 < x1 - x0 <= tile[1]
        hits[y0:y1, x0:x1] += 1
    assert np.all(hits == 1)
    assert boxes == sorted(boxes)
    for total, side in zip(size, tile, strict=True):
        assert side % multiple == 0 and side < min(total, largest) + multiple
        assert side <= largest or largest % multiple
    assert len(boxes) == -(-size[0] // tile[0]) * -(-size[1] // tile[1])


def test_tile_grid_examples() -> None:
    assert tile_grid(512, 768, 256, 16) == (256, 256)
    assert tile_grid(300, 700, 256, 16) == (160, 240)
    assert tile_grid(1, 10_000, 256, 16) == (16, 256)
    assert tile_boxes(3, 5, (2, 4)) == [(0, 0, 2, 4), (0, 4, 2, 5), (2, 0, 3, 4), (2, 4, 3, 5)]


def test_image_files(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt", "sub/c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [str(p.relative_to(tmp_path)) for p in image_files(tmp_path)] == ["a.JPG", "b.png", "sub/c.webp"]

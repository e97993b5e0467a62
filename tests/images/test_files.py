import dataclasses
import re
import struct
import subprocess
import sys
import threading
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from image_samples import (
    CODABLE,
    FILES_ONLY,
    GREY,
    ICC,
    INDEXED,
    RGB,
    TRANSPARENT,
    XMP,
    exif,
    natural,
    png,
    saved,
    saved_image,
)
from PIL import Image

from vdvae_codec.errors import ImageError
from vdvae_codec.images.files import (
    SUFFIXES,
    Picture,
    file_pixels,
    image_files,
    picture_of,
    read_picture,
    read_rgb,
    with_channels,
    write_image,
)


@pytest.mark.parametrize("name", CODABLE)
def test_codable(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(CODABLE[name])
    picture = read_picture((tmp_path / name).read_bytes(), str(tmp_path / name))
    expected = GREY if "grey" in name or "pgm" in name else RGB
    assert picture.pixels is not None and picture.pixels.dtype == np.uint8
    assert picture.pixels.shape == expected.shape and picture.pixels.flags.writeable
    if picture.suffix not in (".jpg", ".jpeg"):
        assert np.array_equal(picture.pixels, expected)
    assert (picture.height, picture.width) == (37, 53)
    assert picture.suffix == Path(name).suffix
    assert picture.data == CODABLE[name]
    assert set(picture.metadata) <= {"frame"} and picture.portable() == {}
    if (picture.suffix in (".bmp", ".ppm", ".pgm", ".tga") and name != "plain.pgm") or name in ("rgb.tif", "grey.tiff"):
        assert dataclasses.replace(picture, data=b"").to_bytes() == (CODABLE[name], picture.suffix)
    assert np.array_equal(read_rgb(tmp_path / name), np.broadcast_to(picture.pixels, RGB.shape))


@pytest.mark.parametrize("name", [*TRANSPARENT, *INDEXED])
def test_transparency_and_palettes_come_back(name: str) -> None:
    """Samples, mode, palette and all that Pillow says of the file."""
    data = (TRANSPARENT | INDEXED)[name]
    picture = read_picture(data, name)
    assert picture.pixels is not None and picture.pixels.shape[:2] == (picture.height, picture.width)
    again, suffix = dataclasses.replace(picture, data=b"").to_bytes()
    if suffix in (".tga", ".tif"):
        assert again == data
    with Image.open(BytesIO(data)) as before, Image.open(BytesIO(again)) as after:
        assert before.mode == after.mode and np.array_equal(np.asarray(before), np.asarray(after))
        assert before.getpalette() == after.getpalette()
        if suffix == Path(name).suffix:
            assert before.info == after.info
        if name in INDEXED:
            opaque = picture.pixels.shape[2] < 4
            assert np.array_equal(picture.pixels.squeeze(), before.convert(before.mode if opaque else "RGBA").convert(
                "L" if picture.pixels.shape[2] == 1 else "RGB" if opaque else "RGBA"
            ))
            assert again[24:26] == data[24:26]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("own", [1, 2, 3, 4])
def test_channels_of_other_numbers(own: int, count: int) -> None:
    pixels = natural(5, 6, own)
    changed = with_channels(pixels, count)
    assert changed.shape == (5, 6, count) and np.array_equal(changed[..., 0], pixels[..., 0])
    if count % 2 == 0:
        assert np.array_equal(changed[..., -1], pixels[..., -1] if own % 2 == 0 else np.full((5, 6), 255))
    if own >= count:
        assert np.array_equal(with_channels(with_channels(changed, 4), count), changed)


def test_palettes_that_do_not_tell_their_colours_apart_stay_files() -> None:
    image = Image.fromarray(np.arange(200, dtype=np.uint8).reshape(10, 20) % 4, "P")
    for palette, known in (([1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9], True), ([1, 2, 3] * 2 + [7, 8, 9, 9, 9, 9], False)):
        image.putpalette(palette)
        assert (read_picture(saved_image(image, "PNG"), "x.png").pixels is not None) == known
    short = bytearray(saved_image(image, "PNG", bits=8))
    at = short.index(b"PLTE")
    packed = b"PLTE" + short[at + 4 : at + 7]
    short[at - 4 : at + 8 + int.from_bytes(short[at - 4 : at], "big")] = (
        struct.pack(">I", 3) + packed + struct.pack(">I", zlib.crc32(packed))
    )
    assert read_picture(bytes(short), "x.png").pixels is None


@pytest.mark.parametrize("name", FILES_ONLY)
def test_not_codable(name: str) -> None:
    data = FILES_ONLY[name]
    picture = read_picture(data, name)
    assert picture.pixels is None
    assert picture.data == data
    assert picture.suffix == Path(name).suffix
    assert file_pixels(data).shape[:2] == (picture.height, picture.width)
    assert picture.to_bytes() == (data, picture.suffix)


def test_jpeg_xl_is_kept_as_a_file() -> None:
    pytest.importorskip("pillow_jxl")
    data = saved(RGB, "JXL", lossless=True)
    picture = read_picture(data, "x.jxl")
    assert (picture.suffix, picture.pixels) == (".jxl", None)
    assert np.array_equal(file_pixels(data), RGB)


@pytest.mark.parametrize(
    "name, suffix",
    [("a.PNG", ".PNG"), ("a.jpg", ".jpg"), ("a", ".png"), ("b/a.tar", ".png"), ("a.png~", ".png"), (".png", ".png")],
)
def test_suffix(name: str, suffix: str) -> None:
    assert read_picture(CODABLE["rgb.png"], name).suffix == suffix


def test_suffix_of_a_nameless_jpeg() -> None:
    assert read_picture(CODABLE["rgb.jpg"], "upload").suffix == ".jpeg"


def test_suffixes_fit_the_container() -> None:
    assert all(re.fullmatch(r"\.[A-Za-z0-9]{1,15}", suffix) for suffix in Image.registered_extensions())


@pytest.mark.parametrize("name", ["rgb.png", "rgb.jpg", "rgb.bmp", "rgb.ppm", "rgb.tif", "rgb.webp", "rgb.tga"])
def test_truncated(name: str) -> None:
    data = CODABLE[name]
    for length in (0, 1, 10, 30, len(data) // 2, len(data) - 60):
        with pytest.raises(ImageError, match=re.escape(name)) as error:
            read_picture(data[:length], name)
        assert "\n" not in str(error.value) and "0x" not in str(error.value)
        with pytest.raises(ImageError):
            file_pixels(data[:length])


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
    for pixels in (RGB[..., 0], RGB.astype(np.int16), np.dstack([RGB, RGB])):
        with pytest.raises(ImageError, match="expected"):
            write_image(pixels, {}, ".png")
    with pytest.raises(ImageError, match="cannot write the image as WEBP"):
        write_image(np.zeros((1, 16384, 3), np.uint8), {}, ".webp")


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_transparency_is_kept_or_refused(suffix: str) -> None:
    pixels = natural(9, 11, 4)
    if suffix in (".bmp", ".ppm", ".pgm"):
        with pytest.raises(ImageError, match=suffix):
            write_image(pixels, {}, suffix)
    else:
        assert np.array_equal(file_pixels(write_image(pixels, {}, suffix)), pixels)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
@pytest.mark.parametrize("pixels", [RGB, GREY])
def test_metadata_is_kept(suffix: str, pixels: np.ndarray, tmp_path: Path) -> None:
    metadata = {"icc": ICC, "exif": exif(), "xmp": XMP, "suffix": b".gif"}
    path = tmp_path / f"x{suffix}"
    path.write_bytes(write_image(pixels, metadata, suffix))
    picture = read_picture(path.read_bytes(), path.name)
    assert picture.portable()["icc"] == ICC
    assert picture.portable()["xmp"] == XMP
    assert picture.pixels is not None and np.array_equal(picture.pixels[..., :1], pixels[..., :1])
    with Image.open(path) as image:
        tags = image.getexif()
        assert tags[271] == "a camera"
        assert tags.get_ifd(0x8769)[36867] == "2020:01:02 03:04:05"
    if suffix == ".png":
        assert picture.portable() == {key: metadata[key] for key in ("icc", "exif", "xmp")}


def test_metadata_behind_the_pixels_is_kept() -> None:
    data = write_image(RGB, {"exif": exif()}, ".png")
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    late = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    again, _ = dataclasses.replace(read_picture(late, "x.png"), data=b"").to_bytes(".webp")
    with Image.open(BytesIO(again)) as image:
        assert image.getexif()[271] == "a camera"


def test_large_profiles_and_unreadable_text_are_kept() -> None:
    metadata = {"icc": np.random.default_rng(0).bytes(3 << 20), "xmp": b"\xff\xfe\0not UTF-8"}
    assert read_picture(write_image(RGB, metadata, ".png"), "x.png").portable() == metadata


def test_orientation_is_kept_and_not_applied() -> None:
    data = saved(RGB, "JPEG", exif=exif(6), quality=95)
    picture = read_picture(data, "x.jpg")
    assert picture.pixels is not None and picture.pixels.shape == RGB.shape
    again = read_picture(write_image(picture.pixels, picture.metadata, ".png"), "x.png")
    assert again.pixels is not None and np.array_equal(again.pixels, picture.pixels)
    assert again.portable()["exif"] == picture.metadata["exif"] == exif(6)


def test_image_files(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt", "sub/c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [str(p.relative_to(tmp_path)) for p in image_files(tmp_path)] == ["a.JPG", "b.png", "sub/c.webp"]


@pytest.mark.parametrize("pixels", [RGB, GREY, GREY[..., 0]])
def test_pictures_of_arrays(pixels: np.ndarray) -> None:
    picture = picture_of(pixels, "a/b", 7)
    assert (picture.name, picture.data, picture.width, picture.height, picture.modified) == ("a/b", b"", 53, 37, 7)
    for suffix in (None, ".png", ".TIF"):
        data, own = picture.to_bytes(suffix)
        assert own == (suffix or ".png")
        again = read_picture(data, f"x{own}")
        assert again.pixels is not None and np.array_equal(again.pixels, pixels.reshape(37, 53, -1))


@pytest.mark.parametrize("shape", [(3,), (0, 5, 3), (5, 0), (2, 2, 5), (2, 2, 0), (1, 2, 2, 3)])
def test_pictures_of_other_arrays_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=r"^x: expected"):
        picture_of(np.zeros(shape, np.uint8), "x")
    with pytest.raises(ImageError, match="int16"):
        picture_of(RGB.astype(np.int16))


def test_a_picture_gives_its_file_or_its_pixels_with_metadata() -> None:
    file = read_picture(CODABLE["rgb.jpg"], "x.jpg", 5)
    assert file.modified == 5 and file.to_bytes() == file.to_bytes(".jpg") == (file.data, ".jpg")
    with pytest.raises(ImageError, match=r"x\.jpg: kept as the \.jpg file"):
        file.to_bytes(".png")
    metadata = {"icc": ICC, "xmp": XMP}
    data, suffix = Picture("", RGB, b"", ".webp", 53, 37, metadata).to_bytes()
    again = read_picture(data, "x")
    assert suffix == again.suffix == ".webp" and again.portable() == metadata
    rgba = natural(9, 11, 4)
    assert np.array_equal(file_pixels(Picture("", rgba, b"", ".png", 11, 9, {}).to_bytes()[0]), rgba)
    with pytest.raises(ImageError, match="neither"):
        Picture("", None, b"", ".png", 1, 1, {}).to_bytes()


LARGE = png(1, 0, np.zeros((100, 250_000), np.uint8))  # 2,000,000 x 100 pixels


def test_pillows_limit_holds_and_stays_the_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Image.MAX_IMAGE_PIXELS
    (tmp_path / "x.png").write_bytes(LARGE)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "x.png")
    with pytest.raises(ImageError, match=r"^x\.png: 2000000 x 100 pixels, more than the 178956970 that are taken \(Im"):
        read_picture(LARGE, "x.png")
    half = png(1, 0, np.zeros((50, 250_000), np.uint8))
    (tmp_path / "half.png").write_bytes(half)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(tmp_path / "half.png").close()
    assert read_picture(half, "half.png").height == 50
    assert found == Image.MAX_IMAGE_PIXELS is not None
    for own in (100_000_000, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", own)
        assert read_picture(LARGE, "x.png").width == 2_000_000


def test_limits_come_back_whatever_threads_do() -> None:
    data = [CODABLE["rgb.png"], CODABLE["hand.tif"], b"no image", CODABLE["rgb.jpg"][:300]]
    failed: list[str] = []

    def read(n: int) -> None:
        for k in range(30):
            try:
                read_picture(data[(n + k) % len(data)], "x")
            except ImageError as error:
                failed.append(str(error))

    before = Image.MAX_IMAGE_PIXELS
    threads = [threading.Thread(target=read, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failed) == 60 and before == Image.MAX_IMAGE_PIXELS


def test_the_package_leaves_pillow_as_it_was(tmp_path: Path) -> None:
    """Also where the caller's limits are not Pillow's own."""
    heavy = write_image(RGB, {"icc": np.random.default_rng(0).bytes(3 << 20)}, ".png")
    (tmp_path / "x.png").write_bytes(heavy)
    program = """
import sys
from pathlib import Path
from PIL import Image, PngImagePlugin
def limits():
    return Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
first = limits()
from vdvae_codec.images import classical, files, tiling
import vdvae_codec.transforms
assert "torch" not in sys.modules
assert limits() == first
Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = 9000, 1001, 1002
path = Path(sys.argv[1])
picture = files.read_picture(path.read_bytes(), "x.png")
assert len(picture.portable()["icc"]) == 3 << 20
classical.best_file(picture)
files.read_rgb(path)
picture = files.picture_of(picture.pixels)
files.file_pixels(picture.to_bytes()[0])
assert limits() == (9000, 1001, 1002)
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "x.png")], check=True)


@pytest.mark.parametrize("suffix", [".bmp", ".ppm", ".pgm"])
def test_metadata_that_would_be_lost_is_refused(suffix: str) -> None:
    with pytest.raises(ImageError, match=rf"^{suffix}: would lose the image's metadata \(ICC, XMP\); \.png"):
        write_image(GREY, {"icc": ICC, "xmp": XMP}, suffix)


def test_files_that_other_programs_would_read_are_refused() -> None:
    eps = BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(eps, "EPS")
    with pytest.raises(ImageError, match=r"x\.eps: not an image file that can be read"):
        read_picture(eps.getvalue(), "x.eps")

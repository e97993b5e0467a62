"""Pillow opens, seeks, verifies and saves .vdz files, as it does its own formats."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from image_samples import CODABLE, DEEP, FILES_ONLY, ICC, INDEXED, INKS, RGB, TRANSPARENT, XMP, exif, saved
from PIL import Image, ImageSequence, UnidentifiedImageError

import vdvae_codec
import vdvae_codec.plugins.pillow
from vdvae_codec.codec.store import Released
from vdvae_codec.errors import ImageError
from vdvae_codec.format.vdz import Reader, Writer

PNGS = {name: data for name, data in FILES_ONLY.items() if name.endswith(".png")}
UNSCALED = {name: data for name, data in DEEP.items() if not name.startswith("deep.")}  # Pillow scales samples of PPMs
FILES = CODABLE | UNSCALED | INKS | TRANSPARENT | INDEXED | PNGS


@pytest.fixture(scope="module")
def archive(tiny_model: Released, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two segments: grey, RGB with metadata, a palette that is stored, and RGB again."""
    path = tmp_path_factory.mktemp("pillow") / "a.vdz"
    profiled = saved(RGB[:20, :30], "PNG", icc_profile=ICC, exif=exif())
    images = [("grey", CODABLE["grey.png"]), ("rgb", profiled), ("p.png", INDEXED["palette.png"])]
    images.append(("b", saved(RGB[:9, :8], "PNG")))
    vdvae_codec.write_archive(images, path, model=tiny_model, segment=2, fallback=False)
    return path


@pytest.mark.parametrize("name", FILES)
def test_files_look_as_they_did(name: str, tiny_model: Released, tiny_folder: Path) -> None:
    assert len(FILES) == 42
    vdz = vdvae_codec.compress(FILES[name], model=tiny_model, fallback=False)
    with Image.open(BytesIO(vdz)) as image, Image.open(BytesIO(FILES[name])) as expected:
        assert (image.format, image.get_format_mimetype()) == ("VDVAE", "image/x-vdz")
        frames = getattr(expected, "n_frames", 1)
        assert (image.size, image.mode, image.n_frames) == (expected.size, expected.mode, frames)  # type: ignore[attr-defined]
        image.load(str(tiny_folder))  # type: ignore[call-arg]
        assert (image.size, image.mode) == (expected.size, expected.mode)
        assert np.array_equal(np.asarray(image), np.asarray(expected))
        assert np.array_equal(np.asarray(image.convert("RGBA")), np.asarray(expected.convert("RGBA")))


def test_in_a_new_process(photo_png: Path, tmp_path: Path) -> None:
    """Opening decodes nothing, and waits for no torch."""
    program = """
import sys
from PIL import Image, ImageChops
import vdvae_codec.plugins.pillow
photo = Image.open(sys.argv[1]).crop((0, 0, 40, 30))
assert "torch" not in sys.modules
photo.save("a.vdz", model="photo-2", device="cpu", fallback=False)
photo.convert("L").save("grey.vdz", model="mnist")

"""
    again = """
import sys
from PIL import Image, ImageChops
import vdvae_codec.plugins.pillow
image, grey = Image.open("a.vdz"), Image.open("grey.vdz")
assert (image.size, image.mode, grey.size, grey.mode) == ((40, 30), "RGB", (40, 30), "L")
Image.open("a.vdz").verify()
assert "torch" not in sys.modules
photo = Image.open(sys.argv[1]).crop((0, 0, 40, 30))
assert ImageChops.difference(image, photo).getbbox() is None
assert ImageChops.difference(grey, photo.convert("L")).getbbox() is None
assert "torch" in sys.modules
"""
    for text in (program, again):
        done = subprocess.run(
            [sys.executable, "-W", "error::ResourceWarning", "-c", text, str(photo_png)],
            cwd=tmp_path, capture_output=True, text=True,
        )
        assert done.returncode == 0 and not done.stderr, done.stderr


def test_frames_are_the_images_of_an_archive(archive: Path, tiny_folder: Path) -> None:
    with Image.open(archive) as image:
        assert (image.n_frames, image.is_animated) == (4, True)  # type: ignore[attr-defined]
        seen = []
        for frame in range(4):
            image.seek(frame)
            seen.append((image.tell(), image.size, image.mode, image.info["name"]))
        assert seen == [(0, (53, 37), "L", "grey"), (1, (30, 20), "RGB", "rgb"), (2, (53, 37), "P", "p.png"),
                        (3, (8, 9), "RGB", "b")]  # fmt: skip
        for frame in (4, -1):
            with pytest.raises(EOFError):
                image.seek(frame)
        image.load(str(tiny_folder))  # type: ignore[call-arg]
        assert np.array_equal(np.asarray(image), RGB[:9, :8])
        image.seek(1)
        assert image.info["icc_profile"] == ICC and image.getexif()[271] == "a camera"
        assert np.array_equal(np.asarray(image), RGB[:20, :30])
        image.seek(2)
        with Image.open(BytesIO(INDEXED["palette.png"])) as palette:
            assert image.getpalette() == palette.getpalette() and "icc_profile" not in image.info
            assert np.array_equal(np.asarray(image), np.asarray(palette))


def test_an_opened_image_is_like_any_other(archive: Path, tiny_folder: Path) -> None:
    with Image.open(archive) as image:
        image.load(str(tiny_folder))  # type: ignore[call-arg]
        for same in (image.copy(), pickle.loads(pickle.dumps(image))):
            assert np.array_equal(np.asarray(same), np.asarray(image)) and same.size == (53, 37)
        assert image.resize((5, 3)).size == (5, 3) and image.rotate(90, expand=True).size == (37, 53)


@pytest.mark.parametrize("format", ["PNG", "GIF", "WEBP", "TIFF"])
def test_animations_have_their_frames(format: str, photo: np.ndarray, tiny_folder: Path, tmp_path: Path) -> None:
    frames = [Image.fromarray(photo[n : n + 90, 2 * n : 2 * n + 120]) for n in (0, 9, 20)]
    more = {} if format == "TIFF" else {"duration": [100, 250, 70], "loop": 3}
    path = tmp_path / f"a.{format.lower()}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **more)
    vdz = tmp_path / "a.vdz"
    vdz.write_bytes(vdvae_codec.compress(path.read_bytes(), model=str(tiny_folder)))
    with Image.open(vdz) as image:
        assert (image.format, image.n_frames, image.is_animated, image.tell()) == ("VDVAE", 3, True, 0)  # type: ignore[attr-defined]
        for frame in (0, 1, 2, 1, 0, 2):
            image.seek(frame)
            with Image.open(path) as expected:
                expected.seek(frame)
                assert (image.tell(), image.size) == (frame, expected.size)
                assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(expected.convert("RGB")))
                assert image.mode == expected.mode and image.info == expected.info
        assert image.info.get("duration") == (None if format == "TIFF" else 70)
        for frame in (3, -1):
            with pytest.raises(EOFError):
                image.seek(frame)
        assert len(list(ImageSequence.Iterator(image))) == 3
        image.save(tmp_path / "again.gif", save_all=True)
    with Image.open(tmp_path / "again.gif") as again:
        assert again.n_frames == 3  # type: ignore[attr-defined]
    vdvae_codec.write_archive([("a", path.read_bytes())], vdz, model=str(tiny_folder))
    with Image.open(vdz) as image:
        image.seek(2)
        assert image.n_frames == 3 and image.info["name"] == "a"  # type: ignore[attr-defined]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_save(mode: str, tmp_path: Path, tiny_folder: Path) -> None:
    if mode == "I;16":
        image = Image.fromarray(RGB[..., 0].astype(np.uint16) * 200 + 7)
    else:
        image = Image.fromarray(RGB).convert(mode)
    path = tmp_path / "a.vdz"
    image.save(path, model=str(tiny_folder), device="cpu")
    with Image.open(path) as back:
        back.load(str(tiny_folder))  # type: ignore[call-arg]
        assert back.mode == image.mode == mode and np.array_equal(np.asarray(back), np.asarray(image))
        assert back.getpalette() == image.getpalette()


@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
def test_metadata(mode: str, fallback: bool, tiny_folder: Path) -> None:
    """Of images that are coded, of files that were written instead, and of the image's own file."""
    out = BytesIO()
    image = Image.fromarray(RGB).convert(mode)
    image.save(out, "VDVAE", model=str(tiny_folder), fallback=fallback, icc_profile=ICC, exif=exif(), xmp=XMP)
    for file in (out.getvalue(), vdvae_codec.decompress(out.getvalue(), model=str(tiny_folder))):
        with Image.open(BytesIO(file)) as back:
            assert back.info["icc_profile"] == ICC and back.getexif()[271] == "a camera" and back.info["xmp"] == XMP
    out = BytesIO()
    image.info["icc_profile"] = ICC
    image.save(out, "VDVAE", model=str(tiny_folder), fallback=fallback)
    with Image.open(out) as back:
        assert back.info["icc_profile"] == ICC and "exif" not in back.info


def test_metadata_of_rows(tiny_model: Released) -> None:
    tiff = saved(RGB, "TIFF", icc_profile=ICC)
    with Image.open(BytesIO(vdvae_codec.compress(tiff, model=tiny_model, fallback=False))) as image:
        assert image.mode == "RGB" and image.info["icc_profile"] == ICC


def test_save_all(archive: Path, tmp_path: Path, tiny_folder: Path) -> None:
    first, more = Image.fromarray(RGB), [Image.fromarray(RGB[:20, :30, 0]), Image.fromarray(RGB[:5])]
    path = tmp_path / "frames.vdz"
    first.save(path, save_all=True, append_images=more, model=str(tiny_folder))
    with Image.open(path) as image:
        assert image.n_frames == 3  # type: ignore[attr-defined]
        image.load(str(tiny_folder))  # type: ignore[call-arg]
        for frame, expected in enumerate([first, *more]):
            image.seek(frame)
            assert image.info["name"] == f"000{frame}.png" and np.array_equal(np.asarray(image), np.asarray(expected))
        image.seek(1)
        image.save(tmp_path / "again.vdz", save_all=True, model=str(tiny_folder))
        assert image.tell() == 1 and image.size == (30, 20)
    with vdvae_codec.open_archive(tmp_path / "again.vdz") as again:
        assert again.names == ["0000.png", "0001.png", "0002.png"]
    first.save(path, save_all=True, model=str(tiny_folder))
    with vdvae_codec.open_archive(path) as alone:
        assert alone.names == [""]


def test_what_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    out = tmp_path / "a.vdz"
    for mode in ("CMYK", "F", "HSV", "YCbCr"):
        with pytest.raises(OSError, match=f"cannot write mode {mode} as VDVAE"):
            Image.new(mode, (4, 4)).save(out, model=str(tiny_folder))
    with pytest.raises(OSError, match="neither a shipped model"):
        Image.new("RGB", (4, 4)).save(out, model="no-such-model")
    assert not out.exists()
    image = Image.new("RGB", (20, 20))
    image.save(out, model=str(tiny_folder), fallback=False)
    with Image.open(out) as opened, pytest.raises(OSError, match=r"'tiny' with digest .* is needed to decode"):
        opened.load()


def test_damage_is_found(archive: Path) -> None:
    """Everywhere: by opening, or by ``verify``, which a whole file passes."""
    data = archive.read_bytes()
    with Image.open(BytesIO(data)) as image:
        image.verify()
    with pytest.raises(UnidentifiedImageError):
        Image.open(BytesIO(b"\x89VDX" + data[4:]))
    for place in range(0, len(data), 41):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        for spoilt in (bytes(flipped), data[:place]):
            with pytest.raises(OSError) as error:
                Image.open(BytesIO(spoilt)).verify()
            assert "\n" not in str(error.value)


def test_a_stored_file_of_another_size_is_no_bomb(tiny_model: Released) -> None:
    """Its table says 53x37, which Pillow's limit allows; the file itself is larger."""
    small = INDEXED["palette.png"]
    with Image.open(BytesIO(small)) as image:
        grown = BytesIO()
        image.resize((540, 380)).save(grown, "PNG")
    (segment,) = vdvae_codec.open_archive(BytesIO(vdvae_codec.compress(small, model=tiny_model))).segments()
    entry = replace(segment.entries[0], file_bytes=len(grown.getvalue()))
    out = BytesIO()
    writer = Writer(out)
    writer.add(replace(segment, entries=(entry,), payload=grown.getvalue()))
    writer.finish()
    assert Reader(out).complete
    with pytest.raises(OSError, match="not of the size that the table says"):
        Image.open(out)


def test_a_vdz_is_no_input(archive: Path) -> None:
    """The package reads no .vdz as an image, though Pillow now does: files in files in files would have no end."""
    assert Image.registered_extensions()[".vdz"] == "VDVAE"
    with pytest.raises(ImageError, match="not an image file"):
        vdvae_codec.compress(archive.read_bytes())

"""Files of one and of many images: the laws that hold for both, random access, damage, and the process around us."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from codec_samples import coast_crops, png, screenshot
from image_samples import CODABLE, DEEP, FILES_ONLY, ICC, INDEXED, TRANSPARENT, XMP, exif, saved, scanned, stretched
from PIL import Image, ImageFile, PngImagePlugin

import vdvae_codec
from vdvae_codec.codec import archive, tiles
from vdvae_codec.codec.archive import (
    Archive,
    Folder,
    Report,
    compress,
    decompress,
    decompress_array,
    open_archive,
    write,
    write_archive,
)
from vdvae_codec.codec.store import Released, load_released
from vdvae_codec.errors import FormatError, ImageError, ModelError
from vdvae_codec.exact.arithmetic import precisions
from vdvae_codec.format.vdz import Entry, Reader
from vdvae_codec.images.files import Picture, picture_of, read_picture, write_image
from vdvae_codec.images.names import file_name
from vdvae_codec.scoring.score import score

TIME = 1_500_000_000
SAME_WITHIN = 64  # bytes: a name and a time


@pytest.fixture(scope="module")
def photo_model() -> Released:
    return load_released("photo-2", "cpu")


# --- one image is an archive of one ---


def kinds(photo: np.ndarray) -> dict[str, bytes]:
    """Files of images, one of each kind."""
    return {
        "photo": png(coast_crops()[9]), "grey": png(photo[..., :1]), "scan": png(scanned(photo)),
        "stretched": png(stretched(photo)), "screenshot": png(screenshot(0)),
        "grey screenshot": png(screenshot(1)[..., :1]),
        "16 bits": DEEP["noisy16.png"], "RGBA": TRANSPARENT["rgba.png"], "palette": INDEXED["palette.png"],
        "tiny": png(photo[:5, :7]), "flat": png(np.full((70, 90, 3), 200, np.uint8)), "JPEG": CODABLE["rgb.jpg"],
        "metadata": write_image(photo[:64, :64], {"icc": ICC, "exif": exif(), "xmp": XMP}, ".png"),
    }  # fmt: skip


KINDS = ("photo", "grey", "scan", "stretched", "screenshot", "grey screenshot", "16 bits", "RGBA", "palette", "tiny",
         "flat", "JPEG", "metadata")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_of_one_costs_what_the_file_costs(
    photo_model: Released, photo: np.ndarray, kind: str, tmp_path: Path
) -> None:
    data = kinds(photo)[kind]
    alone = compress(data, model=photo_model)
    report = write_archive([("a.png", data)], tmp_path / "a.vdz", model=photo_model, verify=False)
    together = (tmp_path / "a.vdz").read_bytes()
    assert len(alone) <= len(together) <= len(alone) + SAME_WITHIN
    assert report.output_bytes == len(together) and (report.images, report.segments) == (1, 1)
    if kind != "JPEG":
        assert len(alone) <= len(data) + SAME_WITHIN
    before = read_picture(data, "x.png")
    for vdz in (alone, together):
        after = read_picture(decompress(vdz, model=photo_model), "x.png")
        assert after.metadata == before.metadata
        if before.pixels is None:
            assert kind == "RGBA" or after.data == data
        else:
            assert after.pixels is not None and np.array_equal(after.pixels, before.pixels)


def test_archives_are_no_larger_than_their_files_and_inputs(photo_model: Released, tmp_path: Path) -> None:
    crops = coast_crops()
    images = {f"{n}.png": png(pixels) for n, pixels in enumerate((crops[7], screenshot(2), crops[14], screenshot(3)))}
    alone = sum(len(compress(data, model=photo_model, verify=False)) for data in images.values())
    report = write_archive(images.items(), tmp_path / "a.vdz", model=photo_model)
    assert report.output_bytes < 1.02 * alone and report.output_bytes < sum(map(len, images.values()))
    assert (report.images, report.stored) == (4, 2)
    screens = [(name, data) for name, data in images.items() if name in ("1.png", "3.png")]
    report = write_archive(screens, tmp_path / "b.vdz", model=photo_model)
    assert report.output_bytes < sum(len(data) for _, data in screens) and report.stored == 2


def test_transforms_apply_in_archives(photo_model: Released, photo: np.ndarray, tmp_path: Path) -> None:
    images = [("a", scanned(photo)), ("b", stretched(photo)), ("c", photo)]
    report = write_archive(images, tmp_path / "a.vdz", model=photo_model)
    assert report.transforms == ("PhotoCD", "chroma", "levels")
    alone = sum(len(compress(pixels, model=photo_model, verify=False)) for _, pixels in images)
    assert report.output_bytes < alone + 2 * SAME_WITHIN


def test_compress_and_decompress(tiny_model: Released, photo: np.ndarray) -> None:
    photo = photo[:50, :60]
    for image in (png(photo), photo, photo[..., 0], photo[..., :1]):
        back = read_picture(decompress(compress(image, model=tiny_model), model=tiny_model), "x.png").pixels
        expected = read_picture(image, "x.png").pixels if isinstance(image, bytes) else np.atleast_3d(image)
        assert back is not None and expected is not None and np.array_equal(back, expected)
    vdz = compress(photo, model=tiny_model, fallback=False)
    for suffix in (".tif", ".bmp", ".webp"):
        assert read_picture(decompress(vdz, suffix=suffix, model=tiny_model), "x" + suffix).suffix == suffix
    with pytest.raises(ImageError, match="lossless"):
        decompress(vdz, suffix=".jpg", model=tiny_model)
    with pytest.raises(ModelError, match=tiny_model.digest.hex()):
        decompress(vdz)
    with pytest.raises(ImageError, match="not an image"):
        compress(b"no image", model=tiny_model)


def test_arrays(tiny_model: Released, photo: np.ndarray) -> None:
    for pixels in (photo[:20, :30], photo[:20, :30, :1], np.full((20, 30, 3), 7, np.uint8)):
        for fallback in (True, False):
            vdz = compress(pixels, model=tiny_model, fallback=fallback)
            assert np.array_equal(decompress_array(vdz, model=tiny_model), pixels)
    assert np.array_equal(decompress_array(compress(photo[:9, :8, 0], model=tiny_model), model=tiny_model)[..., 0],
                          photo[:9, :8, 0])  # fmt: skip
    for name, colours in (("palette.png", "RGB"), ("rgba.png", "RGBA"), ("grey16.png", "I;16"), ("cmyk.jpg", "CMYK")):
        data = (DEEP | FILES_ONLY | INDEXED | TRANSPARENT)[name]
        with Image.open(BytesIO(data)) as image:
            expected = np.atleast_3d(np.asarray(image if image.mode == colours else image.convert(colours)))
        back = decompress_array(compress(data, model=tiny_model), model=tiny_model)
        assert back.dtype == expected.dtype and np.array_equal(back, expected)


def test_stored_files_come_back_under_their_own_suffix_only(tiny_model: Released) -> None:
    data = FILES_ONLY["animated.png"]
    vdz = compress(data, model=tiny_model)
    assert decompress(vdz) == decompress(vdz, suffix=".png") == data
    with pytest.raises(ImageError, match=r"kept as the \.png file"):
        decompress(vdz, suffix=".tif")


# --- many images ---


@pytest.fixture(scope="module")
def folder(photo: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of many sizes, modes and formats, in folders; a text."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "sub" / "deep").mkdir(parents=True)
    files = {f"{n:02}.png": png(photo[10 * n : 10 * n + 32, :32]) for n in range(6)}
    files |= {
        "sub/grey.png": write_image(photo[:40, :50, :1], {"icc": b"profile" * 20}, ".png"),
        "sub/large.bmp": write_image(photo[:100, :90], {}, ".bmp"),
        "sub/deep/flat.tif": write_image(np.full((70, 20, 3), 9, np.uint8), {}, ".tif"),
        "sub/ümläut name.png": png(photo[:7, :5]), "sub/deep.png": DEEP["noisy16.png"],
        "sub/photo.jpg": saved(photo, "JPEG"), "sub/transparent.png": TRANSPARENT["rgba.png"],
        "notes.txt": b"no image",
    }  # fmt: skip
    for name, data in files.items():
        (folder / name).write_bytes(data)
        os.utime(folder / name, (TIME + len(name), TIME + len(name)))
    return folder


@pytest.fixture(scope="module")
def pictures(folder: Path) -> list[Picture]:
    found = Folder(folder, pytest.fail)
    assert found.others == ["notes.txt"] and len(found) == 13
    return list(found)


@pytest.fixture(scope="module")
def vdz(pictures: list[Picture], tiny_model: Released, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four segments."""
    path = tmp_path_factory.mktemp("archive") / "mixed.vdz"
    with path.open("wb") as file:
        report = write(pictures, file, tiny_model, segment=4)
    assert (report.images, report.segments, report.model) == (13, 4, "tiny")
    assert report.output_bytes == path.stat().st_size
    assert report.output_bytes == report.word_bytes + report.stored_bytes + report.table_bytes
    assert report.input_bytes == sum(len(p.data) for p in pictures)
    assert report.dims == sum(p.pixels.size for p in pictures if p.pixels is not None)
    assert report.other_bytes < report.stored_bytes and report.bpd > 0
    return path


def check_same(after: Picture, before: Picture) -> None:
    assert (after.name, after.modified, after.width, after.height) == (
        before.name, before.modified, before.width, before.height
    )
    if before.pixels is not None:
        again = read_picture(after.to_bytes()[0], before.name)
        assert again.pixels is not None and np.array_equal(again.pixels, before.pixels)
        assert again.metadata == before.metadata
    else:
        assert after.data == before.data


def test_images_come_back_in_their_order(vdz: Path, pictures: list[Picture], tiny_model: Released) -> None:
    with open_archive(vdz, model=tiny_model) as opened:
        assert len(opened) == 13 and opened.names == [p.name for p in pictures]
        for after, before in zip(opened, pictures, strict=True):
            check_same(after, before)
        assert [(e.height, e.width) for e in opened.entries] == [(p.height, p.width) for p in pictures]
        assert len(list(opened.segments())) == 4


def test_random_access(vdz: Path, pictures: list[Picture], tiny_model: Released) -> None:
    with open_archive(vdz, model=tiny_model) as opened:
        for n in np.random.default_rng(0).permutation(13)[:5]:
            check_same(opened[int(n)], pictures[n])
            check_same(opened[pictures[n].name], pictures[n])
        check_same(opened[-1], pictures[-1])
        with pytest.raises(KeyError):
            opened["no such image"]
        with pytest.raises(IndexError):
            opened[13]


def test_a_part(vdz: Path, tiny_model: Released) -> None:
    with open_archive(vdz, model=tiny_model) as opened:
        found = opened.pictures(lambda name: name.startswith("sub/d"), lost=pytest.fail)
        assert [p.name for p in found] == ["sub/deep/flat.tif", "sub/deep.png"]
    with open_archive(vdz) as without_model:  # segments without such images are not decoded
        assert list(without_model.pictures(lambda name: False, lost=pytest.fail)) == []
        with pytest.raises(ModelError, match=r"'tiny'.*is needed"):
            list(without_model.pictures(lost=pytest.fail))
        with pytest.raises(ModelError, match=r"'tiny'.*is needed"):
            without_model["sub/photo.jpg"]


def test_decompress_wants_one_image(vdz: Path) -> None:
    for one in (decompress, decompress_array):
        with pytest.raises(FormatError, match="13 images: open_archive"):
            one(vdz.read_bytes())


def segments_in(vdz: Path) -> list[tuple[int, int]]:
    """Where each segment starts and ends."""
    with vdz.open("rb") as file:
        starts = [found.start for found in Reader(file).segments]
    data = vdz.read_bytes()
    index = int.from_bytes(data[-12:-8], "little")
    return list(zip(starts, [*starts[1:], len(data) - 16 - index]))


def test_one_image_waits_for_no_other_segment(vdz: Path, pictures: list[Picture], tiny_model: Released) -> None:
    """Its number, or its name, is found though the tables of all segments behind and before it are damaged."""
    data = bytearray(vdz.read_bytes())
    for n in (0, 1, 3):
        data[segments_in(vdz)[n][0] + 30] ^= 1
    with Archive(BytesIO(data), tiny_model) as opened:
        assert len(opened) == 13
        check_same(opened[9], pictures[9])
        check_same(opened[pictures[10].name], pictures[10])
        with pytest.raises(FormatError, match="damaged"):
            opened[0]
        with pytest.raises(FormatError, match="damaged"):
            assert opened.names


def restored(data: bytes, released: Released) -> tuple[list[Picture], list[str]]:
    lost: list[str] = []
    with Archive(BytesIO(data), released) as opened:
        return list(opened.pictures(lost=lost.append)), lost


@pytest.mark.parametrize("part", [0, 1, 3])
@pytest.mark.parametrize("where", ["head", "checksum", "table", "payload"])
def test_a_damaged_segment_costs_its_images_alone(
    vdz: Path, pictures: list[Picture], tiny_model: Released, part: int, where: str
) -> None:
    begin, end = segments_in(vdz)[part]
    data = bytearray(vdz.read_bytes())
    data[{"head": begin + 5, "checksum": begin + 18, "table": begin + 60, "payload": end - 9}[where]] ^= 4
    found, lost = restored(bytes(data), tiny_model)
    gone = pictures[4 * part : 4 * part + 4]
    (line,) = lost
    assert "\n" not in line and gone[0].name in line and gone[-1].name in line and "lost: " in line
    for after, before in zip(found, [p for p in pictures if p not in gone], strict=True):
        check_same(after, before)


def test_without_the_index(vdz: Path, pictures: list[Picture], tiny_model: Released) -> None:
    """A damaged end, and one that is missing with half of the last segment."""
    data = vdz.read_bytes()
    found, lost = restored(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:], tiny_model)
    assert len(lost) == 1 and "index at the end is missing or damaged" in lost[0]
    for after, before in zip(found, pictures, strict=True):
        check_same(after, before)
    found, lost = restored(data[: segments_in(vdz)[-1][0] + 30], tiny_model)
    assert len(lost) == 2 and "the images of the segment at byte" in lost[1] and "truncated" in lost[1]
    assert [p.name for p in found] == [p.name for p in pictures[:12]]
    with Archive(BytesIO(data[:-1]), tiny_model) as cut, pytest.raises(FormatError, match="index"):
        len(cut)


def test_no_flip_and_no_cut_gives_a_wrong_image(tiny_model: Released, photo: np.ndarray) -> None:
    file = BytesIO()
    sources = [picture_of(photo[8 * n : 8 * n + 8, :8], f"{n}") for n in range(3)]
    write(sources, file, tiny_model, segment=2, fallback=False)
    data = file.getvalue()
    spoilt = [data[:n] for n in range(0, len(data), 101)]
    for place in range(0, len(data), 23):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        spoilt.append(bytes(flipped))
    for other in spoilt:
        try:
            found, lost = restored(other, tiny_model)
        except FormatError:
            continue
        assert lost
        for picture in found:
            assert np.array_equal(picture.pixels, sources[int(picture.name)].pixels)  # type: ignore[arg-type]


def test_unreadable_files_are_named_and_the_rest_is_kept(folder: Path, tiny_model: Released, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes((folder / "00.png").read_bytes())
    (tmp_path / "in/b.png").write_bytes((folder / "01.png").read_bytes()[:100])
    (tmp_path / "in/\x1bc.png").write_bytes((folder / "01.png").read_bytes())
    failed: list[str] = []
    file = BytesIO()
    report = write(Folder(tmp_path / "in", failed.append), file, tiny_model)
    assert report.images == 1 and len(failed) == 2
    assert any("b.png: cannot be read" in line for line in failed)
    assert any("cannot hold" in line for line in failed) and "\x1b" not in "".join(failed)


def test_nothing_is_written_where_writing_fails(tiny_model: Released, photo: np.ndarray, tmp_path: Path) -> None:
    out = tmp_path / "a.vdz"
    out.write_bytes(b"as it was")

    def fails_later() -> Iterator[tuple[str, np.ndarray]]:
        yield "a", photo[:8, :8]
        yield "b", photo[:8, :8].astype(np.float32)

    bad = (
        fails_later(), [], [("a", photo[:8, :8]), ("b", b"no image")], [("../a", photo[:8, :8])],
        [("a", photo[:8, :8]), ("b", photo[:9, :8]), ("a", photo[:8, :9])],
    )  # fmt: skip
    for images in bad:
        with pytest.raises(ImageError):
            write_archive(images, out, model=tiny_model, segment=1)
        assert out.read_bytes() == b"as it was" and [p.name for p in tmp_path.iterdir()] == ["a.vdz"]
    with pytest.raises(ModelError):
        write_archive([("a", photo)], out, model="no-such-model")
    assert [p.name for p in tmp_path.iterdir()] == ["a.vdz"]


@pytest.mark.parametrize(
    "name", ["", "/a", "../a", "a/../../b", "a//b", "./a", "C:a", "a\\b", "a\nb", "a\x1b[2J", "..", "\ud800"]
)
def test_names_that_no_archive_holds(name: str, tiny_model: Released, photo: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="a name that an archive cannot hold"):
        write_archive([(name, photo[:8, :8])], tmp_path / "a.vdz", model=tiny_model)


def test_many_small_images_share_the_initial_bits(tiny_model: Released, photo: np.ndarray) -> None:
    """A chain of images costs less than the images one by one, and its bytes are all accounted for."""

    def report(pictures: list[Picture]) -> Report:
        file = BytesIO()
        found = write(pictures, file, tiny_model, fallback=False)
        assert found.output_bytes == len(file.getvalue())
        return found

    sources = [picture_of(photo[n : n + 32, n : n + 32], f"{n}") for n in range(20)]
    together = report(sources)
    assert together.segments == 1 and together.dims == 20 * 32 * 32 * 3
    apart = [report([source]).initial_bits for source in sources[:4]]
    assert 0 < together.initial_bits < 20 * sum(apart) / 4


def test_what_the_first_image_pays_for_all_is_not_its_own(tiny_model: Released, photo: np.ndarray) -> None:
    """Or the fallback would take its place, and the next image would be the first."""
    images = [photo[:32, :32]] * 20
    words = tiles.encode([*images, np.full((32, 32, 3), 90, np.uint8)], [None] * 21, tiny_model)
    assert words.direct == 1 and words.initial_bits > 50
    assert words.image_bits.sum() == pytest.approx(8 * len(words.payload), abs=64)
    assert words.image_bits[0] == pytest.approx(words.image_bits[1:20].mean(), rel=0.02)
    assert words.image_bits[20] < 0.8 * words.image_bits[0]


@pytest.mark.parametrize("count", [1, 2, 16, 17])
def test_few_images_are_coded_with_stacks_of_their_own(tiny_model: Released, photo: np.ndarray, count: int) -> None:
    """Where that is smaller: one image always is, and more than 16 are not tried."""
    images = [photo[n : n + 32, n : n + 32] for n in range(count)]
    words = tiles.encode(images, [None] * count, tiny_model)
    shapes = [image.shape for image in images]
    assert words.direct == len(words.groups) == len(words.stacks) if words.stacks else words.direct < len(words.groups)
    assert bool(words.stacks) or count > 1
    assert not (words.stacks and count > 16)
    stacks = [words.payload[end - size : end] for size, end in zip(words.stacks, np.cumsum(words.stacks))]
    direct = None if words.stacks else words.direct
    back = tiles.decode(shapes, [None] * count, words.groups, direct, stacks or [words.payload], tiny_model)
    assert all(map(np.array_equal, back, images))


def test_segments_are_bounded() -> None:
    def sizes(pictures: list[Picture], count: int = 10_000) -> list[int]:
        return [len(part) for part in archive.segments_of(pictures, count)]

    def claimed(width: int, metadata: int = 0) -> Picture:
        return Picture("x", None, b"", ".png", width, 2**13, {"icc": bytes(metadata)})

    assert sizes([claimed(1)] * 10, 4) == [4, 4, 2]
    assert sizes([claimed(2**12)] * 5) == [2, 2, 1]  # 2^25 pixels each
    assert sizes([claimed(2**20), claimed(1), claimed(2**20)]) == [1, 1, 1]
    assert sizes([claimed(1, 3 * 2**20)] * 5) == [2, 2, 1]
    assert sizes([]) == []


def test_file_names() -> None:
    grey, rgb = np.zeros((2, 2, 1), np.uint8), np.zeros((2, 2, 3), np.uint8)

    def name(own: str, pixels: np.ndarray | None, data: bytes = b"", **metadata: bytes) -> str:
        channels = 0 if pixels is None else pixels.shape[2]
        return file_name(Entry(own, None, 2, 2, channels, len(data), ".png" * bool(data), bool(data), metadata))

    assert name("a/b.jpg", rgb) == "a/b.jpg.png" and name("a.jpg", None, b"file") == "a.jpg"
    assert name("a.TIF", rgb, icc=ICC) == "a.TIF" and name("a.bmp", rgb) == "a.bmp"
    assert name("a.bmp", rgb, icc=ICC) == "a.bmp.png" and name("a", grey) == "a.png"
    assert name("a.pgm", grey) == "a.pgm" and name("a.pgm", rgb) == "a.pgm.png"


# --- the process around us ---


def process_state() -> dict[str, Any]:
    """What a caller would notice if we changed it."""
    return {
        "torch random": torch.get_rng_state().tolist(), "random": random.getstate(),
        "numpy random": str(np.random.get_state()), "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(), "autocast": torch.is_autocast_enabled("cpu"),
        "autocast dtype": torch.get_autocast_dtype("cpu"),
        "precisions": [owner.fp32_precision for pair in precisions() for owner in pair],
        "deterministic": torch.are_deterministic_algorithms_enabled(), "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(), "threads": torch.get_num_threads(),
        "denormals": float(torch.full((1,), 1e-39, dtype=torch.float32) * 1),
        "pillow": (Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY,
                   ImageFile.LOAD_TRUNCATED_IMAGES),
        "signals": [signal.getsignal(n) for n in signal.valid_signals()], "warnings": list(warnings.filters),
        "numpy errors": np.geterr(), "environment": dict(os.environ), "folder": Path.cwd(),
        "excepthook": sys.excepthook,
    }  # fmt: skip


@contextmanager
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def autocast() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16)


def everything(photo: np.ndarray, folder: Path) -> list[Any]:
    """What each function of the library gives."""
    data = png(photo[:50, :70])
    vdz = vdvae_codec.compress(data)
    report = vdvae_codec.write_archive([("a", photo[:40, :40]), ("b", DEEP["noisy16.png"])], folder / "a.vdz")
    with vdvae_codec.open_archive(folder / "a.vdz") as opened:
        back = [picture.to_bytes() for picture in opened]
    scores = score([photo[:64, :64]], model="photo-2")
    return [vdz, vdvae_codec.decompress(vdz), report, (folder / "a.vdz").read_bytes(), back, repr(scores)]


@pytest.fixture(scope="module")
def usual(photo: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return everything(photo, tmp_path_factory.mktemp("usual"))


@pytest.mark.parametrize("setting", [autocast, float64, torch.enable_grad, torch.inference_mode])
def test_the_process_is_left_as_it_was_and_changes_nothing(
    setting: Any, photo: np.ndarray, tmp_path: Path, usual: list[Any]
) -> None:
    before = process_state()
    with setting():
        inside = process_state()
        assert everything(photo, tmp_path) == usual
        assert process_state() == inside
    assert process_state() == before


def test_torch_compile_leaves_it_as_it_is(photo: np.ndarray) -> None:
    data = png(photo[:50, :70])

    def there_and_back(data: bytes, x: torch.Tensor) -> tuple[bytes, bytes, str, torch.Tensor]:
        vdz = vdvae_codec.compress(data)
        return vdz, vdvae_codec.decompress(vdz), repr(score([data], model="photo-2")), x + 1

    try:
        found = torch.compile(there_and_back, backend="eager")(data, torch.ones(2))
    finally:
        torch.compiler.reset()
    assert found[3].tolist() == [2, 2] and found[:3] == there_and_back(data, torch.ones(2))[:3]


FORK = """
import os, sys, torch
from pathlib import Path
import vdvae_codec
torch.set_num_threads(2)
image = Path(sys.argv[1]).read_bytes()
vdz = vdvae_codec.compress(image, model="mnist", fallback=False)
read, write = os.pipe()
if os.fork() == 0:
    same = vdvae_codec.compress(image, model="mnist", fallback=False) == vdz
    os.write(write, bytes([same, torch.get_num_threads()]))
    os._exit(0)
print(*os.read(read, 2))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forked_processes_go_on(tmp_path: Path, photo: np.ndarray) -> None:
    """The threads of the parent's pool are not in the child, which must not wait for them."""
    (tmp_path / "x.png").write_bytes(png(photo[:28, :28, :1]))
    command = [sys.executable, "-c", FORK, str(tmp_path / "x.png")]
    two = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=two)
    assert done.stdout == "1 2\n"


WRITE = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(int(sys.argv[1]))
import numpy as np
import vdvae_codec
from vdvae_codec.images.files import read_rgb
coast = read_rgb(Path(sys.argv[2]))
out = Path(sys.argv[3])
out.mkdir()
crop = coast[128:256, 384:512]
(out / "photo.vdz").write_bytes(vdvae_codec.compress(crop, fallback=False))
small = [(f"{n}", np.ascontiguousarray(crop[32 * n : 32 * n + 32, :32])) for n in range(2)]
vdvae_codec.write_archive(small, out / "small.vdz", model="cifar10-causal", fallback=False)
"""


def test_fresh_processes_write_the_same_bytes(tmp_path: Path) -> None:
    """One of an old CPU and one thread, and one that takes what there is."""
    coast = Path(__file__).parents[2] / "examples" / "coast.png"
    plain = {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"}
    passive = {"OMP_WAIT_POLICY": "PASSIVE"}  # or two threads on a busy machine wait for each other for ever
    for threads, environment in ((1, plain), (2, passive)):
        command = [sys.executable, "-c", WRITE, f"{threads}", str(coast), str(tmp_path / f"{threads}")]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
        assert (done.returncode, done.stderr) == (0, "")
    for name in ("photo.vdz", "small.vdz"):
        data = (tmp_path / "1" / name).read_bytes()
        assert data == (tmp_path / "2" / name).read_bytes()
        with open_archive(tmp_path / "2" / name, device="cpu") as opened:
            assert {segment.model for segment in opened.segments()} <= {"photo-2", "cifar10-causal"}
            assert all(isinstance(picture.pixels, np.ndarray) for picture in opened)

"""Archives of many images: from folder to folder, damage, names, segments."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from vdvae_codec import sets
from vdvae_codec.archive import Entry, Reader, Segment, is_safe
from vdvae_codec.cli.main import main
from vdvae_codec.errors import FormatError, ImageError
from vdvae_codec.images import read_picture, write_image
from vdvae_codec.released import Released

TIME = 1_500_000_000


@pytest.fixture(scope="module")
def folder(photo: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of many sizes, modes and formats, in folders; a text; a broken image is added where it matters."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "sub" / "deep").mkdir(parents=True)

    def put(name: str, data: bytes) -> None:
        (folder / name).write_bytes(data)
        os.utime(folder / name, (TIME + len(name), TIME + len(name)))

    for n in range(6):
        put(f"{n:02d}.png", write_image(photo[10 * n : 10 * n + 32, :32], {}, ".png"))
    put("sub/grey.png", write_image(photo[:40, :50, :1], {"icc": b"profile" * 20}, ".png"))
    put("sub/large.bmp", write_image(photo[:100, :90], {}, ".bmp"))
    put("sub/deep/flat.tif", write_image(np.full((70, 20, 3), 9, np.uint8), {}, ".tif"))
    put("sub/\u00fcml\u00e4ut name.png", write_image(photo[:7, :5], {}, ".png"))
    for name, image in (
        ("sub/deep.png", Image.fromarray(photo[..., 0].astype(np.uint16) * 257)),
        ("sub/photo.jpg", Image.fromarray(photo)),
        ("sub/transparent.png", Image.fromarray(np.concatenate([photo, photo[..., :1]], 2))),
    ):
        image.save(folder / name, quality=90)
    put("notes.txt", b"no image")
    return folder


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, [str(a) for a in arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


@pytest.fixture(scope="module")
def archive(folder: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("archive") / "mixed.vdz"
    code, text = run("compress", folder, "-o", out, "--model", tiny_folder, "--segment", 4)
    assert code == 0 and "1 files are no images and not in the archive: notes.txt" in text, text
    assert "13 images" in text
    return out


def pixels_of(path: Path) -> tuple[str, np.ndarray]:
    with Image.open(path) as image:
        return image.mode, np.asarray(image)


def images_in(folder: Path) -> dict[str, tuple[str, np.ndarray]]:
    paths = (p for p in folder.rglob("*") if p.is_file() and p.suffix != ".txt")
    return {p.relative_to(folder).as_posix(): pixels_of(p) for p in sorted(paths)}


def check_same(restored: Path, folder: Path) -> None:
    want, got = images_in(folder), images_in(restored)
    assert got.keys() == {f"{name}.png" if name.endswith(".jpg") else name for name in want}
    for name, (mode, pixels) in want.items():
        name_back = f"{name}.png" if name.endswith(".jpg") else name
        assert got[name_back][0] == mode and np.array_equal(got[name_back][1], pixels), name
        if not name.endswith((".jpg", "deep.png", "transparent.png")):
            assert (restored / name).stat().st_mtime == TIME + len(name)


def test_folder_to_folder(archive: Path, folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    program = "import sys; from vdvae_codec.cli.main import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, "decompress", archive, "-o", tmp_path / "out", "--model", tiny_folder]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_same(tmp_path / "out", folder)
    metadata = read_picture((tmp_path / "out/sub/grey.png").read_bytes(), "grey").metadata
    assert metadata == {"icc": b"profile" * 20}
    code, text = run("decompress", archive, "-o", tmp_path / "out", "--model", tiny_folder)
    assert code == 1 and "exists already" in text


def test_a_part(archive: Path, folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    code, text = run("decompress", archive, "-o", tmp_path, "--model", tiny_folder, "--only", "sub/large.bmp")
    assert code == 0 and list(images_in(tmp_path)) == ["sub/large.bmp"], text
    code, _ = run("decompress", archive, "-o", tmp_path, "--model", tiny_folder, "--only", "0[0-2].png")
    assert code == 0 and list(images_in(tmp_path)) == ["00.png", "01.png", "02.png", "sub/large.bmp"]
    code, text = run("decompress", archive, "-o", tmp_path, "--model", tiny_folder, "--only", "nothing")
    assert code == 1 and "holds no image nothing" in text


def test_info(archive: Path, folder: Path) -> None:
    code, text = run("info", archive, "--json")
    rows = [json.loads(line) for line in text.splitlines()]
    assert code == 0 and [row["name"] for row in rows] == list(images_in(folder))
    sizes = {row["name"]: (row["height"], row["width"], row["channels"]) for row in rows}
    assert sizes["sub/grey.png"] == (40, 50, 1) and sizes["00.png"] == (32, 32, 3)
    assert sizes["sub/deep.png"] == (None, None, None)
    code, text = run("info", archive)
    assert code == 0 and "90x100x3  sub/large.bmp" in text


def segments_in(archive: Path) -> list[tuple[int, int]]:
    with archive.open("rb") as file:
        reader = Reader(file)
        starts = [found.start for found in reader.segments]
    data = archive.read_bytes()
    tail = data.rfind(b"\xfd7zXZ")  # the index
    return list(zip(starts, [*starts[1:], tail]))


@pytest.mark.parametrize("part", [0, 1, 3])
@pytest.mark.parametrize("where", ["head", "table", "payload"])
def test_a_damaged_segment_costs_its_images_alone(
    archive: Path, folder: Path, tiny_folder: Path, tmp_path: Path, part: int, where: str
) -> None:
    names = list(images_in(folder))
    begin, end = segments_in(archive)[part]
    place = {"head": begin + 5, "table": begin + 60, "payload": end - 9}[where]
    data = bytearray(archive.read_bytes())
    data[place] ^= 4
    (tmp_path / "a.vdz").write_bytes(data)
    code, text = run("decompress", tmp_path / "a.vdz", "-o", tmp_path / "out", "--model", tiny_folder)
    lost = names[4 * part : 4 * part + 4]
    assert code == 1
    assert re.search(f"{len(lost)} images, {lost[0]} to {lost[-1]}, are lost" if len(lost) > 1 else lost[0], text)
    left = {n.removesuffix(".png") if n.endswith(".jpg.png") else n for n in images_in(tmp_path / "out")}
    assert left == set(names) - set(lost)


def test_without_the_index(archive: Path, folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """A damaged end, and one that is missing with half of the last segment."""
    data = archive.read_bytes()
    (tmp_path / "a.vdz").write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    code, text = run("decompress", tmp_path / "a.vdz", "-o", tmp_path / "out", "--model", tiny_folder)
    assert code == 1 and "index at the end is missing or damaged" in text
    check_same(tmp_path / "out", folder)
    (tmp_path / "b.vdz").write_bytes(data[: segments_in(archive)[-1][0] + 30])
    code, text = run("decompress", tmp_path / "b.vdz", "-o", tmp_path / "b", "--model", tiny_folder)
    assert code == 1 and "are lost: truncated" in text
    assert len(images_in(tmp_path / "b")) == 12


def test_no_flip_and_no_cut_gives_a_wrong_image(
    tiny_model: Released, tiny_folder: Path, photo: np.ndarray
) -> None:
    sources = [sets.Source(f"{n}", photo[8 * n : 8 * n + 8, :8]) for n in range(3)]
    file = BytesIO()
    sets.write_archive(sources, file, str(tiny_folder), "cpu", segment=2)
    data = file.getvalue()
    rng = np.random.default_rng(0)
    spoilt = [data[:n] for n in range(0, len(data), 7)]
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.integers(8)
        spoilt.append(bytes(flipped))
    for other in spoilt:
        lost: list[str] = []
        try:
            found = list(sets.read_archive(BytesIO(other), str(tiny_folder), "cpu", lost=lost.append))
        except FormatError:
            continue
        assert lost
        for member in found:
            assert np.array_equal(member.pixels, sources[int(member.entry.name)].content)


def test_unreadable_files_are_named_and_the_rest_is_kept(folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes((folder / "00.png").read_bytes())
    (tmp_path / "in/b.png").write_bytes((folder / "01.png").read_bytes()[:100])
    code, text = run("compress", tmp_path / "in", "--model", tiny_folder)
    assert code == 1 and "b.png: cannot be read" in text and "1 files could not be read" in text
    code, text = run("info", tmp_path / "in.vdz")
    assert code == 0 and text.split() == ["32x32x3", "a.png"]
    (tmp_path / "empty").mkdir()
    code, text = run("compress", tmp_path / "empty", "--model", tiny_folder)
    assert code == 1 and "no images" in text and not (tmp_path / "empty.vdz").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "in", "in.vdz"]


def test_many_small_images_share_the_initial_bits(tiny_model: Released, tiny_folder: Path, photo: np.ndarray) -> None:
    """A chain of images costs less than the images one by one, and its bytes are all accounted for."""
    sources = [sets.Source(f"{n}", photo[n : n + 32, n : n + 32]) for n in range(40)]
    file = BytesIO()
    report = sets.write_archive(sources, file, str(tiny_folder), "cpu")
    assert report.file_bytes == len(file.getvalue()) == report.word_bytes + report.stored_bytes + report.table_bytes
    assert report.segments == 1 and report.dims == 40 * 32 * 32 * 3
    apart = 0.0
    for source in sources[:4]:
        alone = sets.write_archive([source], BytesIO(), str(tiny_folder), "cpu")
        apart += alone.initial_bits
    assert 0 < report.initial_bits < 2 * apart / 4
    back = list(sets.read_archive(file, str(tiny_folder), "cpu", lost=pytest.fail))
    assert [m.entry.name for m in back] == [s.name for s in sources]
    assert all(np.array_equal(m.pixels, s.content) for m, s in zip(back, sources))


def test_flat_images_pay_for_themselves(tiny_folder: Path) -> None:
    sources = [sets.Source(f"{n}", np.full((8 + 8 * (n % 3), 16, 1 + 2 * (n % 2)), 255, np.uint8)) for n in range(24)]
    file = BytesIO()
    sets.write_archive(sources, file, str(tiny_folder), "cpu")
    back = list(sets.read_archive(file, str(tiny_folder), "cpu", lost=pytest.fail))
    assert all(np.array_equal(m.pixels, s.content) for m, s in zip(back, sources, strict=True))


@pytest.mark.parametrize(
    "name", ["", "/a", "../a", "a/../../b", "a//b", "./a", "C:a", "a\\b", "a\nb", "a\x1b[2J", "..", "\ud800"]
)
def test_names_that_no_archive_holds(name: str, tiny_folder: Path, photo: np.ndarray) -> None:
    assert not is_safe(name)
    with pytest.raises(ImageError, match="a name that an archive cannot hold"):
        sets.write_archive([sets.Source(name, photo[:8, :8])], BytesIO(), str(tiny_folder), "cpu")
    with pytest.raises(FormatError, match="impossible name"):
        Segment("m", bytes(16), (Entry(name, None, (8, 8, 3)),), (1,), 1, 0, 0, b"")


def test_arrays_of_other_kinds_are_refused(tiny_folder: Path, photo: np.ndarray) -> None:
    for array in (photo.astype(np.float32), photo[..., :2], photo[..., 0], photo[:0]):
        with pytest.raises(ImageError, match=r"x: expected \(H, W, 1 or 3\) uint8"):
            sets.write_archive([sets.Source("x", array)], BytesIO(), str(tiny_folder), "cpu")


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), np.uint8)
    (tmp_path / "in" / "noise.png").write_bytes(write_image(noise, {}, ".png"))
    program = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started the tests with it ignored
from vdvae_codec.cli.main import main
main()
"""
    command = [sys.executable, "-c", program, "compress", str(tmp_path / "in"), "-o", str(tmp_path / "set.vdz")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.glob(".set.vdz.*")) and process.poll() is None:
            time.sleep(0.05)
        time.sleep(2)  # safetensors makes an error of its own of an interrupted reading: the model is to be loaded
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out, err.strip()) == (1, "", "Aborted!")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]

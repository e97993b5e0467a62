"""A folder to an archive and back, by the command line; damage, parts, names."""

from __future__ import annotations

import json
import os
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from command_line import invoke, names, run
from PIL import Image

from vdvae_codec.cli.main import main
from vdvae_codec.codec.archive import write
from vdvae_codec.codec.store import Released
from vdvae_codec.format.vdz import MAX_TIME, Entry, Reader, Segment, Writer
from vdvae_codec.images.files import picture_of, read_picture, write_image

TIME = 1_500_000_000


@pytest.fixture(scope="module")
def folder(photo: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of many sizes, modes and formats, in folders; and a text."""
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


@pytest.fixture(scope="module")
def archive(folder: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("archive") / "mixed.vdz"
    code, text = invoke("compress", folder, "-o", out, "--model", tiny_folder, "--segment", 4, "--no-fallback")
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
    done = run("decompress", archive, "-o", tmp_path / "out", "--model", tiny_folder)
    assert done.returncode == 0, done.stderr
    check_same(tmp_path / "out", folder)
    metadata = read_picture((tmp_path / "out/sub/grey.png").read_bytes(), "grey").portable()
    assert metadata == {"icc": b"profile" * 20}
    code, text = invoke("decompress", archive, "-o", tmp_path / "out", "--model", tiny_folder)
    assert code == 1 and "exists already" in text


def test_json_of_a_folder(folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    arguments = ["compress", str(folder), "-o", str(tmp_path), "--model", str(tiny_folder), "--json"]
    row = json.loads(CliRunner().invoke(main, arguments).stdout)
    assert row["output"] == str(tmp_path / f"{folder.name}.vdz") and (row["images"], row["failed"]) == (13, 0)
    assert row["output_bytes"] == Path(row["output"]).stat().st_size
    assert row["output_bytes"] == row["word_bytes"] + row["stored_bytes"] + row["table_bytes"]
    assert row["bpd"] == 8 * (row["output_bytes"] - row["other_bytes"]) / row["dims"]
    sizes = [p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.suffix != ".txt"]
    assert row["input_bytes"] == sum(sizes) > row["output_bytes"]
    arguments = ["decompress", row["output"], "-o", str(tmp_path / "out"), "--model", str(tiny_folder), "--json"]
    row = json.loads(CliRunner().invoke(main, arguments).stdout)
    assert (row["images"], row["lost"]) == (13, [])
    assert row["output_bytes"] == sum(p.stat().st_size for p in (tmp_path / "out").rglob("*") if p.is_file())


def test_a_part(archive: Path, tiny_folder: Path, tmp_path: Path) -> None:
    code, text = invoke("decompress", archive, "-o", tmp_path, "--model", tiny_folder, "--only", "sub/large.bmp")
    assert code == 0 and list(images_in(tmp_path)) == ["sub/large.bmp"], text
    code, _ = invoke("decompress", archive, "-o", tmp_path, "--model", tiny_folder, "--only", "0[0-2].png")
    assert code == 0 and list(images_in(tmp_path)) == ["00.png", "01.png", "02.png", "sub/large.bmp"]
    code, text = invoke("decompress", archive, "-o", tmp_path, "--model", tiny_folder, "--only", "nothing")
    assert code == 1 and "holds no image nothing" in text


def test_info(archive: Path, folder: Path) -> None:
    code, text = invoke("info", archive, "--json")
    row = json.loads(text)
    assert code == 0 and (row["images"], row["segments"]) == (13, 4)
    assert row["file_bytes"] == archive.stat().st_size
    assert [entry["name"] for entry in row["entries"]] == list(images_in(folder))
    sizes = {entry["name"]: (entry["height"], entry["width"], entry["channels"]) for entry in row["entries"]}
    assert sizes["sub/grey.png"] == (40, 50, 1) and sizes["00.png"] == (32, 32, 3)
    assert sizes["sub/deep.png"] == (120, 160, 1)
    code, text = invoke("info", archive)
    assert code == 0 and "90x100x3  sub/large.bmp" in text and re.search(r"images  13\n", text)


def segments_in(archive: Path) -> list[tuple[int, int]]:
    """Where the segments begin and end."""
    data = archive.read_bytes()
    starts = [found.start for found in Reader(BytesIO(data)).segments]
    index = len(data) - 16 - int.from_bytes(data[-12:-8], "little")
    return list(zip(starts, [*starts[1:], index]))


@pytest.mark.parametrize("part", [0, 1, 3])
@pytest.mark.parametrize("where", ["head", "table", "payload"])
def test_a_damaged_segment_costs_its_images_alone(
    archive: Path, folder: Path, tiny_folder: Path, tmp_path: Path, part: int, where: str
) -> None:
    every = list(images_in(folder))
    begin, end = segments_in(archive)[part]
    place = {"head": begin + 5, "table": begin + 60, "payload": end - 9}[where]
    data = bytearray(archive.read_bytes())
    data[place] ^= 4
    (tmp_path / "a.vdz").write_bytes(data)
    code, text = invoke("decompress", tmp_path / "a.vdz", "-o", tmp_path / "out", "--model", tiny_folder)
    lost = every[4 * part : 4 * part + 4]
    shown = f"{len(lost)} images, {lost[0]} to {lost[-1]}, lost: " if len(lost) > 1 else f"{lost[0]} lost: "
    assert code == 1 and f"{tmp_path / 'a.vdz'}: {shown}" in text
    left = {n.removesuffix(".png") if n.endswith(".jpg.png") else n for n in images_in(tmp_path / "out")}
    assert left == set(every) - set(lost)
    code, text = invoke("info", tmp_path / "a.vdz")
    assert code == 1 and shown in text
    assert [name for name in every if f"  {name}\n" in text] == [name for name in every if name not in lost]


def test_without_the_index(archive: Path, folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """A damaged end, and one that is missing with half of the last segment."""
    data = archive.read_bytes()
    (tmp_path / "a.vdz").write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    code, text = invoke("decompress", tmp_path / "a.vdz", "-o", tmp_path / "out", "--model", tiny_folder)
    assert code == 1 and "index at the end is missing or damaged" in text
    check_same(tmp_path / "out", folder)
    (tmp_path / "b.vdz").write_bytes(data[: segments_in(archive)[-1][0] + 30])
    code, text = invoke("decompress", tmp_path / "b.vdz", "-o", tmp_path / "b", "--model", tiny_folder)
    assert code == 1 and "lost: truncated" in text
    assert len(images_in(tmp_path / "b")) == 12


def test_unreadable_files_are_named_and_the_rest_is_kept(folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes((folder / "00.png").read_bytes())
    (tmp_path / "in/b.png").write_bytes((folder / "01.png").read_bytes()[:100])
    code, text = invoke("compress", tmp_path / "in", "--model", tiny_folder)
    assert code == 1 and "b.png: cannot be read" in text and "1 files could not be read" in text
    code, text = invoke("info", tmp_path / "in.vdz", "--json")
    assert code == 0 and [entry["name"] for entry in json.loads(text)["entries"]] == ["a.png"]
    (tmp_path / "empty").mkdir()
    code, text = invoke("compress", tmp_path / "empty", "--model", tiny_folder)
    assert code == 1 and "no images" in text and not (tmp_path / "empty.vdz").exists()
    assert names(tmp_path) == ["empty", "in", "in.vdz"]


def test_a_folder_of_one_image_stays_a_folder(folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """Its image has a name; that of a file has none."""
    (tmp_path / "one-1.5").mkdir()
    (tmp_path / "one-1.5" / "a.png").write_bytes((folder / "00.png").read_bytes())
    assert invoke("compress", tmp_path / "one-1.5", "--model", tiny_folder)[0] == 0
    out = tmp_path / "out"
    assert invoke("decompress", tmp_path / "one-1.5.vdz", "-o", out, "--model", tiny_folder)[0] == 0
    assert names(out) == ["a.png"] and names(tmp_path) == ["one-1.5", "one-1.5.vdz", "out"]
    assert invoke("compress", folder / "00.png", "-o", tmp_path / "file.vdz", "--model", tiny_folder)[0] == 0
    code, text = invoke("decompress", tmp_path / "file.vdz", "--only", "*", "--model", tiny_folder)
    assert code == 2 and "no archive" in text
    assert invoke("decompress", tmp_path / "file.vdz", "--model", tiny_folder)[0] == 0
    assert (tmp_path / "file.png").exists()


def test_names_do_not_collide(folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """A JPEG becomes a PNG, whose name another image may have."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes((folder / "sub" / "photo.jpg").read_bytes())
    (tmp_path / "in" / "a.jpg.png").write_bytes((folder / "00.png").read_bytes())
    options = "--model", tiny_folder, "--force"
    assert invoke("compress", tmp_path / "in", "--no-fallback", *options)[0] == 0
    code, text = invoke("decompress", tmp_path / "in.vdz", "-o", tmp_path / "out", *options)
    assert code == 0 and names(tmp_path / "out") == ["a.jpg.png", "a.jpg.png.png"], text
    back = images_in(tmp_path / "out")
    assert np.array_equal(back["a.jpg.png"][1], pixels_of(folder / "00.png")[1])
    assert np.array_equal(back["a.jpg.png.png"][1], pixels_of(folder / "sub" / "photo.jpg")[1])


def test_hostile_archives(tiny_model: Released, tiny_folder: Path, photo: np.ndarray, tmp_path: Path) -> None:
    """Two segments with an image of the same name, and times that no system has."""
    file = BytesIO()
    writer = Writer(file)
    for n in range(2):
        part = BytesIO()
        write([picture_of(photo[n : n + 8, :8], "a.png", MAX_TIME - 1 - n)], part, tiny_model, verify=False)
        reader = Reader(part)
        writer.add(reader.segment(reader.segments[0]))
    writer.finish()
    (tmp_path / "a.vdz").write_bytes(file.getvalue())
    code, text = invoke("decompress", tmp_path / "a.vdz", "-o", tmp_path / "out", "--model", tiny_folder, "--force")
    assert code == 1 and "a.png lost: a.png: another image before it has this name" in text
    assert np.array_equal(pixels_of(tmp_path / "out" / "a.png")[1], photo[:8, :8])


def test_names_in_a_damaged_archive_do_not_reach_the_terminal(tiny_folder: Path, tmp_path: Path) -> None:
    """The index is read before the tables: its names are anything."""
    odd = "a\x1b[2J.png"
    file = BytesIO()
    writer = Writer(file)
    for name in ("x.png", "y.png"):
        entry = Entry(name, None, 1, 1, 0, 3, ".png", True)
        writer.add(Segment((entry,), "", bytes(16), (), 0, 0, 0, b"abc"))
    object.__setattr__(entry, "name", odd)  # no Entry can be made of it
    writer.finish()
    (tmp_path / "a.vdz").write_bytes(file.getvalue())
    for command in (["info"], ["decompress", "-o", tmp_path / "out"], ["info", "--json"]):
        code, text = invoke(command[0], tmp_path / "a.vdz", *command[1:])
        assert code == 1 and "\\x1b[2J.png" in text and all(c.isprintable() for c in text if c != "\n"), text

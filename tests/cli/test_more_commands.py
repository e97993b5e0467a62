"""The commands test, cat and add; archives on stdin; results as JSON."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from command_line import errors, invoke, run

from vdvae_codec.codec.archive import open_archive, write_archive
from vdvae_codec.codec.store import Released
from vdvae_codec.images.files import file_pixels, write_image


@pytest.fixture
def archive(photo: np.ndarray, tiny_model: Released, tmp_path: Path) -> Path:
    """a.png and sub/b.png, a segment each."""
    images = [("a.png", photo[:24, :20]), ("sub/b.png", photo[30:60, :20])]
    write_archive(images, tmp_path / "x.vdz", model=tiny_model, segment=1)
    return tmp_path / "x.vdz"


@pytest.fixture
def single(photo: np.ndarray, tiny_folder: Path, tmp_path: Path) -> Path:
    (tmp_path / "one.bmp").write_bytes(write_image(photo[:24, :20], {}, ".bmp"))
    assert invoke("compress", tmp_path / "one.bmp", "--model", tiny_folder)[0] == 0
    return tmp_path / "one.vdz"


def damaged(archive: Path) -> Path:
    """The archive with an error in its second segment."""
    with open_archive(archive) as opened:
        place = opened.reader.segments[1].start + 60
    data = bytearray(archive.read_bytes())
    data[place] ^= 1
    (archive.parent / "bad.vdz").write_bytes(data)
    return archive.parent / "bad.vdz"


def test_files_are_tested_and_nothing_is_written(archive: Path, single: Path, tiny_folder: Path) -> None:
    bad = damaged(archive)
    before = sorted(archive.parent.iterdir())
    code, text = invoke("test", archive, single, "--model", tiny_folder)
    assert code == 0 and text == f"{archive}: 2 images, all whole\n{single}: 1 images, all whole\n"
    code, text = invoke("test", archive, bad, single, "--model", tiny_folder)
    assert code == 1 and f"Error: {bad}: sub/b.png lost: " in text and f"{bad}: damaged; 1 images are whole" in text
    assert f"{single}: 1 images, all whole" in text and sorted(archive.parent.iterdir()) == before
    code, text = invoke("test", bad, archive, "--json", "--model", tiny_folder)
    rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert [(row["images"], len(row["lost"])) for row in rows] == [(1, 1), (2, 0)]


def test_cat(archive: Path, single: Path, tiny_folder: Path, photo: np.ndarray) -> None:
    result = run("cat", archive, "sub/b.png", "--model", tiny_folder)
    assert result.returncode == 0 and np.array_equal(file_pixels(result.stdout), photo[30:60, :20])
    result = run("cat", "-", "--model", tiny_folder, stdin=single.read_bytes())
    assert result.returncode == 0 and result.stdout == single.with_suffix(".bmp").read_bytes()
    for arguments, status, text in (
        ([archive], 2, "give the NAME"), ([single, "x"], 2, "is no archive"), ([archive, "x"], 1, "holds no image x"),
    ):
        code, said = invoke("cat", *arguments, "--model", tiny_folder)
        assert code == status and text in said


def test_images_are_added_behind_the_others(
    archive: Path, single: Path, tiny_folder: Path, photo: np.ndarray, tmp_path: Path
) -> None:
    old = archive.read_bytes()
    archive.chmod(0o600)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "c.png").write_bytes(write_image(photo[5:40, :16], {}, ".png"))
    (tmp_path / "a.png").write_bytes(b"whatever this is: no image")
    bmp = single.with_suffix(".bmp")
    code, text = invoke("add", archive, bmp, tmp_path / "more", tmp_path / "a.png", "--model", tiny_folder, "--json")
    assert code == 1 and f"Error: {tmp_path / 'a.png'}: not an image" in text and "1 images were not added" in text
    row = json.loads(next(line for line in text.splitlines() if line.startswith("{")))
    assert (row["images"], row["output_bytes"]) == (2, archive.stat().st_size)
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    with open_archive(archive, model=str(tiny_folder)) as opened:
        assert opened.names == ["a.png", "sub/b.png", "one.bmp", "more/c.png"]
        assert opened["one.bmp"].to_bytes()[0] == bmp.read_bytes()
        end = opened.reader.segments[1].start
        assert archive.read_bytes()[:end] == old[:end]  # the first segment, as it was
        third = opened["more/c.png"].pixels
        assert third is not None and np.array_equal(third, photo[5:40, :16])


def test_an_archive_stays_as_it_was_where_nothing_can_be_added(
    archive: Path, single: Path, tiny_folder: Path, photo: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(write_image(photo[:9, :9], {}, ".png"))
    bad = damaged(archive)
    for target, image, reason in (
        (archive, tmp_path / "a.png", "a.png is in the archive already"),
        (archive, tmp_path / "gone.png", "No such file"),
        (bad, single.with_suffix(".bmp"), "is damaged"), (single, tmp_path / "a.png", "single image"),
    ):
        before = target.read_bytes()
        code, text = invoke("add", target, image, "--model", tiny_folder)
        assert code == 1 and reason in text and target.read_bytes() == before
    assert not list(tmp_path.glob(".vdvae-codec-*"))


def test_archives_on_stdin(archive: Path, tiny_folder: Path, photo: np.ndarray, tmp_path: Path) -> None:
    data, more = archive.read_bytes(), ("--model", tiny_folder)
    result = run("info", "-", stdin=data)
    assert result.returncode == 0 and b"  sub/b.png\n" in result.stdout
    result = run("decompress", "-", "-o", f"{tmp_path}/out/", *more, stdin=data)
    assert result.returncode == 0 and (tmp_path / "out" / "sub" / "b.png").exists()
    result = run("decompress", "-", "-o", "-", *more, stdin=data)
    assert result.returncode == 2 and b"-: is an archive, which is written to a folder" in result.stderr
    for command in (["info", "-"], ["test", "-", *more], ["decompress", "-", "-o", tmp_path / "stump", *more]):
        for size, message in ((len(data) // 2, "truncated"), (20, "truncated"), (4, "not a .vdz file")):
            lines = errors(run(*command, stdin=data[:size]))
            assert all(line.startswith("Error: -: ") for line in lines) and message in " ".join(lines)


def test_score_of_stdin(tiny_folder: Path, photo: np.ndarray, tmp_path: Path) -> None:
    data = write_image(photo[:32, :32], {}, ".png")
    heat = tmp_path / "heat.png"
    result = run("score", "-", "--json", "--heatmap", heat, "--model", tiny_folder, stdin=data)
    assert result.returncode == 0 and json.loads(result.stdout)["name"] == "-" and heat.exists()
    line, *_ = run("score", "-", "--model", tiny_folder, stdin=data[:200]).stderr.decode().splitlines()
    assert line.startswith("Error: -: cannot be read as an image")


def test_results_as_json(tiny_folder: Path, photo: np.ndarray, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "tiny")
    with (tmp_path / "tiny" / "config.toml").open("a") as file:
        file.write("\n[train]\nsteps = 1\nbatch = 2\ncrop = 32\nvalidate_every = 1\n")
    (tmp_path / "data").mkdir()
    for n in range(20):
        (tmp_path / "data" / f"{n}.png").write_bytes(write_image(photo[n : n + 32, :32], {}, ".png"))
    model = tmp_path / "tiny"
    code, text = invoke("calibrate", model, tmp_path / "data", "--json")
    row = json.loads(text)
    assert code == 0 and (row["output"], row["images"]) == (str(model / "calibration.json"), 20) and row["bpd"] > 0
    code, text = invoke("sample", "--model", model, "-n", 2, "-o", tmp_path / "s.png", "--json")
    assert code == 0 and json.loads(text) == {"output": str(tmp_path / "s.png"), "images": 2, "width": 32, "height": 32}
    result = run("train", "--model", model, "--data", tmp_path / "data", "--out", f"{tmp_path}/run/", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"checkpoint": str(tmp_path / "run" / "checkpoint-00000001")}

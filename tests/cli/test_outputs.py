"""Where results go: nothing that is there is lost, and what cannot be done costs nothing else."""

import dataclasses
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from command_line import invoke, run

from vdvae_codec.codec.archive import decompress, open_archive
from vdvae_codec.codec.store import Released
from vdvae_codec.format.vdz import Entry, Segment, Writer
from vdvae_codec.images.files import all_files, read_picture, write_image


@pytest.fixture
def images(photo: np.ndarray, tmp_path: Path) -> Path:
    """a.png, a.bmp, b.png and sub/a.png"""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for n, name in enumerate(("a.png", "a.bmp", "b.png", "sub/a.png")):
        (folder / name).write_bytes(write_image(photo[n : n + 24, :20], {}, name[-4:]))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("jobs", [1, 2])
def test_two_inputs_with_one_output_are_refused(images: Path, tiny_folder: Path, tmp_path: Path, jobs: int) -> None:
    before, out = contents(images), tmp_path / "out"
    out.mkdir()
    more = ("--model", tiny_folder, "--force", "--jobs", jobs)
    for arguments in ((images / "a.png", images / "a.bmp"), (images / "a.png", images / "sub/a.png", "-o", out)):
        code, text = invoke("compress", *arguments, *more)
        assert code == 2 and "would both be written to" in text and "a.vdz" in text
    assert contents(images) == before and not contents(out)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        assert invoke("compress", images / "a.png", "-o", tmp_path / name, "--model", tiny_folder)[0] == 0
    vdz = [tmp_path / name / "a.vdz" for name in ("one", "two")]
    assert invoke("decompress", *vdz, "-o", out, *more)[0] == 2 and not contents(out)


@pytest.mark.parametrize("jobs", [1, 2])
def test_archives_do_not_overwrite_each_other(images: Path, tiny_folder: Path, tmp_path: Path, jobs: int) -> None:
    for n, folder in enumerate((images, images / "sub")):
        assert invoke("compress", folder, "-o", tmp_path / f"{n}.vdz", "--model", tiny_folder)[0] == 0
    assert invoke("compress", images / "b.png", "-o", tmp_path / "b.vdz", "--model", tiny_folder)[0] == 0
    (tmp_path / "out").mkdir()
    more = "-o", tmp_path / "out", "--model", tiny_folder, "--force", "--jobs", jobs
    for other, name in (("1", "a.png"), ("b", "b.png")):
        code, text = invoke("decompress", tmp_path / "0.vdz", tmp_path / f"{other}.vdz", *more)
        assert code == 2 and f"{other}.vdz would both be written to {tmp_path / 'out' / name}" in text
        assert not contents(tmp_path / "out")
    code, text = invoke("decompress", tmp_path / "0.vdz", tmp_path / "1.vdz", *more, "--only", "b*")
    assert code == 1 and list(contents(tmp_path / "out")) == ["b.png"], text  # the second holds no such image


def test_what_is_there_costs_no_other_image(images: Path, tiny_folder: Path, tmp_path: Path) -> None:
    assert invoke("compress", images, "-o", tmp_path / "x.vdz", "--model", tiny_folder)[0] == 0
    (tmp_path / "out" / "a.png").mkdir(parents=True)
    (tmp_path / "out" / "b.png").write_bytes(b"of the user")
    code, text = invoke("decompress", tmp_path / "x.vdz", "-o", tmp_path / "out", "--model", tiny_folder)
    assert code == 1 and "b.png: exists already" in text and "a.png: is no regular file" in text
    kept = contents(images) | {"b.png": b"of the user"}
    del kept["a.png"]
    assert contents(tmp_path / "out") == kept


@pytest.mark.parametrize("command", ["compress", "reconstruct", "score"])
def test_an_input_is_never_overwritten(images: Path, tiny_folder: Path, tmp_path: Path, command: str) -> None:
    before, link = contents(images), tmp_path / "link.png"
    link.symlink_to(images / "a.png")
    for out in (images / "a.png", link):
        option = "--heatmap" if command == "score" else "-o"
        code, text = invoke(command, images / "a.png", option, out, "--model", tiny_folder, "--force")
        assert code == 1 and "is an input, which is never overwritten" in text
    assert contents(images) == before


def test_only_regular_files_are_replaced_and_links_are_followed(
    images: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    fifo, link, target = tmp_path / "fifo", tmp_path / "link.vdz", tmp_path / "target.vdz"
    os.mkfifo(fifo)
    code, text = invoke("compress", images / "a.png", "-o", fifo, "--model", tiny_folder, "--force")
    assert code == 1 and "is no regular file" in text and stat.S_ISFIFO(fifo.stat().st_mode)
    link.symlink_to(target)
    for force in ((), ("--force",)):
        assert invoke("compress", images / "a.png", "-o", link, "--model", tiny_folder, *force)[0] == 0
        assert link.is_symlink() and decompress(target.read_bytes(), model=str(tiny_folder))
    assert invoke("compress", images / "b.png", "-o", link, "--model", tiny_folder)[0] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fifo", "images", "link.vdz", "target.vdz"]


@pytest.mark.parametrize("json_lines", [False, True])
def test_reports_do_not_get_into_the_file(images: Path, tiny_model: Released, tmp_path: Path, json_lines: bool) -> None:
    more = ["--model", tiny_model.folder, *["--json"] * json_lines]
    done = run("compress", images / "b.png", "-", *more, stdin=(images / "a.png").read_bytes())
    assert done.returncode == 0, done.stderr
    (tmp_path / "x.vdz").write_bytes(done.stdout)
    with open_archive(tmp_path / "x.vdz", model=tiny_model) as archive:
        a = read_picture((images / "a.png").read_bytes(), "a.png").pixels
        assert a is not None and np.array_equal(archive[0].pixels, a)
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 2 and (not json_lines or {json.loads(line)["input"] for line in lines} >= {"-"})


@pytest.mark.parametrize("command", ["compress", "decompress", "score", "info"])
def test_an_empty_name_is_not_the_current_folder(command: str, images: Path) -> None:
    code, text = invoke(command, images / "a.png", "")
    assert code == 2 and "an empty name" in text


def test_score_fails_where_an_input_does(images: Path, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    for bad in (tmp_path / "missing.png", tmp_path / "bad.png"):
        code, text = invoke("score", images / "a.png", bad, "--model", tiny_folder)
        assert code == 1 and str(images / "a.png") in text and "1 of 2 images could not be read" in text


@pytest.mark.parametrize("command", ["compress", "score"])
def test_linked_folders_are_named(images: Path, tiny_folder: Path, tmp_path: Path, command: str) -> None:
    (images / "elsewhere").symlink_to(tmp_path)
    code, text = invoke(command, images, "--model", tiny_folder)
    assert code == 1 and f"{images / 'elsewhere'}: a link to a folder, which is not entered" in text


def test_folders_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    lines: list[str] = []
    gone = tmp_path / "gone"
    assert all_files(gone, lines.append) == [] and lines == [f"{gone}: No such file or directory"]
    with pytest.raises(OSError, match="No such file"):
        all_files(gone)


def test_long_names(images: Path, tiny_folder: Path, tmp_path: Path) -> None:
    name = "\u6f22" * 83
    (tmp_path / f"{name}.png").write_bytes((images / "a.png").read_bytes())
    assert invoke("compress", tmp_path / f"{name}.png", "--model", tiny_folder)[0] == 0
    (tmp_path / f"{name}.png").unlink()
    assert invoke("decompress", tmp_path / f"{name}.vdz", "--model", tiny_folder)[0] == 0
    assert (tmp_path / f"{name}.png").exists()


def test_files_that_are_no_images_are_one_notice(images: Path, tiny_folder: Path, tmp_path: Path) -> None:
    for suffix in ("pdf", "mpg", "eps", "h5", "grib", "wmf", "txt"):
        (images / f"x.{suffix}").write_bytes(b"no image")
    code, text = invoke("compress", images, "-o", tmp_path / "x.vdz", "--model", tiny_folder)
    assert code == 0 and "7 files are no images and not in the archive" in text and "Error" not in text


def test_what_is_no_image_is_not_written(images: Path, tiny_folder: Path, tmp_path: Path) -> None:
    stored = Segment(
        (Entry("run.sh", None, 1, 1, 0, 4, ".png", True), Entry("a", None, 1, 1, 0, 4, ".png", True)),
        "", bytes(16), (), 0, 0, 0, b"#!shdata",
    )
    for entry, expected in ((".exe", None), (".png", ["a", "run.sh.png"])):
        segment = dataclasses.replace(
            stored, entries=tuple(dataclasses.replace(e, suffix=entry) for e in stored.entries)
        )
        with (tmp_path / "x.vdz").open("wb") as file:
            writer = Writer(file)
            writer.add(segment)
            writer.finish()
        code, text = invoke("decompress", tmp_path / "x.vdz", "-o", tmp_path / f"out{entry}")
        written = sorted(contents(tmp_path / f"out{entry}"))
        assert (code, written) == ((1, []) if expected is None else (0, expected)), text


@pytest.mark.parametrize(("arguments", "status", "what"), [
    (["compress", "a.png", "--threads", "100000"], 2, "not in the range"),
    (["compress", "a.png", "-o", "/dev/null/new/"], 2, "Not a directory"),
    (["score", "a.png", "-o", "new/"], 2, "no such folder"),
    (["score", "a.png", "--heatmap", "x.jpg"], 2, "expected .png"),
    (["score", "a.png", "--report", "x.pdf"], 2, "expected .html"),
])  # fmt: skip
def test_odd_arguments(images: Path, arguments: list[str], status: int, what: str) -> None:
    code, text = invoke(arguments[0], images / arguments[1], *arguments[2:])
    assert code == status and what in text
    assert sorted(p.name for p in images.iterdir()) == ["a.bmp", "a.png", "b.png", "sub"]


def test_nothing_to_calibrate_on(tiny_folder: Path, tmp_path: Path) -> None:
    code, text = invoke("calibrate", tiny_folder, tmp_path)
    assert code == 1 and text.splitlines()[-1].startswith("Error: ") and "no images" in text

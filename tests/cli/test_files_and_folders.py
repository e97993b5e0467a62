"""What users of cjxl and zstd expect: names, permissions, times, trees, what exists already, what may be deleted."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from command_line import invoke, names, pixels, run
from image_samples import FILES_ONLY, saved
from PIL import Image

from vdvae_codec.codec.archive import open_archive
from vdvae_codec.images.files import write_image
from vdvae_codec.images.names import LONGEST

TIME = 1_000_000_000.25  # seconds since 1970


@pytest.fixture
def image(photo: np.ndarray) -> np.ndarray:
    return photo[:24, :20]


@pytest.fixture
def tree(image: np.ndarray, tmp_path: Path) -> Path:
    """a.png, sub/b.bmp, sub/.c.png, notes.txt"""
    folder = tmp_path / "tree"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.bmp", "sub/.c.png"):
        (folder / name).write_bytes(write_image(image, {}, name[-4:]))
    (folder / "notes.txt").write_text("no image")
    return folder


def below(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_files_come_back_under_their_own_suffix(image: np.ndarray, tiny_folder: Path, tmp_path: Path) -> None:
    deep = FILES_ONLY["deep.tif"] if "deep.tif" in FILES_ONLY else saved(image[..., 0].astype(np.uint16) * 257, "TIFF")
    files = {"a.TIF": deep, "b.dng": deep, "c.Tiff": deep, "d.BMP": saved(image, "BMP"), "e.Tif": saved(image, "TIFF")}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    code, text = invoke("compress", *(tmp_path / name for name in files), "--model", tiny_folder)
    assert code == 0, text
    (tmp_path / "back").mkdir()
    code, text = invoke("decompress", *tmp_path.glob("*.vdz"), "-o", tmp_path / "back", "--model", tiny_folder)
    assert code == 0 and {p.name: p.read_bytes() for p in (tmp_path / "back").iterdir()} == files, text


@pytest.mark.parametrize("fallback", [False, True])
def test_coded_files_too(image: np.ndarray, tiny_folder: Path, tmp_path: Path, fallback: bool) -> None:
    """Whose format is what is written, alone and in an archive; others become PNG."""
    files = {"a.PNG": saved(image, "PNG"), "b.Png": saved(image, "PNG", dpi=(72, 72))}
    files |= {"c.TIF": saved(image, "TIFF", compression="tiff_lzw"), "d.tiff": files["a.PNG"]}
    files |= {"e.WEBP": saved(image, "WEBP", lossless=True), "f.jpg": saved(image, "JPEG"), "g.bmp": files["a.PNG"]}
    files |= {"h.png": saved(image, "BMP")}
    expected = {"a.PNG", "b.Png", "c.TIF", "d.tiff", "e.WEBP", "f.png", "g.bmp", "h.bmp"}
    source, packed = tmp_path / "source", tmp_path / "packed"
    source.mkdir()
    for name, data in files.items():
        (source / name).write_bytes(data)
    more = "--model", tiny_folder
    code, text = invoke("compress", "-r", source, "-o", packed, *["--no-fallback"] * (not fallback), *more)
    assert code == 0, text
    assert invoke("decompress", packed, "-o", f"{tmp_path}/back/", *more)[0] == 0
    assert set(names(tmp_path / "back")) == expected
    assert invoke("compress", source, "-o", tmp_path / "x.vdz", *more)[0] == 0
    assert invoke("decompress", tmp_path / "x.vdz", "-o", tmp_path / "all", *more)[0] == 0
    assert set(names(tmp_path / "all")) == expected - {"f.png", "h.bmp"} | {"f.jpg.png", "h.png.bmp"}
    sources = {path.name[0]: path for path in source.iterdir()}
    for path in [*(tmp_path / "back").iterdir(), *(tmp_path / "all").iterdir()]:
        with Image.open(path) as back, Image.open(sources[path.name[0]]) as before:
            assert np.array_equal(np.asarray(back), np.asarray(before)), path
            assert fallback or back.format == Image.registered_extensions()[path.suffix.lower()]
    single = run("cat", packed / "c.vdz", *more)
    assert single.stdout == (tmp_path / "back" / "c.TIF").read_bytes()


def test_outputs_have_the_permissions_and_times_of_their_input(tree: Path, tiny_folder: Path, tmp_path: Path) -> None:
    source, vdz, back = tree / "a.png", tmp_path / "a.vdz", tmp_path / "back.png"
    source.chmod(0o440)
    os.utime(source, (TIME, TIME))
    assert invoke("compress", source, "-o", vdz, "--model", tiny_folder)[0] == 0
    assert invoke("decompress", vdz, "-o", back, "--model", tiny_folder)[0] == 0
    for path in (vdz, back):
        assert stat.S_IMODE(path.stat().st_mode) == 0o440 and path.stat().st_mtime == TIME


def test_what_is_in_a_private_archive_stays_private(tree: Path, tiny_folder: Path, tmp_path: Path) -> None:
    vdz = tmp_path / "x.vdz"
    assert invoke("compress", tree, "-o", vdz, "--model", tiny_folder)[0] == 0
    vdz.chmod(0o600)
    assert invoke("decompress", vdz, "-o", f"{tmp_path}/back/", "--model", tiny_folder)[0] == 0
    assert {stat.S_IMODE((tmp_path / "back" / name).stat().st_mode) for name in below(tmp_path / "back")} == {0o600}


def test_a_slash_makes_the_folder(tree: Path, tiny_folder: Path, tmp_path: Path) -> None:
    inputs = tree / "a.png", tree / "sub" / "b.bmp"
    code, text = invoke("compress", *inputs, "-o", tmp_path / "new", "--model", tiny_folder)
    assert code == 2 and f"{tmp_path / 'new'}/ makes it" in text and not (tmp_path / "new").exists()
    assert invoke("compress", *inputs, "-o", f"{tmp_path}/new/deep/", "--model", tiny_folder)[0] == 0
    assert names(tmp_path / "new" / "deep") == ["a.vdz", "b.vdz"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_tree_of_single_files_and_back(tree: Path, tiny_folder: Path, tmp_path: Path, jobs: int) -> None:
    more = "--model", tiny_folder, "--jobs", jobs
    result = run("compress", "-r", tree, "-o", tmp_path / "packed", *more)
    assert result.returncode == 0 and b"1 files are no images and left out: notes.txt" in result.stderr
    assert below(tmp_path / "packed") == ["a.vdz", "sub/.c.vdz", "sub/b.vdz"]
    (tmp_path / "file").write_text("of the user")
    for command, source in ((["compress", "-r"], tree), (["decompress"], tmp_path / "packed")):
        assert invoke(*command, source, "-o", "-", "--model", tiny_folder)[0] == 2
        assert invoke(*command, source, "-o", tmp_path / "file", "--model", tiny_folder)[0] == 1
    assert run("decompress", tmp_path / "packed", "-o", tmp_path / "back", *more).returncode == 0
    assert below(tmp_path / "back") == ["a.png", "sub/.c.png", "sub/b.bmp"]
    assert (tmp_path / "back/sub/b.bmp").read_bytes() == (tree / "sub/b.bmp").read_bytes()


def test_a_tree_where_two_images_would_be_one_file(tree: Path, tiny_folder: Path) -> None:
    (tree / "a.bmp").write_bytes((tree / "sub" / "b.bmp").read_bytes())
    before = below(tree)
    code, text = invoke("compress", "--each", tree, "--model", tiny_folder)
    assert code == 2 and "would both be written to" in text and below(tree) == before


@pytest.mark.parametrize("json_lines", [False, True])
def test_skip_existing(tree: Path, tiny_folder: Path, tmp_path: Path, json_lines: bool) -> None:
    more = "--model", tiny_folder, "--skip-existing", *["--json"] * json_lines
    inputs = tree / "a.png", tree / "sub" / "b.bmp"
    said = '"skipped": true' if json_lines else "exists already, skipped"
    (tree / "a.vdz").write_bytes(b"of the user")
    code, text = invoke("compress", *inputs, *more)
    assert code == 0 and text.count(said) == 1 and (tree / "a.vdz").read_bytes() == b"of the user"
    assert (tree / "sub" / "b.vdz").exists()
    code, text = invoke("decompress", tree / "sub" / "b.vdz", *more)
    assert code == 0 and ("skipped" in text) and not list(tree.glob("**/*.png.png"))
    assert invoke("compress", tree / "sub", "-o", tmp_path / "x.vdz", "--model", tiny_folder)[0] == 0
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b.bmp").write_bytes(b"of the user")
    code, text = invoke("decompress", tmp_path / "x.vdz", "-o", tmp_path / "out", *more)
    assert code == 0 and ('"skipped": 1' if json_lines else "1 exist already and were skipped") in text
    assert below(tmp_path / "out") == [".c.png", "b.bmp"]
    assert (tmp_path / "out" / "b.bmp").read_bytes() == b"of the user"
    assert invoke("compress", inputs[0], "--skip-existing", "--force")[0] == 2


def test_images_that_exist_are_not_decoded(tree: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """The model is not asked for, which is not shipped."""
    vdz, out = tmp_path / "x.vdz", tmp_path / "out"
    assert invoke("compress", tree, "-o", vdz, "--model", tiny_folder, "--no-fallback")[0] == 0
    assert invoke("decompress", vdz, "-o", out)[0] == 1
    assert invoke("decompress", vdz, "-o", out, "--model", tiny_folder)[0] == 0
    assert invoke("decompress", vdz, "-o", out, "--skip-existing")[0] == 0


def test_rm_deletes_what_is_safe_elsewhere(tree: Path, image: np.ndarray, tiny_folder: Path, tmp_path: Path) -> None:
    jpeg, broken = tree / "d.jpg", tree / "e.png"
    jpeg.write_bytes(saved(image, "JPEG"))
    broken.write_bytes(b"no image")
    more = "--rm", "--model", tiny_folder
    for refused in (["--no-verify"], ["-o", "-"]):
        assert invoke("compress", tree / "a.png", *refused, *more)[0] == 2
    code, text = invoke("compress", tree, *more)
    assert code == 2 and "--rm deletes no folder" in text
    code, text = invoke("compress", "--each", tree, *more)
    assert code == 1 and f"{jpeg} stays" in text and f"{broken}: not an image" in text
    assert below(tree) == ["a.vdz", "d.jpg", "d.vdz", "e.png", "notes.txt", "sub/.c.vdz", "sub/b.vdz"]
    code, _ = invoke("decompress", tree / "a.vdz", "--model", tiny_folder)
    assert code == 0 and np.array_equal(pixels(tree / "a.png"), image)


def test_rm_keeps_an_input_without_a_new_output(tree: Path, tiny_folder: Path) -> None:
    (tree / "a.vdz").write_bytes(b"of the user")
    assert invoke("compress", tree / "a.png", "--rm", "--model", tiny_folder)[0] == 1
    assert invoke("compress", tree / "a.png", "--rm", "--skip-existing", "--model", tiny_folder)[0] == 0
    assert (tree / "a.png").exists()


def test_long_names_in_a_folder(image: np.ndarray, tiny_folder: Path, tmp_path: Path) -> None:
    """Pixels of JPEGs become PNG files, with .png behind names that have all letters that a name can have."""
    (tmp_path / "in").mkdir()
    long = ["x" * (LONGEST - 4) + ".jpg", "x" * (LONGEST - 5) + ".jpeg", "\u6f22" * 83 + "xx.jpg"]
    for n, name in enumerate(long):
        (tmp_path / "in" / name).write_bytes(saved(image[n:], "JPEG"))
    more = "--model", tiny_folder
    assert invoke("compress", tmp_path / "in", "-o", tmp_path / "x.vdz", *more)[0] == 0
    code, text = invoke("decompress", tmp_path / "x.vdz", "-o", tmp_path / "out", *more)
    back = names(tmp_path / "out")
    assert code == 0 and len(back) == 3 and all(name.endswith(".png") for name in back), text
    assert all(len(name.encode()) <= LONGEST and name[0] in "x\u6f22" for name in back)
    heights = sorted(pixels(tmp_path / "out" / name).shape[0] for name in back)
    assert heights == [len(image) - n for n in (2, 1, 0)]


def test_patterns_that_no_shell_has_taken(tree: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """Stand for what they match; files of such names, and what matches nothing, stay as they are."""
    more = "--model", tiny_folder
    (tree / "c[1].png").write_bytes((tree / "a.png").read_bytes())
    result = run("compress", f"{tree}/*.png", f"{tree}/**/*.bmp", "-o", f"{tmp_path}/out/", *more)
    assert result.returncode == 0 and names(tmp_path / "out") == ["a.vdz", "b.vdz", "c[1].vdz"], result.stderr
    assert run("compress", f"{tree}/c[1].png", "-o", tmp_path / "c.vdz", *more).returncode == 0
    result = run("compress", f"{tree}/*.gif", *more)
    assert result.returncode == 1 and result.stderr.decode() == f"Error: No such file or directory: {tree}/*.gif\n"
    assert run("test", f"{tmp_path}/out/*", *more).stdout.decode().count("all whole") == 3
    assert run("info", f"{tmp_path}/out/?.vdz").returncode == 0
    assert run("decompress", f"{tmp_path}/out/[ab].vdz", "-o", f"{tmp_path}/back/", *more).returncode == 0
    assert names(tmp_path / "back") == ["a.png", "b.bmp"]
    assert run("test", f"{tmp_path}/*", *more).returncode == 2  # folders are no .vdz files


def test_hidden_files_links_and_odd_names(tree: Path, tiny_folder: Path, tmp_path: Path) -> None:
    (tree / "link.png").symlink_to(tree / "a.png")
    (tree / "nowhere.png").symlink_to(tree / "gone.png")
    odd = os.fsencode(tree) + b"/\xff.png"
    Path(os.fsdecode(odd)).write_bytes((tree / "a.png").read_bytes())
    result = run("compress", tree, "-o", tmp_path / "x.vdz", "--model", tiny_folder)
    text = result.stderr.decode()
    assert result.returncode == 1 and "a name that an archive cannot hold" in text
    assert f"{tree / 'nowhere.png'}: No such file or directory" in text and "2 files could not be read" in text
    with open_archive(tmp_path / "x.vdz") as archive:
        assert archive.names == ["a.png", "link.png", "sub/.c.png", "sub/b.bmp"]
    (tmp_path / "one").mkdir()
    more = "-o", tmp_path / "one", "--model", tiny_folder
    assert run("compress", Path(os.fsdecode(odd)), *more).returncode == 0
    assert os.listdir(os.fsencode(tmp_path / "one")) == [b"\xff.vdz"]


def test_folders_are_told_how_jpegs_grow(image: np.ndarray, tiny_folder: Path, tmp_path: Path) -> None:
    """And nothing else does: a lossy WebP and a screenshot stay as they are."""
    folder = tmp_path / "in"
    folder.mkdir()
    flat = np.zeros((40, 40, 3), np.uint8)
    files = {"a.jpg": saved(image, "JPEG"), "b.jpg": saved(image[::-1], "JPEG")}
    files |= {"c.webp": saved(image, "WEBP", quality=30), "d.png": saved(flat, "PNG")}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    result = run("compress", folder, "--json", "--model", tiny_folder)
    row = json.loads(result.stdout)
    before = len(files["a.jpg"]) + len(files["b.jpg"])
    assert (row["grown"], row["grown_from_bytes"]) == (2, before) and row["grown_to_bytes"] > before
    after = row["grown_to_bytes"]
    line = f"notice: {folder}: 2 JPEGs, whose {before} bytes hold their pixels already, take {after} bytes\n"
    assert result.stderr.decode() == line
    single = run("compress", folder / "c.webp", "--json", "--model", tiny_folder)
    row_of_webp = json.loads(single.stdout)
    assert (row_of_webp["stored_bytes"], row_of_webp["dims"] > 0, single.stderr) == (len(files["c.webp"]), True, b"")
    rest = len(files["c.webp"]) + len(files["d.png"])
    assert row["output_bytes"] <= rest + after + row["table_bytes"] + 8

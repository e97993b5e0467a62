"""Each command as users run it, in a fresh process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from command_line import NATIVE, PLAIN, done, errors, names, pixels, run
from image_samples import CODABLE, DEEP, FILES_ONLY, ICC, INDEXED, INKS, TRANSPARENT, XMP, exif
from PIL import Image

from vdvae_codec import DEFAULT_MODEL, open_archive
from vdvae_codec.cli.main import main
from vdvae_codec.images.files import file_pixels, read_picture, write_image

KINDS = CODABLE | DEEP | INKS | TRANSPARENT | INDEXED | FILES_ONLY


def test_files_are_the_same_on_every_machine(native: Path, sources: list[Path], tmp_path: Path) -> None:
    """Written with all instructions and two threads, read with SSE 4.1 and one; and the other way round."""
    plain, restored, again = (tmp_path / name for name in ("plain", "restored", "again"))
    for folder in (plain, restored, again):
        folder.mkdir()
    done("compress", *sources, "-o", plain, "--no-fallback", env=PLAIN)
    for source in sources:
        name = f"{source.stem}.vdz"
        assert (plain / name).read_bytes() == (native / name).read_bytes()
    done("decompress", *sorted(native.iterdir()), "-o", restored, env=PLAIN)
    done("decompress", *sorted(plain.iterdir()), "-o", again, env=NATIVE)
    for source in sources:
        assert np.array_equal(pixels(restored / source.name), pixels(source))
        assert (again / source.name).read_bytes() == (restored / source.name).read_bytes()


@pytest.fixture(scope="module")
def every_kind(sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images of all formats and modes, and their .vdz in ``packed``."""
    folder = tmp_path_factory.mktemp("every_kind")
    for name, data in KINDS.items():
        (folder / f"{name.replace('.', '_')}{Path(name).suffix}").write_bytes(data)
    (folder / "photo.png").write_bytes(sources[0].read_bytes())
    metadata = {"icc": ICC, "exif": exif(6), "xmp": XMP}
    (folder / "metadata.png").write_bytes(write_image(pixels(sources[2]), metadata, ".png"))
    inputs = sorted(folder.iterdir())
    (folder / "packed").mkdir()
    result = run("compress", *inputs, "-o", folder / "packed")
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.decode().splitlines()) == len(inputs)
    (folder / "notices").write_bytes(result.stderr)
    return folder


def test_every_kind_of_image_comes_back(every_kind: Path, tmp_path: Path) -> None:
    packed = sorted((every_kind / "packed").iterdir())
    done("decompress", *packed, "-o", tmp_path, env=NATIVE)
    assert len(names(tmp_path)) == len(packed) == len(KINDS) + 2
    for restored in tmp_path.iterdir():
        (source,) = (p for p in every_kind.glob(f"{restored.stem}.*"))
        codable = read_picture(source.read_bytes(), source.name).pixels
        if codable is None:
            assert restored.suffix == source.suffix and restored.read_bytes() == source.read_bytes()
        else:
            assert np.array_equal(file_pixels(restored.read_bytes()), file_pixels(source.read_bytes()))
        smallest = (every_kind / "packed" / f"{restored.stem}.vdz").stat().st_size
        assert smallest < source.stat().st_size + 200 or source.suffix in (".jpg", ".jpeg")


def test_metadata_survives(every_kind: Path, tmp_path: Path) -> None:
    vdz = every_kind / "packed" / "metadata.vdz"
    with open_archive(vdz) as archive:
        assert archive[0].portable() == {"icc": ICC, "exif": exif(6), "xmp": XMP}
    done("decompress", vdz, "-o", tmp_path / "out.png")
    picture = read_picture((tmp_path / "out.png").read_bytes(), "out.png")
    assert picture.portable() == {"icc": ICC, "exif": exif(6), "xmp": XMP}


@pytest.mark.parametrize("suffix", [".bmp", ".ppm"])
def test_metadata_is_not_lost_in_silence(suffix: str, every_kind: Path, tmp_path: Path) -> None:
    (line,) = errors(run("decompress", every_kind / "packed" / "metadata.vdz", "-o", tmp_path / f"out{suffix}"))
    assert "would lose the image's metadata (ICC, EXIF, XMP); .png" in line and names(tmp_path) == []


def test_jpegs_are_told_that_they_grow(every_kind: Path) -> None:
    notices = (every_kind / "notices").read_text().splitlines()
    coded = ("rgb_jpg", "grey_jpeg")  # inks are kept as the file
    jpegs = sorted(p for p in every_kind.iterdir() if p.stem in coded)
    assert len(notices) == len(jpegs) == 2
    for notice, path in zip(notices, jpegs, strict=True):
        size = (every_kind / "packed" / f"{path.stem}.vdz").stat().st_size
        assert notice.startswith(f"notice: {path} is a JPEG: its {path.stat().st_size} bytes hold")
        assert notice.endswith(f" {size}") and size > path.stat().st_size


def test_existing_outputs_are_kept_unless_forced(sources: list[Path], native: Path, tmp_path: Path) -> None:
    png, vdz = tmp_path / "dot.png", tmp_path / "dot.vdz"
    png.write_bytes(sources[3].read_bytes())
    vdz.write_bytes((native / "odd.vdz").read_bytes())
    for command, source, out in (("compress", png, vdz), ("decompress", vdz, png)):
        before = out.read_bytes()
        (line,) = errors(run(command, source))
        assert f"{out}: exists already; --force" in line and out.read_bytes() == before
    done("compress", png, "--force")
    with open_archive(vdz) as archive:
        assert (len(archive), archive.entries[0].width, archive.names) == (1, 1, [""])
    assert names(tmp_path) == ["dot.png", "dot.vdz"]
    assert vdz.stat().st_mode & 0o777 == png.stat().st_mode & 0o777


def test_streams(sources: list[Path]) -> None:
    packed = run("compress", "-", stdin=sources[2].read_bytes())
    assert packed.returncode == 0 and packed.stdout.startswith(b"\x89VDZ")
    assert packed.stderr.decode().startswith("- -> -: ") and packed.stderr.count(b"\n") == 1
    image = run("decompress", "-", "-o", "-", "--json", stdin=packed.stdout)
    assert image.returncode == 0
    assert np.array_equal(file_pixels(image.stdout), file_pixels(sources[2].read_bytes()))
    row = json.loads(image.stderr)
    assert (row["input"], row["output"], row["output_bytes"]) == ("-", "-", len(image.stdout))


def test_info(native: Path, sources: list[Path]) -> None:
    rows = [json.loads(line) for line in done("info", *sorted(native.iterdir()), "--json")]
    assert [Path(row["input"]).stem for row in rows] == sorted(s.stem for s in sources)
    for row in rows:
        assert row["file_bytes"] == Path(row["input"]).stat().st_size
        assert row["file_bytes"] == sum(row[f"{part}_bytes"] for part in ("table", "word", "stored"))
    text = done("info", native / "photo.vdz", "--rates")
    shown = {line[:16].strip(): line[18:] for line in text}
    assert DEFAULT_MODEL in " ".join(text) and shown["width"] == "160" and shown["groups"] == "1"
    assert float(shown["file_bpd"]) == pytest.approx(8 * int(shown["file_bytes"]) / (160 * 120 * 3), abs=1e-5)
    assert 0 < float(shown["elbo_bpd"]) < 24 and float(shown["net_bpd"]) < float(shown["file_bpd"])


def test_errors_are_one_line_each_and_the_rest_is_done(sources: list[Path], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "broken.png").write_bytes(sources[0].read_bytes()[:2000])
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "empty").mkdir()
    bad = [tmp_path / "notes.txt", tmp_path / "absent.png", tmp_path / "broken.png", tmp_path / "empty"]
    result = run("compress", bad[0], bad[1], sources[3], bad[2], bad[3], "-o", out)
    for line, path in zip(errors(result), bad, strict=True):
        assert str(path) in line
    assert names(out) == ["dot.vdz"] and len(result.stdout.splitlines()) == 1
    (line,) = errors(run("compress", sources[3], "-o", out, "--force", "--model", "no-such-model"))
    assert "'no-such-model'" in line and DEFAULT_MODEL in line
    (line,) = errors(run("compress", sources[3], "-o", tmp_path / "no" / "folder.vdz"))
    assert "folder.vdz" in line
    assert names(out) == ["dot.vdz"] and names(tmp_path) == ["broken.png", "empty", "notes.txt", "out"]


def test_wrong_usage_is_status_2(sources: list[Path], tmp_path: Path) -> None:
    for arguments in (["compress"], ["compress", "--fast", "x.png"], ["no-such-command"]):
        assert CliRunner().invoke(main, arguments).exit_code == 2
    result = CliRunner().invoke(main, ["compress", *map(str, sources), "-o", str(tmp_path / "one.vdz")])
    assert result.exit_code == 2 and "folder" in result.output
    assert names(tmp_path) == []


def test_inputs_at_once_give_the_same_files(native: Path, sources: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "out").mkdir()
    arguments = *sources[:2], tmp_path / "broken.png", *sources[2:], "-o", tmp_path / "out", "--no-fallback"
    result = run("compress", *arguments, "--jobs", 3, "--json")
    assert [str(tmp_path / "broken.png") in line for line in errors(result)] == [True]
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert sorted(row["input"] for row in rows) == sorted(map(str, sources))
    assert names(tmp_path / "out") == names(native)
    for path in native.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert len(done("decompress", *native.iterdir(), "-o", tmp_path, "--jobs", 2)) == len(sources)
    assert all(np.array_equal(pixels(tmp_path / source.name), pixels(source)) for source in sources)
    wrong = run("compress", *sources, "-o", tmp_path / "one.vdz", "--jobs", 2)
    assert wrong.returncode == 2 and b"must be an existing folder" in wrong.stderr


def test_scores(calibrated_folder: Path, sources: list[Path], tmp_path: Path) -> None:
    """Of crops of the photograph that the model was calibrated on, and of noise."""
    noise = tmp_path / "noise.png"
    noise.write_bytes(write_image(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8), {}, ".png"))
    files = {name: tmp_path / name for name in ("rows.csv", "report.html", "heat.png")}
    arguments = noise, "--model", calibrated_folder, "--json", "--fpr", 0.05
    (line,) = done("score", *arguments, "--report", files["report.html"], "--heatmap", files["heat.png"])
    assert json.loads(line)["name"] == str(noise) and json.loads(line)["flagged"] is True
    with Image.open(files["heat.png"]) as heat:
        assert heat.size == (32, 32)
    assert "noise.png" in files["report.html"].read_text()
    (tmp_path / "broken.png").write_text("no image")
    rest = tmp_path / "broken.png", "-o", files["rows.csv"], "--fail-on-ood", "--fpr", 0.05
    result = run("score", sources[0], noise, *rest, "--model", calibrated_folder)
    assert result.returncode == 1
    first, *_, last = result.stdout.decode().splitlines()
    assert first.split() == ["p", "ood", "bpd", "corrected", "name"] and "of 2 images flagged (p <= 0.05)" in last
    assert b"broken.png" in result.stderr and b"1 of 3 images could not be read" in result.stderr
    assert len(files["rows.csv"].read_text().splitlines()) == 3


@pytest.fixture(scope="module")
def calibrated_folder(tiny_folder: Path, photo: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny model, calibrated by the command line on crops of the photograph."""
    folder = tmp_path_factory.mktemp("calibrated")
    shutil.copytree(tiny_folder, folder / "tiny")
    (folder / "crops").mkdir()
    for n in range(24):
        crop = photo[3 * n : 3 * n + 32, 5 * n : 5 * n + 32]
        (folder / "crops" / f"{n:02}.png").write_bytes(write_image(crop, {}, ".png"))
    (line,) = done("calibrate", folder / "tiny", folder / "crops", "--source", "crops")
    assert line.startswith(f"{folder / 'tiny' / 'calibration.json'}: 24 images, ")
    assert json.loads((folder / "tiny" / "calibration.json").read_text())["source"] == "crops"
    return folder / "tiny"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "b", "--heatmap", "x.png"], "single image"),
        (["a", "-o", "x.csv", "--resume"], ".jsonl"),
        (["a", "-o", "x.txt"], "expected .jsonl, .csv or .parquet"),
    ],
)
def test_what_score_refuses(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["score", *arguments])
    assert result.exit_code == 2 and message in result.output


def test_score_without_calibration_and_without_images(tiny_folder: Path, sources: list[Path], tmp_path: Path) -> None:
    result = run("score", sources[2], "--model", tiny_folder)
    assert result.returncode == 0 and b"no calibration" in result.stderr
    result = run("score", tmp_path / "absent.png", "--model", tiny_folder)
    first, _, last = result.stderr.decode().splitlines()
    assert result.returncode == 1 and "absent.png: No such file" in first and last == "Error: no images were scored"


@pytest.fixture(scope="module")
def released(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a recipe, as models are that export wrote."""
    folder = tmp_path_factory.mktemp("released") / "tiny"
    shutil.copytree(tiny_folder, folder)
    with (folder / "config.toml").open("a") as file:
        file.write("\n[train]\nsteps = 2\nbatch = 2\ncrop = 32\nvalidate_every = 2\n")
    return folder


def test_samples(released: Path, tmp_path: Path) -> None:
    arguments = "--model", released, "-n", 4
    assert done("sample", *arguments, "-o", tmp_path / "a.png") == [f"{tmp_path / 'a.png'}: 4 images of 32x32"]
    result = run("sample", *arguments, "-o", "-", "--size", 32)
    assert result.returncode == 0 and result.stdout == (tmp_path / "a.png").read_bytes()
    again = ["sample", *arguments, "-o", tmp_path / "b.png", "--seed", 1]
    assert CliRunner().invoke(main, list(map(str, again))).exit_code == 0
    assert (tmp_path / "b.png").read_bytes() != result.stdout


def test_reconstructions(tiny_folder: Path, photo_png: Path, tmp_path: Path) -> None:
    (line,) = done("reconstruct", photo_png, "--model", tiny_folder, "-o", tmp_path / "a.png", "--json")
    row = json.loads(line)
    bits = sum(resolution["bits"] for resolution in row["resolutions"])
    assert row["elbo_bpd"] == pytest.approx(bits / (160 * 120 * 3)) and row["output"] == str(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.width > 3 * 160 and sheet.height > 2 * 120
    table = done("reconstruct", photo_png, "--model", tiny_folder, "-o", tmp_path / "b.png")
    assert [row.split()[0] for row in table] == ["resolution", "1/8", "1/4", "1/2", "total"]


def test_from_photographs_to_a_model_of_ones_own(released: Path, photo: np.ndarray, tmp_path: Path) -> None:
    """A training that begins with a released model, its export, and files of the new model."""
    (tmp_path / "data").mkdir()
    for name, image in (("a.png", photo), ("b.png", photo[::-1])):
        (tmp_path / "data" / name).write_bytes(write_image(image, {}, ".png"))
    run_folder, made, vdz = tmp_path / "run", tmp_path / "mine", tmp_path / "a.vdz"
    result = run("train", "--init", released, "--data", tmp_path / "data", "--out", run_folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout.decode() == f"{run_folder}/checkpoint-00000002: done\n"
    result = run("export", run_folder, "--data", tmp_path / "data", "-o", made, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["step"] == 2
    for arguments, status in (
        (["compress", tmp_path / "data" / "a.png", "-o", vdz, "--model", made, "--no-fallback"], 0),
        (["decompress", vdz, "-o", tmp_path / "a.png"], 1),
        (["decompress", vdz, "-o", tmp_path / "a.png", "--model", made], 0),
    ):
        outcome = CliRunner().invoke(main, list(map(str, arguments)))
        assert outcome.exit_code == status and ("model 'mine' with digest" in outcome.output) == bool(status)
    assert np.array_equal(file_pixels((tmp_path / "a.png").read_bytes()), photo)


@pytest.mark.parametrize("arguments", [
    ["compress", "a\x07\u202e/"], ["\x07\u202e"], ["compress", "--\x07\u202e"], ["cat", "a", "b", "\x07\u202e"],
    ["decompress", "VDZ", "--only", "\x07\u202e", "--model", "x"], ["score", "a", "-o", "\x07\u202e.txt"],
    ["info", "\x07\u202e.vdz"], ["calibrate", "\x07", "\u202e"], ["cat", "\x07\u202e", "--jobs", "\x07"],
    ["compress", "VDZ", "VDZ", "-o", "\x07\u202e"],
])  # fmt: skip
def test_errors_reach_the_terminal_without_control_characters(arguments: list[str], native: Path) -> None:
    result = CliRunner().invoke(main, [str(native / "dot.vdz") if a == "VDZ" else a for a in arguments])
    assert result.exit_code in (1, 2) and "Error: " in result.output
    assert all(c.isprintable() for c in result.output if c != "\n"), result.output


def test_names_reach_the_terminal_without_control_characters(
    photo_png: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    odd = "a\x1b[31mb\u202egnp.c\x07.png"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / f"2{odd}").write_text("no image")
    (tmp_path / "in" / odd.replace("png", "txt")).write_text("no image")
    (tmp_path / odd).write_bytes(photo_png.read_bytes())
    files = tmp_path / odd, tmp_path / "in" / f"2{odd}"
    for result in (
        run("compress", tmp_path / "in", *files, "-o", tmp_path, "--model", tiny_folder),
        run("score", *files, "--model", tiny_folder),
    ):
        assert b"\\x1b[31mb\\u202e" in result.stdout and b"\\x1b[31mb\\u202e" in result.stderr
        assert all(c.isprintable() for c in (result.stdout + result.stderr).decode() if c != "\n")

"""The command line as users run it: in fresh processes, with the shipped model."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_images import CODABLE, FILES_ONLY, ICC, XMP, exif

from vdvae_codec import api
from vdvae_codec.cli.main import main
from vdvae_codec.container import Container, Kind
from vdvae_codec.errors import FormatError, VdvaeCodecError
from vdvae_codec.images import decode_file, read_picture, write_image
from vdvae_codec.released import load_released

NATIVE = {"OMP_NUM_THREADS": "2"}
PLAIN = {"OMP_NUM_THREADS": "1", "ONEDNN_MAX_CPU_ISA": "SSE41"}
PROGRAM = Path(sys.executable).with_name("vdvae-codec")


def run(*arguments: object, env: dict[str, str] = PLAIN, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, input=stdin, env=os.environ | env)


def done(*arguments: object, env: dict[str, str] = PLAIN) -> list[str]:
    """Lines on stdout of a run that succeeds."""
    result = run(*arguments, env=env)
    assert (result.returncode, result.stderr) == (0, b"")
    return result.stdout.decode().splitlines()


def errors(result: subprocess.CompletedProcess[bytes]) -> list[str]:
    """The lines on stderr of a run that fails: one an error, no traceback."""
    lines = result.stderr.decode().splitlines()
    assert result.returncode == 1 and lines and all(line.startswith("Error: ") for line in lines), lines
    return lines


def pixels(path: Path) -> np.ndarray:
    picture = read_picture(path.read_bytes(), path.name)
    assert picture.pixels is not None
    return picture.pixels


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture(scope="module")
def sources(photo: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sources")
    crops = {"photo": photo, "grey": photo[:50, :70, :1], "odd": photo[3:50, 5:38], "dot": photo[:1, :1]}
    crops["wide"] = np.pad(photo[:32], ((0, 0), (0, 160), (0, 0)), "symmetric")  # several tiles
    for name, crop in crops.items():
        (folder / f"{name}.png").write_bytes(write_image(crop, {}, ".png"))
    return [folder / f"{name}.png" for name in crops]


@pytest.fixture(scope="module")
def native(sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the sources as the model codes them, written by two threads with all that this CPU can do."""
    folder = tmp_path_factory.mktemp("native")
    lines = done("compress", *sources, "-o", folder, "--no-fallback", "--json", env=NATIVE)
    for line, source in zip(lines, sources, strict=True):
        row = json.loads(line)
        assert (row["input"], row["kind"], row["model"]) == (str(source), "model", api.DEFAULT_MODEL)
        assert row["output_bytes"] == Path(row["output"]).stat().st_size
        assert row["bpd"] == pytest.approx(8 * row["output_bytes"] / pixels(source).size)
    assert names(folder) == sorted(f"{s.stem}.vdz" for s in sources)
    return folder


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
    for name, data in (CODABLE | FILES_ONLY).items():
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
    assert len(names(tmp_path)) == len(packed) == len(CODABLE) + len(FILES_ONLY) + 2
    for restored in tmp_path.iterdir():
        (source,) = (p for p in every_kind.glob(f"{restored.stem}.*"))
        codable = read_picture(source.read_bytes(), source.name).pixels
        if codable is None:
            same = restored.suffix == source.suffix and restored.read_bytes() == source.read_bytes()
            assert same or (source.stem == "rgba_png" and restored.suffix == ".png")
            assert np.array_equal(decode_file(restored.read_bytes()), decode_file(source.read_bytes()))
        else:
            assert np.array_equal(pixels(restored).squeeze(), codable.squeeze())
        smallest = (every_kind / "packed" / f"{restored.stem}.vdz").stat().st_size
        assert smallest < source.stat().st_size + 200 or source.suffix in (".jpg", ".jpeg")


def test_metadata_survives(every_kind: Path, tmp_path: Path) -> None:
    vdz = every_kind / "packed" / "metadata.vdz"
    assert set(Container.from_bytes(vdz.read_bytes()).metadata) == {"icc", "exif", "xmp"}
    done("decompress", vdz, "-o", tmp_path / "out.png")
    picture = read_picture((tmp_path / "out.png").read_bytes(), "out.png")
    assert picture.metadata == {"icc": ICC, "exif": exif(6), "xmp": XMP}


def test_jpegs_are_told_that_they_grow(every_kind: Path) -> None:
    notices = (every_kind / "notices").read_text().splitlines()
    jpegs = sorted(p for p in every_kind.iterdir() if p.suffix in (".jpg", ".jpeg"))
    assert len(notices) == len(jpegs) == 3
    for notice, path in zip(notices, jpegs, strict=True):
        size = (every_kind / "packed" / f"{path.stem}.vdz").stat().st_size
        assert notice.startswith(f"notice: {path} is a JPEG: its {path.stat().st_size} bytes hold")
        assert notice.endswith(f" {size}") and size > path.stat().st_size


def test_existing_outputs_are_kept_unless_forced(sources: list[Path], native: Path, tmp_path: Path) -> None:
    png, vdz = tmp_path / "dot.png", tmp_path / "dot.vdz"
    png.write_bytes(sources[3].read_bytes())
    vdz.write_bytes(b"mine")
    for command, source, out in (("compress", png, vdz), ("decompress", vdz, png)):
        before = out.read_bytes()
        (line,) = errors(run(command, source))
        assert f"{out}: exists already; --force" in line and out.read_bytes() == before
    done("compress", png, "--force")
    assert api.info(vdz.read_bytes())["width"] == 1
    assert names(tmp_path) == ["dot.png", "dot.vdz"]
    assert vdz.stat().st_mode & 0o777 == png.stat().st_mode & 0o777


def test_streams(sources: list[Path]) -> None:
    packed = run("compress", "-", stdin=sources[2].read_bytes())
    assert packed.returncode == 0 and packed.stdout.startswith(b"\x89VDZ")
    assert packed.stderr.decode().startswith("- -> -: ") and packed.stderr.count(b"\n") == 1
    image = run("decompress", "-", "-o", "-", "--json", stdin=packed.stdout)
    assert image.returncode == 0
    assert np.array_equal(decode_file(image.stdout), decode_file(sources[2].read_bytes()))
    row = json.loads(image.stderr)
    assert (row["input"], row["output"], row["output_bytes"]) == ("-", "-", len(image.stdout))


def test_info(native: Path, sources: list[Path]) -> None:
    rows = [json.loads(line) for line in done("info", *sorted(native.iterdir()), "--json")]
    assert [Path(row["input"]).stem for row in rows] == sorted(s.stem for s in sources)
    for row in rows:
        assert row["file_bytes"] == Path(row["input"]).stat().st_size
        assert row["file_bytes"] == sum(row[f"{part}_bytes"] for part in ("header", "metadata", "payload"))
    text = done("info", native / "photo.vdz", "--rates")
    shown = {line[:16].strip(): line[18:] for line in text}
    assert shown["model"] == api.DEFAULT_MODEL and shown["width"] == "160" and shown["groups"] == "1"
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
    assert "'no-such-model'" in line and api.DEFAULT_MODEL in line
    (line,) = errors(run("compress", sources[3], "-o", tmp_path / "no" / "folder.vdz"))
    assert "folder.vdz" in line
    assert names(out) == ["dot.vdz"] and names(tmp_path) == ["broken.png", "empty", "notes.txt", "out"]


def test_damaged_files_leave_nothing(native: Path, tmp_path: Path) -> None:
    data = (native / "odd.vdz").read_bytes()
    other = dataclasses.replace(Container.from_bytes(data), digest=bytes(range(16)))
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 16
    lies = dataclasses.replace(Container.from_bytes(data), pixels_crc=0)
    files = {"other": other.to_bytes(), "lies": lies.to_bytes(), "flipped": bytes(flipped), "empty": b""}
    files |= {f"cut{n}": data[:n] for n in (5, 40, 65, len(data) // 2, len(data) - 1)}
    for name, content in files.items():
        (tmp_path / f"{name}.vdz").write_bytes(content)
    out = tmp_path / "out"
    out.mkdir()
    inputs = [tmp_path / f"{name}.vdz" for name in files]
    result = run("decompress", *inputs, native / "odd.vdz", "-o", out)
    lines = errors(result)
    for line, path in zip(lines, inputs, strict=True):
        assert str(path) in line
    assert repr(api.DEFAULT_MODEL) in lines[0] and bytes(range(16)).hex() in lines[0]
    assert "checksum" in lines[1]
    assert names(out) == ["odd.png"]


def test_every_cut_and_flip_of_a_real_file_is_refused(native: Path) -> None:
    data = (native / "odd.vdz").read_bytes()
    assert api.info(data)["kind"] == "model"
    for length in range(0, len(data), 7):
        with pytest.raises(FormatError):
            api.decompress(data[:length])
    for bit in [*range(8 * 80), *range(8 * 80, 8 * len(data), 61)]:
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            api.decompress(bytes(damaged))


def test_flips_behind_good_checksums_never_give_a_wrong_image(native: Path) -> None:
    container = Container.from_bytes((native / "odd.vdz").read_bytes())
    for place in (0, len(container.payload) // 2, len(container.payload) - 2):
        payload = bytearray(container.payload)
        payload[place] ^= 4
        with pytest.raises(VdvaeCodecError):
            api.decompress(dataclasses.replace(container, payload=bytes(payload)).to_bytes())


def test_the_shipped_model_codes_what_it_should(native: Path) -> None:
    released = load_released(api.DEFAULT_MODEL, "cpu")
    for path in native.iterdir():
        container = Container.from_bytes(path.read_bytes())
        assert (container.kind, container.model, container.digest) == (Kind.MODEL, released.name, released.digest)


def test_threads_are_limited_and_change_no_byte(sources: list[Path], native: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        vdz, png = tmp_path / "photo.vdz", tmp_path / "photo.png"
        wanted = ["compress", sources[0], "-o", vdz, "--no-fallback", "--threads", before + 2]
        assert CliRunner().invoke(main, [str(a) for a in wanted]).exit_code == 0
        assert torch.get_num_threads() == before + 2
        assert vdz.read_bytes() == (native / "photo.vdz").read_bytes()
        assert CliRunner().invoke(main, ["decompress", str(vdz), "-o", str(png), "--threads", "1"]).exit_code == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("command", sorted(main.commands))
def test_help_shows_an_example(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0 and f"Example: vdvae-codec {command} " in " ".join(result.output.split())
    assert {"--help", *main.commands[command].params[-1].opts} <= set(re.findall(r"(?<= )--?[a-z-]+", result.output))


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


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_leaves_nothing(sources: list[Path], tmp_path: Path, jobs: int) -> None:
    """The first input's line says that another, which takes long, has begun."""
    (tmp_path / "a.png").write_bytes(sources[3].read_bytes())
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), np.uint8)
    for name in ("b.png", "c.png"):
        (tmp_path / name).write_bytes(write_image(noise, {}, ".png"))
    program = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started the tests with it ignored
from vdvae_codec.cli.main import main
main()
"""
    command = [sys.executable, "-c", program, "compress", *map(str, sorted(tmp_path.iterdir())), "--jobs", str(jobs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and "a.vdz" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out, err.strip()) == (1, "", "Aborted!")
    assert names(tmp_path) == ["a.png", "a.vdz", "b.png", "c.png"]

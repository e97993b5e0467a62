"""What a process is set up with, and what is left when it is ended."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from command_line import PLAIN, PROGRAM, names
from image_samples import exif, saved

import vdvae_codec
from vdvae_codec.cli.main import main
from vdvae_codec.codec.archive import open_archive
from vdvae_codec.format.whole import replacing
from vdvae_codec.images.files import read_rgb, write_image


@pytest.mark.parametrize(
    ("own", "spins"), [({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")]
)
def test_threads_soon_sleep_while_they_wait_unless_the_user_has_chosen(
    own: dict[str, str], spins: str, tiny_folder: Path, photo_png: Path, tmp_path: Path
) -> None:
    """Asks OpenMP itself, which prints its settings as it reads them, in each process."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "KMP_"))}
    env |= {"OMP_DISPLAY_ENV": "verbose"} | own
    command = [PROGRAM, "compress", photo_png, "--model", tiny_folder, "-o", tmp_path / "x.vdz"]
    result = subprocess.run(command, capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stderr
    shown = re.findall(r"GOMP_SPINCOUNT\s*=\s*'(\w+)'", result.stderr)
    if not shown:
        pytest.skip("another OpenMP than GNU's")
    assert set(shown) == {spins}


PROBE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started the tests with it ignored
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from vdvae_codec.cli.main import main
main()
"""


@pytest.mark.parametrize(
    ("kind", "number", "jobs"),
    [
        ("files", signal.SIGINT, 1), ("files", signal.SIGTERM, 2), ("folder", signal.SIGTERM, 1),
        ("files", signal.SIGHUP, 2), ("folder", signal.SIGHUP, 1),
    ],
)
def test_an_interrupted_command_leaves_nothing(
    kind: str, number: signal.Signals, jobs: int, photo_png: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    """The first input's line says that another, which takes long, has begun."""
    noise = write_image(np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), np.uint8), {}, ".png")
    (tmp_path / "a.png").write_bytes(photo_png.read_bytes())
    for name in ("b", "c"):
        place = tmp_path / f"{name}.png"
        if kind == "folder":
            (tmp_path / name).mkdir()
            place = tmp_path / name / "noise.png"
        place.write_bytes(noise)
    before = names(tmp_path)
    command = [sys.executable, "-c", PROBE, "compress", *sorted(map(str, tmp_path.iterdir()))]
    command += ["--model", str(tiny_folder), "--jobs", str(jobs), "--no-fallback"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and "a.vdz" in process.stdout.readline()
        process.send_signal(number)
        out, err = process.communicate()
    assert (process.returncode, out) == (1 if number == signal.SIGINT else 128 + number, ""), err
    assert err.strip() == ("Aborted!" if number == signal.SIGINT else "")
    assert names(tmp_path) == sorted([*before, "a.vdz"])


@pytest.fixture
def slow(photo_png: Path, tmp_path: Path) -> list[Path]:
    """b.png and c.png, which take long."""
    noise = write_image(np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), np.uint8), {}, ".png")
    for name in ("b", "c"):
        (tmp_path / f"{name}.png").write_bytes(noise)
    return [tmp_path / "b.png", tmp_path / "c.png"]


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def group(leader: int) -> list[Path]:
    """The processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            found += [path.parent] if fields[3] == str(leader) and fields[0] != "Z" else []
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc")
def test_jobs_end_with_a_killed_parent(slow: list[Path], tiny_folder: Path, tmp_path: Path) -> None:
    """And remove what they had begun."""
    command = [PROGRAM, "compress", *slow, "--model", tiny_folder, "--jobs", "2", "--no-fallback"]
    with subprocess.Popen(command, start_new_session=True) as process:
        wait_for(lambda: len(list(tmp_path.glob(".vdvae-codec-*"))) == 2)
        assert len(group(process.pid)) == 3
        process.kill()
    wait_for(lambda: not group(process.pid))
    assert names(tmp_path) == ["b.png", "c.png"]


def test_what_a_killed_process_left_is_removed_by_the_next(
    slow: list[Path], photo_png: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    """But not what another one still writes."""
    with subprocess.Popen([PROGRAM, "compress", slow[0], "--model", tiny_folder, "--no-fallback"]) as process:
        wait_for(lambda: list(tmp_path.glob(".vdvae-codec-*")))
        process.kill()
    (left,) = tmp_path.glob(".vdvae-codec-*")
    with replacing(tmp_path / "x.vdz") as file:
        (writing,) = set(tmp_path.glob(".vdvae-codec-*")) - {left}
        command = [PROGRAM, "compress", photo_png, "-o", tmp_path / "y.vdz", "--model", tiny_folder]
        assert subprocess.run(command, capture_output=True).returncode == 0
        assert names(tmp_path) == sorted([writing.name, "b.png", "c.png", "y.vdz"])
        file.write(b"whole")
    assert (tmp_path / "x.vdz").read_bytes() == b"whole" and not writing.exists()


@pytest.mark.parametrize("closed", ["2>&-", "2>&- >&-", "2>&- >&- <&-"])
def test_closed_streams(closed: str, photo_png: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """Whose numbers files do not get, and a folder, of which a bar is shown."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(photo_png.read_bytes())
    arguments = [PROGRAM, "compress", tmp_path / "in", "--model", tiny_folder]
    done = subprocess.run(["sh", "-c", f'exec "$0" "$@" {closed}', *arguments], stdin=subprocess.DEVNULL)
    assert done.returncode == 0
    with open_archive(tmp_path / "in.vdz", model=str(tiny_folder)) as archive:
        assert np.array_equal(archive["a.png"].pixels, read_rgb(photo_png))


def test_odd_metadata_is_no_line_of_code(photo: np.ndarray, tiny_folder: Path, tmp_path: Path) -> None:
    """Pillow warns of EXIF that is cut short."""
    (tmp_path / "a.jpg").write_bytes(saved(photo[:40, :40], "JPEG", exif=b"Exif\0\0" + exif()[6:40]))
    command = [PROGRAM, "compress", tmp_path / "a.jpg", "--model", tiny_folder]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and f"notice: {tmp_path / 'a.jpg'}: Truncated File Read\n" in done.stderr, done.stderr
    assert all(line.startswith("notice: ") and ".py" not in line for line in done.stderr.splitlines())


def on_terminal(command: list[object]) -> tuple[int, bytes]:
    """Exit status, and what a terminal of 120 columns is sent."""
    ours, theirs = os.openpty()
    termios = pytest.importorskip("termios")
    termios.tcsetwinsize(theirs, (24, 120))
    environment = os.environ | {"NO_COLOR": "1", "TERM": "xterm-256color"}
    shown = b""
    with subprocess.Popen(list(map(str, command)), stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        with contextlib.suppress(OSError):  # the end of a terminal
            while part := os.read(ours, 1 << 16):
                shown += part
    os.close(ours)
    return process.returncode, shown


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_bar_of_many_files(jobs: int, photo_png: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """Of all their bytes, whatever becomes of one; each report has a line of its own; --rm deletes none too early."""
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes(photo_png.read_bytes())
    (tmp_path / "d.png").write_bytes(b"no image")
    files, more = [tmp_path / f"{name}.png" for name in "abcd"], ["--model", tiny_folder, "--jobs", jobs]
    total = f"/{(3 * photo_png.stat().st_size + 8) / 1000:.0f}k [".encode()
    status, shown = on_terminal([PROGRAM, "compress", *files, "--rm", *more])
    assert status == 1 and b"compressing:   0%" in shown and b"compressing: 100%" in shown and total in shown
    for path in files:
        start = f"Error: {path}" if path.name == "d.png" else f"{path} -> "
        assert shown.count(b"\r\x1b[K" + start.encode()) == 1, shown
    assert names(tmp_path) == ["a.vdz", "b.vdz", "c.vdz", "d.png"]
    files = [tmp_path / f"{name}.vdz" for name in "abc"]
    for command, doing in (("test", b"testing: 100%"), ("decompress", b"decompressing: 100%")):
        status, shown = on_terminal([PROGRAM, command, *files, *more])
        assert status == 0 and doing in shown
    done = subprocess.run([PROGRAM, "test", *map(str, files), *map(str, more)], capture_output=True)
    assert done.returncode == 0 and done.stderr == b"" and done.stdout.count(b"\n") == 3 and b"\r" not in done.stdout


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks /proc")
def test_too_little_memory_for_one_image_costs_no_other(photo: np.ndarray, tiny_folder: Path, tmp_path: Path) -> None:
    """An address space in which small images can be coded, and a large one cannot."""
    for name in ("a", "c"):
        (tmp_path / f"{name}.png").write_bytes(write_image(photo[:40, :40], {}, ".png"))
    large = np.random.default_rng(0).integers(0, 256, (4000, 5000, 3), np.uint8)
    (tmp_path / "b.png").write_bytes(saved(large, "PNG", compress_level=0))
    program = """
import resource, sys
import vdvae_codec.cli.main, vdvae_codec.codec.archive
size = 4096 * int(open("/proc/self/statm").read().split()[0]) + int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_AS, (size, size))
vdvae_codec.cli.main.main()
"""
    command = [sys.executable, "-c", program, 250_000_000, "compress", *sorted(tmp_path.glob("*.png"))]
    command += ["--model", tiny_folder, "--no-fallback", "--threads", 1]
    arenas = {"MALLOC_ARENA_MAX": "1"}  # of glibc: 64 MiB for each thread that comes and goes
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=os.environ | PLAIN | arenas)
    assert (done.returncode, done.stderr) == (1, f"Error: {tmp_path / 'b.png'}: not enough memory\n")
    assert len(done.stdout.splitlines()) == 2
    assert names(tmp_path) == ["a.png", "a.vdz", "b.png", "c.png", "c.vdz"]


def test_no_colours(photo_png: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """With and without a terminal; bars are shown on a terminal, of bytes and the time left."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(photo_png.read_bytes())
    command = [PROGRAM, "compress", tmp_path / "in", "--force", "--model", tiny_folder]
    status, shown = on_terminal(command)
    size = f"{photo_png.stat().st_size / 1000:.1f}k".encode()
    assert status == 0 and b"compressing: " in shown and size in shown and b"B/s]" in shown
    assert not re.search(rb"\x1b\[[0-9;]*m", shown)
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 0 and b"\x1b" not in done.stdout and done.stderr == b""


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


def test_threads_of_a_fresh_process(photo_png: Path, tiny_folder: Path, tmp_path: Path) -> None:
    program = """
import atexit
from vdvae_codec.cli.main import main
def show():
    import torch
    print(torch.get_num_threads())
atexit.register(show)
main()
"""
    arguments = ["compress", photo_png, "-o", tmp_path / "x.vdz", "--model", tiny_folder, "--threads", "3"]
    command = [sys.executable, "-c", program, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "3"


def test_the_package_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "vdvae_codec", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and vdvae_codec.__version__ in done.stdout

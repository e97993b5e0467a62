"""What a process is set up with, and what is left when it is ended."""

from __future__ import annotations

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
from command_line import PROGRAM, names

from vdvae_codec.cli.main import main
from vdvae_codec.images.files import write_image


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

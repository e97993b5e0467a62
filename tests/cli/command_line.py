"""The command line as users run it: in fresh processes, or in this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from vdvae_codec.cli.main import main
from vdvae_codec.images.files import read_picture

NATIVE = {"OMP_NUM_THREADS": "2"}
PLAIN = {"OMP_NUM_THREADS": "1", "ONEDNN_MAX_CPU_ISA": "SSE41"}
PROGRAM = Path(sys.executable).with_name("vdvae-codec")


def run(*arguments: object, env: dict[str, str] = PLAIN, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, input=stdin, env=os.environ | env)


def invoke(*arguments: object) -> tuple[int, str]:
    """Exit status and output of a run in this process."""
    done = CliRunner().invoke(main, [str(a) for a in arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


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

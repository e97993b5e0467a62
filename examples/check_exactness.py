"""Writes and reads the same images as two different machines would, and compares every byte and pixel.

    python examples/check_exactness.py FOLDER

One "machine" is this CPU with all its instructions and two threads, the other is limited to SSE 4.1 and one thread
(oneDNN's ONEDNN_MAX_CPU_ISA and torch's ATEN_CPU_CAPABILITY choose other kernels, with other orders of summation).
Each writes all images and reads what the other wrote, in fresh processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

MACHINES = {
    "native, 2 threads": {"OMP_NUM_THREADS": "2"},
    "SSE 4.1, 1 thread": {"OMP_NUM_THREADS": "1", "ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"},
}
COMMAND = Path(sys.executable).with_name("vdvae-codec")


def run(machine: str, *words: str | Path) -> None:
    subprocess.run([COMMAND, *words], check=True, env=os.environ | MACHINES[machine], stdout=subprocess.DEVNULL)


def main(folder: Path) -> None:
    images = sorted(folder.glob("*.png"))
    with tempfile.TemporaryDirectory() as name:
        written = {machine: Path(name, f"written{n}") for n, machine in enumerate(MACHINES)}
        for machine, out in written.items():
            out.mkdir()
            begun = time.monotonic()
            run(machine, "compress", *images, "-o", out, "--no-fallback", "--no-verify")
            print(f"written by {machine}: {len(images)} images, {time.monotonic() - begun:.1f} s")
        first, second = ([(out / f"{i.stem}.vdz").read_bytes() for i in images] for out in written.values())
        assert first == second, "the two machines wrote different bytes"
        print(f"byte-identical: {len(images)} of {len(images)} files, {sum(map(len, first))} bytes")
        for writer, reader in zip(MACHINES, reversed(MACHINES)):
            out = Path(name, f"read from {writer}")
            out.mkdir()
            begun = time.monotonic()
            run(reader, "decompress", *sorted(written[writer].iterdir()), "-o", out)
            for image in images:
                with Image.open(image) as a, Image.open(out / image.name) as b:
                    assert a.mode == b.mode and np.array_equal(np.asarray(a), np.asarray(b)), image
            seconds = time.monotonic() - begun
            print(f"written by {writer}, read by {reader}: {len(images)} images equal, {seconds:.1f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

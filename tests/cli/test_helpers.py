"""Processes that share the work of one image."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from command_line import PLAIN, done, errors, names, pixels, run

from vdvae_codec.codec.store import Released
from vdvae_codec.images.files import write_image


def probe(program: str) -> list[str]:
    """Lines that a program prints which has two helpers."""
    module = "import sys; sys.path.insert(0, sys.argv[1])\n"
    command = [sys.executable, "-c", module + program, str(Path(__file__).parent)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_results_come_in_order_from_several_processes() -> None:
    lines = probe("""
import os
from vdvae_codec.cli.helpers import Forked
helpers = Forked(2)
import torch
torch.set_num_threads(3)
import zlib
data = [bytes([n]) * 3_000_000 for n in range(40)]
print(list(helpers.map(zlib.crc32, data)) == [zlib.crc32(d) for d in data])
import helped
print(len(set(helpers.map(helped.slow_process_id, range(30)))))
print(torch.get_num_threads())
""")
    assert lines == ["True", "3", "3"]


def test_what_the_work_raises_is_raised() -> None:
    lines = probe("""
from vdvae_codec.cli.helpers import Forked
helpers = Forked(2)
import torch, helped
found = []
try:
    for result in helpers.map(helped.bad_at_five, range(20)):
        found.append(result)
except ValueError as error:
    print(found, error)
print(list(helpers.map(helped.bad_at_five, range(5))))
""")
    assert lines == ["[0, 1, 2, 3, 4] five is bad", "[0, 1, 2, 3, 4]"]


def test_work_that_was_given_up_does_not_answer_for_the_next() -> None:
    """Its tasks are still with the helpers when the next work begins."""
    lines = probe("""
from vdvae_codec.cli.helpers import Forked
helpers = Forked(2)
import torch, helped
for n in range(3):
    results = helpers.map(helped.slow_process_id, range(30))
    next(results)
    results.close()
    print(sum(helpers.map(abs, range(-20, 0))))
""")
    assert lines == ["210"] * 3


def test_what_a_killed_helper_had_is_done_by_others() -> None:
    lines = probe("""
from vdvae_codec.cli.helpers import Forked
helpers = Forked(2)
import torch, helped
print(list(helpers.map(helped.deadly_for_helpers, range(8))))
print(list(helpers.map(helped.deadly_for_helpers, range(3))))
helpers.close()
""")
    assert lines == [str(list(range(8))), str(list(range(3)))]


def test_helpers_end_with_their_owner() -> None:
    """Even where it is killed while they work on what takes long."""
    program = """
import os, sys
sys.path.insert(0, sys.argv[1])
from vdvae_codec.cli.helpers import Forked
helpers = Forked(2)
print(*[process.pid for process in helpers._processes], flush=True)
import torch, helped
list(helpers.map(helped.endless, range(9)))
"""
    command = [sys.executable, "-c", program, str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        begun = [process.stdout.readline() for _ in range(3)]
        process.kill()
    assert begun == ["begun\n"] * 3
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            break
        time.sleep(0.1)
    assert len(pids) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_images_are_the_same_with_and_without_helpers(
    causal_model: Released, photo: np.ndarray, tmp_path: Path
) -> None:
    """Three images of different shapes are three groups; verified, as two processes and as one."""
    folder = tmp_path / "in"
    folder.mkdir()
    for n, side in enumerate((60, 80, 100)):
        (folder / f"{n}.png").write_bytes(write_image(photo[:side, :100], {}, ".png"))
    digests = set()
    for threads in ("2", "1"):
        vdz, out = tmp_path / f"{threads}.vdz", tmp_path / threads
        env = PLAIN | {"OMP_NUM_THREADS": threads}
        done("compress", folder, "-o", vdz, "--model", causal_model.folder, "--no-fallback", env=env)
        digests.add(hashlib.sha256(vdz.read_bytes()).hexdigest())
        done("decompress", vdz, "-o", out, "--model", causal_model.folder, env=env)
        for name in names(folder):
            assert np.array_equal(pixels(out / name), pixels(folder / name))
    assert len(digests) == 1


def test_helpers_of_large_inputs_have_the_model_before_they_work() -> None:
    lines = probe("""
import os
os.environ["OMP_NUM_THREADS"] = "2"
from pathlib import Path
from vdvae_codec.cli.helpers import helpers
import helped
here = Path(helped.__file__)
for inputs in ([here], [here.parent], [here, Path("absent")]):
    with helpers(1, inputs, "cifar10-causal") as sharing:
        (connection,) = sharing._connections
        connection.send((helped.loaded_modules, None))
        fine, found = connection.recv()
        print(fine, {"torch", "vdvae_codec.codec.store"} <= found)
""")
    assert lines == ["True False", "True True", "True False"]


def test_helpers_say_nothing_of_a_model_that_is_not_there(tmp_path: Path) -> None:
    """It is the command that says it, once."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.png").write_bytes(write_image(np.zeros((9, 9, 3), np.uint8), {}, ".png"))
    result = run("compress", tmp_path / "in", "-o", tmp_path / "x.vdz", "--model", "absent")
    (line,) = errors(result)
    assert "'absent'" in line

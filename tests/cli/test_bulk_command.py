"""``vdvae-codec bulk`` on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from command_line import errors, run
from tars import crops, shard


def test_a_shard_with_a_damaged_image(photo: np.ndarray, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.tar").write_bytes(shard(crops(photo, 3) | {"bad.png": b"no image"}))
    command = ("bulk", "compress", tmp_path / "in", "-o", tmp_path / "out", "--model", tiny_folder, "--json")
    for kept in (0, 2):
        done = run(*command, "--part-images", 2)
        (line,) = errors(done)
        assert line.startswith("Error: a-00001: bad.png: ")
        row = json.loads(done.stdout)
        assert (row["images"], row["parts"], row["kept"], len(row["errors"])) == (3, 2, kept, 1)
    assert errors(run("bulk", "decompress", tmp_path / "in", "-o", tmp_path / "back"))
    assert run("bulk", "score", tmp_path / "in", "-o", tmp_path / "scores", "--exact-file").returncode == 2

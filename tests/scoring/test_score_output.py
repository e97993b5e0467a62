"""Rows in files, and pictures of bits."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vdvae_codec.errors import VdvaeCodecError
from vdvae_codec.scoring.output import COLUMNS, heat_picture, rows_file

HEAD = {"digest": "00", "samples": 1}
ROWS: list[dict[str, Any]] = [
    {"name": f"grön, {n}.png", "width": 3, "height": 2, "channels": 1, "bpd": n / 7, "corrected_bpd": 0.5,
     "kl_bits": [1.0, 2.0 * n]} for n in range(3)
]  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]], resume: bool = False) -> list[dict[str, Any]]:
    """Writes rows; returns those that were there."""
    with rows_file(path, HEAD, resume) as (done, add):
        for row in rows:
            add(row)
    return done


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    assert write(file, ROWS) == [] and lines_of(file) == ROWS
    write(file, ROWS[:1])  # replaces it
    assert lines_of(file) == ROWS[:1] and list(tmp_path.iterdir()) == [file]


def test_csv(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    write(file, [ROWS[0], ROWS[1] | {"ood": 1.5, "p": 0.25, "typicality": 0.1}])
    with file.open(newline="", encoding="utf-8") as lines:
        first, second = csv.DictReader(lines)
    assert tuple(first) == COLUMNS and first["name"] == ROWS[0]["name"] and first["p"] == ""
    assert float(second["bpd"]) == ROWS[1]["bpd"] and float(second["p"]) == 0.25
    assert list(tmp_path.iterdir()) == [file]


def test_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    write(tmp_path / "rows.parquet", ROWS)
    assert parquet.read_table(tmp_path / "rows.parquet").to_pylist() == ROWS


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(VdvaeCodecError, match="pip install pyarrow"):
        write(tmp_path / "rows.parquet", ROWS)


def test_interrupted_runs_are_gone_on_with(tmp_path: Path) -> None:
    file, partial = tmp_path / "rows.jsonl", tmp_path / "rows.jsonl.partial"
    with pytest.raises(KeyboardInterrupt), rows_file(file, HEAD) as (_, add):
        add(ROWS[0])
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [partial]
    with partial.open("a") as lines:
        lines.write(json.dumps(ROWS[1])[:20])  # half of a line
    assert write(file, ROWS[1:], resume=True) == ROWS[:1]  # what was done is kept, the rest is made
    assert lines_of(file) == ROWS and list(tmp_path.iterdir()) == [file]
    assert write(tmp_path / "other.jsonl", ROWS, resume=True) == []  # nothing was interrupted


@pytest.mark.parametrize("left", ['{"digest": "01", "samples": 1}\n', "", "no json\n", '{"digest": "00"'])
def test_what_resume_refuses(tmp_path: Path, left: str) -> None:
    partial = tmp_path / "rows.jsonl.partial"
    partial.write_text(left)
    with pytest.raises(VdvaeCodecError, match="partial"):
        write(tmp_path / "rows.jsonl", ROWS, resume=True)
    assert partial.read_text() == left
    assert write(tmp_path / "rows.jsonl", ROWS) == []  # begins anew


def test_a_failed_run_leaves_earlier_rows(tmp_path: Path) -> None:
    for file in (tmp_path / "rows.csv", tmp_path / "rows.jsonl"):
        write(file, ROWS)
        before = file.read_bytes()
        with pytest.raises(RuntimeError), rows_file(file, HEAD):
            raise RuntimeError
        assert file.read_bytes() == before


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VdvaeCodecError, match=r"\.jsonl, \.csv, \.parquet"):
        write(tmp_path / "rows.txt", ROWS)
    assert not list(tmp_path.iterdir())


def test_heat_pictures() -> None:
    picture = np.asarray(heat_picture(np.linspace(0, 9, 600, dtype=np.float32).reshape(20, 30)))
    assert picture.shape == (20, 30, 3) and picture[0, 0].sum() < picture[-1, -1].sum() == 765
    assert np.asarray(heat_picture(np.zeros((2, 3), np.float32))).shape == (2, 3, 3)

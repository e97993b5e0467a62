"""What is written of scores: rows as JSON lines (with resume), CSV or Parquet, and pictures of bits."""

from __future__ import annotations

import csv
import importlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vdvae_codec.errors import VdvaeCodecError
from vdvae_codec.format.whole import replacing
from vdvae_codec.scoring.scores import Row

COLUMNS = ("name", "width", "height", "channels", "bpd", "corrected_bpd", "ood", "p", "typicality")  # of a CSV
SUFFIXES = (".jsonl", ".csv", ".parquet")
Write = Callable[[Row], None]


@contextmanager
def rows_file(path: Path, head: Mapping[str, Any], resume: bool = False) -> Iterator[tuple[list[Row], Write]]:
    """Context whose value is the rows that were there already, and a function that writes one more.

    The file appears when it is complete and replaces an earlier one. JSON lines grow in PATH.partial, which an
    interrupted run leaves for ``resume``; ``head`` says what all rows must have in common. Raises VdvaeCodecError for
    other suffixes than .jsonl, .csv and .parquet, for a .partial of another head, and where pyarrow is absent.
    """
    if path.suffix == ".jsonl":
        with _lines_file(path, head, resume) as found:
            yield found
        return
    rows: list[Row] = []
    save = _saver(path)
    yield [], rows.append
    with replacing(path) as file:
        file.write(save(rows))


@contextmanager
def _lines_file(path: Path, head: Mapping[str, Any], resume: bool) -> Iterator[tuple[list[Row], Write]]:
    partial = path.with_name(path.name + ".partial")
    done = _resumed(partial, head) if resume and partial.exists() else []
    if not done:
        partial.write_text(json.dumps(head) + "\n")
    with partial.open("a") as lines:
        yield done, lambda row: print(json.dumps(row), file=lines, flush=True)
    with partial.open("rb") as whole, replacing(path) as file:
        whole.readline()  # the head
        shutil.copyfileobj(whole, file)
    partial.unlink()


def _resumed(partial: Path, head: Mapping[str, Any]) -> list[Row]:
    """The rows that an interrupted run left; what it wrote of a last one, if not all, is cut off."""
    try:
        lines = [line for line in partial.read_text().splitlines(True) if line.endswith("\n")]
        found, *rows = map(json.loads, lines)
    except ValueError as error:
        raise VdvaeCodecError(f"{partial}: not what an interrupted run leaves; remove it to begin anew") from error
    if found != head:
        raise VdvaeCodecError(f"{partial}: was made with another model, number of samples or --llr")
    partial.write_text("".join(lines))
    return rows


def _saver(path: Path) -> Callable[[Sequence[Row]], bytes]:
    """What makes a file of rows."""
    if path.suffix == ".csv":
        return csv_bytes
    if path.suffix != ".parquet":
        raise VdvaeCodecError(f"{path}: expected {', '.join(SUFFIXES)}")
    try:
        pyarrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise VdvaeCodecError("writing .parquet needs pyarrow: pip install pyarrow") from error

    def parquet_bytes(rows: Sequence[Row]) -> bytes:
        out = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), out)
        return out.getvalue()

    return parquet_bytes


def csv_bytes(rows: Sequence[Row]) -> bytes:
    """The COLUMNS of rows with a line of their names, UTF-8."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, restval="", extrasaction="ignore", lineterminator=os.linesep)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode(errors="backslashreplace")  # names that are not UTF-8


def heat_picture(bits: np.ndarray) -> Image.Image:
    """Bits of each pixel (H, W) as a picture: dark blue for few, white for the 99th percentile and more."""
    level = (bits / max(float(np.quantile(bits, 0.99)), 1e-6)).clip(0, 1)
    stops = np.array([[8, 10, 50], [90, 20, 120], [220, 60, 60], [250, 180, 50], [255, 255, 255]], np.float32)
    place = np.linspace(0, 1, len(stops))
    rgb = np.stack([np.interp(level, place, stops[:, c]) for c in range(3)], -1)
    return Image.fromarray(rgb.round().astype(np.uint8))

"""Batches of CIFAR-10 and of downsampled ImageNet: binary records, and pickles of which nothing is executed."""

from __future__ import annotations

import pickle
import re
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from vdvae_codec.errors import TrainingError
from vdvae_codec.training.sources import arrays
from vdvae_codec.training.sources.arrays import Blocks

_CIFAR_RECORD = 1 + 3 * 32 * 32  # bytes: label, planes


def cifar_binary(file: Path, _: str | None) -> Blocks:
    """Records of CIFAR-10's binary version."""
    count, rest = divmod(file.stat().st_size, _CIFAR_RECORD)
    if rest:
        raise TrainingError(f"not CIFAR-10's records of {_CIFAR_RECORD} bytes")
    with file.open("rb") as stream:
        for total, records in arrays.read_rows(stream, (count, _CIFAR_RECORD)):
            yield total, records[:, 1:]


class _Array:
    """Stands for an array in a pickle, so that only shapes and bytes are taken from there."""

    def __init__(
        self, data: bytes = b"", dtype: _Dtype | None = None, shape: tuple[int, ...] = (), order: str = "C", *_: object
    ):
        if order not in ("C", "F"):
            raise TrainingError("the array is neither in C's nor in Fortran's order; save a copy of it")
        self.data, self.dtype, self.shape, self.fortran = data, dtype, shape, order == "F"

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Dtype, bool, bytes]) -> None:
        _, self.shape, self.dtype, self.fortran, self.data = state


class _Dtype:
    def __init__(self, name: str | bytes, *_: object):
        self.name = name

    def __setstate__(self, state: object) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    """Reads plain values and stands-in for arrays; no function of another module is ever called."""

    def find_class(self, module: str, name: str) -> Any:
        known: dict[str, Any] = {
            "numpy.ndarray": _Array,
            "numpy.dtype": _Dtype,
            "numpy.multiarray._reconstruct": lambda *_: _Array(),
            "numpy.multiarray.scalar": lambda *_: None,
            "numpy.numeric._frombuffer": _Array,
            "_codecs.encode": lambda text, *_: text.encode("latin-1"),  # how Python 3 writes bytes for Python 2
        }
        found = known.get(f"{re.sub(r'^numpy[.]_?core', 'numpy', module)}.{name}")
        if found is None:
            raise TrainingError(f"refused: a pickle that calls {module}.{name} holds more than images")
        return found


def pickled(file: Path, _: str | None) -> Blocks:
    """A batch of CIFAR or ImageNet, {"data": rows, ...} with keys in text or bytes."""
    with file.open("rb") as stream:
        if stream.read(1) != b"\x80":
            raise TrainingError("neither images, arrays, batches nor a tar of images")
        stream.seek(0)
        batch = _Unpickler(stream, encoding="bytes").load()
    data = batch.get(b"data", batch.get("data")) if isinstance(batch, dict) else None
    if not isinstance(data, _Array) or data.dtype is None or data.dtype.name not in ("u1", b"u1"):
        raise TrainingError("the pickle holds no array of uint8 called data")
    rows = np.frombuffer(data.data, np.uint8).reshape(data.shape, order="F" if data.fortran else "C")
    if not arrays.holds_images(rows.shape, rows.dtype):
        raise TrainingError(f"data: expected images, got {rows.shape}")
    step = max(1, arrays.BLOCK // max(1, prod(rows.shape[1:])))
    for first in range(0, len(rows), step):
        yield len(rows), rows[first : first + step]

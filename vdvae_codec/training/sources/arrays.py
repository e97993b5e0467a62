"""Arrays of images in any layout, in .npy and .npz files: pairs of their number and a block of rows."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from math import isqrt, prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from vdvae_codec.errors import TrainingError

BLOCK = 2**24  # bytes that are read at a time
_NAMES = ("x_train", "data", "images", "arr_0")  # of the array of images in an .npz, best first
Blocks = Iterator[tuple[int, np.ndarray]]  # number of images in all, and the next of them, uint8 in any layout


def as_rgb(rows: np.ndarray) -> np.ndarray | None:
    """Images in any layout as (n, H, W, 3), grey in three channels; None if they are in no known one."""
    if rows.ndim == 2:
        side = isqrt(rows.shape[1] // 3)
        if rows.shape[1] != 3 * side**2:
            return None
        rows = rows.reshape(len(rows), 3, side, side).transpose(0, 2, 3, 1)
    elif rows.ndim == 3:
        rows = rows[..., None]
    elif rows.ndim == 4 and rows.shape[3] not in (1, 3):
        rows = rows.transpose(0, 2, 3, 1)
    if rows.ndim != 4 or rows.shape[3] not in (1, 3):
        return None
    return np.broadcast_to(rows, (*rows.shape[:3], 3))


def holds_images(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    """Whether an array is one of images that ``as_rgb`` takes."""
    return dtype == np.uint8 and len(shape) > 1 and as_rgb(np.empty((0, *shape[1:]), np.uint8)) is not None


def read_rows(stream: IO[bytes], shape: tuple[int, ...]) -> Blocks:
    """Reads an array of uint8 in blocks of whole rows."""
    size = prod(shape[1:])
    step = max(1, BLOCK // max(1, size))
    for first in range(0, shape[0], step):
        count = min(step, shape[0] - first)
        data = stream.read(count * size)
        if len(data) < count * size:
            raise TrainingError(f"ends after {first + len(data) // size} of {shape[0]} images")
        yield shape[0], np.frombuffer(data, np.uint8).reshape(count, *shape[1:])


def _npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran's order, and dtype; leaves the stream at the first element."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    header: tuple[tuple[int, ...], bool, np.dtype[Any]] = read(stream)
    return header


def _npy_rows(stream: IO[bytes]) -> Blocks:
    shape, fortran, dtype = _npy_header(stream)
    if not holds_images(shape, dtype):
        raise TrainingError(f"expected images in uint8, got {shape} {dtype}")
    if fortran:
        raise TrainingError("the array is in Fortran's order; save numpy.ascontiguousarray of it")
    yield from read_rows(stream, shape)


def npy(file: Path, _: str | None) -> Blocks:
    """An .npy file."""
    with file.open("rb") as stream:
        yield from _npy_rows(stream)


def npz(file: Path, key: str | None) -> Blocks:
    """The array ``key`` of an .npz file; without a key, the only one of images or the one of a usual name."""
    with zipfile.ZipFile(file) as archive:
        found, usable = [], []
        for member in archive.namelist():
            if member.endswith(".npy"):
                with archive.open(member) as stream:
                    shape, _, dtype = _npy_header(stream)
                found.append(f"{member[:-4]}: {shape} {dtype}")
                usable += [member[:-4]] if holds_images(shape, dtype) else []
        wanted = [name for name in (_NAMES if key is None else (key,)) if name in usable]
        if not wanted and key is None and len(usable) == 1:
            wanted = usable
        if not wanted:
            what = f"{key} is no array of" if key is not None else "several arrays of" if usable else "no array of"
            hint = "; name one as FILE.npz:KEY" if key is None and usable else ""
            raise TrainingError(f"{what} images in uint8 ({', '.join(found)}){hint}")
        with archive.open(f"{wanted[0]}.npy") as stream:
            yield from _npy_rows(stream)

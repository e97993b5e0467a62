"""Whatever holds images for training as a set of images: folders, CIFAR, ImageNet32/64, arrays, shards of tar.

What is compact once decoded is decoded once into a flat file that all processes of a machine map; tar shards are only
indexed, and their images are decoded whenever they are asked for.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import re
import secrets
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from math import isqrt, prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from vdvae_codec.errors import ImageError, TrainingError
from vdvae_codec.images import image_files, read_rgb
from vdvae_codec.training.data import Images

log = logging.getLogger(__name__)

Index = dict[str, np.ndarray]  # of a set: its names (packed), sizes and, for shards, places

_VERSION = 1  # of the files in the cache
_NAMED = 50  # skipped images that are named; the others are counted
_BLOCK = 2**24  # bytes that are decoded at a time
_CIFAR_RECORD = 1 + 3 * 32 * 32  # bytes: label, planes
_BATCH = re.compile(r"(?:train_)?data_batch_(\d+)(?:\.bin|\.npz)?")
_TAR = re.compile(r".*\.(tar|tgz|tar\.(gz|bz2|xz|zst|lz4))")
_ARRAYS = ("x_train", "data", "images", "arr_0")  # names of the array of images in an .npz, best first


def open_images(path: Path, smallest_side: int, cache: Path) -> Images:
    """Opens the images at ``path`` whose sides have at least ``smallest_side`` pixels.

    ``path`` is one of: a folder of image files, searched recursively; the folder of CIFAR-10's or downsampled
    ImageNet's batches, of which only those for training are taken, or one batch (pickle, binary or .npz); an array of
    uint8 (N, H, W, 3), (N, 3, H, W), (N, H, W) or (N, 3 H H) as .npy, .npz or FILE.npz:KEY; an uncompressed .tar of
    image files, or a folder of them. In folders, unreadable and too small images are skipped and named in a warning.

    ``cache`` keeps the decoded pixels, or the index of the shards, and is used again while the files at ``path`` have
    the sizes and times that they had; files of their earlier states are deleted. Raises TrainingError if there is
    nothing to use, a file is damaged, or the cache cannot be written.
    """
    source, key = _split_key(path)
    with _naming(source):
        files = _files(source)
        stats = [(str(file.relative_to(source)), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    place = _digest(_VERSION, source.resolve(), key, smallest_side)
    file = cache / f"{place}-{_digest(stats)}.npz"
    pixels, sharded = file.with_suffix(".pixels"), any(_TAR.fullmatch(f.name) for f in files)
    index = _load_index(file) if sharded or pixels.exists() else None
    if index is None:
        total = sum(size for _, size, _ in stats)
        with tqdm(total=total, desc=f"reading {path}", unit="B", unit_scale=True, disable=None) as bar:
            choice = _Choice(source, smallest_side, bar)
            if sharded:
                index = _index_shards(files, choice)
            else:
                with _new_file(pixels) as out:
                    index = _decode(files, key, choice, out)
        with _new_file(file) as out:
            np.savez(out, **index)  # type: ignore[arg-type]
        for old in [*cache.glob(f"{place}-*.npz"), *cache.glob(f"{place}-*.pixels")]:
            if old.stem != file.stem:
                with suppress(OSError):
                    old.unlink()
    return Shards(files, index) if sharded else Decoded(pixels, index)


class Decoded:
    """Images that lie one after the other in a mapped file; see ``data.Images``."""

    def __init__(self, pixels: Path, index: Index):
        self.names, self.sizes = _unpack(index["names"]), index["sizes"]
        self._starts = np.append(0, np.cumsum(self.sizes.prod(1) * 3))
        with _naming(pixels):
            self._pixels = np.asarray(np.memmap(pixels, np.uint8, "r", shape=(int(self._starts[-1]),)))

    def __getitem__(self, n: int) -> np.ndarray:
        height, width = self.sizes[n]
        return self._pixels[self._starts[n] : self._starts[n + 1]].reshape(height, width, 3)


class Shards:
    """Image files inside uncompressed tar files, decoded when they are asked for; see ``data.Images``."""

    def __init__(self, shards: Sequence[Path], index: Index):
        self.names, self.sizes = _unpack(index["names"]), index["sizes"]
        self._shards, self._places = shards, index["places"]

    def __getitem__(self, n: int) -> np.ndarray:
        """An image with an intact header but damaged pixels is named in a warning and comes out black: a training of
        days is not to end because of it. Raises TrainingError if the shard itself cannot be read."""
        shard, start, length = self._places[n]
        height, width = self.sizes[n]
        with _naming(self._shards[shard]), self._shards[shard].open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), length, start)
        try:
            with Image.open(BytesIO(data)) as image:
                pixels = np.asarray(image.convert("RGB"))
            if pixels.shape != (height, width, 3):
                raise ImageError(f"{pixels.shape[1]}x{pixels.shape[0]} pixels instead of {width}x{height}")
        except Exception as error:
            log.warning("black instead of %s: %s", self.names[n], _reason(error))
            return np.zeros((height, width, 3), np.uint8)
        return pixels


# --- finding files ---


def _split_key(path: Path) -> tuple[Path, str | None]:
    """FILE.npz:KEY as its two parts; any other path as it is."""
    file, _, key = str(path).rpartition(":")
    return (Path(file), key) if file.endswith(".npz") and not path.exists() else (path, None)


def _files(path: Path) -> list[Path]:
    """The files to read for ``path``, in order: itself, or a folder's shards, batches or images."""
    if not path.exists():
        raise TrainingError(f"{path}: no such file or folder")
    if path.is_file():
        return [path]
    entries = sorted(p for p in path.iterdir() if p.is_file())
    shards = [p for p in entries if _TAR.fullmatch(p.name)]
    batches = {int(match[1]): p for p in entries if (match := _BATCH.fullmatch(p.name))}
    return shards or [batches[n] for n in sorted(batches)] or list(image_files(path))


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in Image.registered_extensions()


class _Choice:
    """Which images are taken, and how far the reading is."""

    def __init__(self, source: Path, smallest_side: int, bar: tqdm[Any]):
        self.source, self.smallest_side, self.bar = source, smallest_side, bar
        self.names: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self._skipped = 0

    def fits(self, name: str | Path, height: int, width: int) -> bool:
        """Whether an image is large enough; if not it is skipped."""
        if min(height, width) < self.smallest_side:
            self.skip(f"{name}: {width}x{height}, smaller than {self.smallest_side} pixels")
            return False
        return True

    def skip(self, line: str) -> None:
        self._skipped += 1
        if self._skipped <= _NAMED:
            log.warning("skipped %s", line)

    def reach(self, place: float) -> None:
        """Moves the bar to a place in bytes."""
        self.bar.update(int(place) - self.bar.n)

    def index(self) -> Index:
        if self._skipped > _NAMED:
            log.warning("skipped %d more", self._skipped - _NAMED)
        if not self.names:
            side = self.smallest_side
            raise TrainingError(f"{self.source}: no image of at least {side}x{side} pixels found")
        packed = "\0".join(self.names).encode("utf-8", "surrogateescape")
        return {"names": np.frombuffer(packed, np.uint8), "sizes": np.array(self.sizes, np.int64)}


def _unpack(names: np.ndarray) -> list[str]:
    return names.tobytes().decode("utf-8", "surrogateescape").split("\0")


# --- decoding once ---


def _decode(files: Sequence[Path], key: str | None, choice: _Choice, out: IO[bytes]) -> Index:
    """Appends the pixels of all images to ``out``."""
    root, start = choice.source if choice.source.is_dir() else choice.source.parent, 0
    for file in files:
        name, done = file.relative_to(root).as_posix(), 0
        with _naming(file):
            size = file.stat().st_size
        try:
            for total, pixels in _blocks(file, key):
                height, width = pixels.shape[1:3]
                if not choice.fits(file, height, width):
                    break  # all images of a file have one size
                out.write(np.ascontiguousarray(pixels).data)
                digits = len(str(total - 1))
                numbers = range(done, done + len(pixels))
                choice.names += [name] if _is_image(name) else [f"{name}/{n:0{digits}d}" for n in numbers]
                choice.sizes += [(height, width)] * len(pixels)
                done += len(pixels)
                choice.reach(start + size * done / total)
        except ImageError as error:
            choice.skip(str(error))
        start += size
        choice.reach(start)
    return choice.index()


def _blocks(file: Path, key: str | None) -> Iterator[tuple[int, np.ndarray]]:
    """Pairs of the number of images in a file and (n, H, W, 3) uint8, the next of them.

    Raises ImageError for an image file that cannot be read, TrainingError for others.
    """
    if _is_image(file.name):
        yield 1, read_rgb(file)[None]
        return
    read: dict[str, Callable[[Path, str | None], Iterator[tuple[int, np.ndarray]]]]
    read = {".npy": _npy, ".npz": _npz, ".bin": _cifar_binary}
    with _naming(file):
        for total, rows in read.get(file.suffix.lower(), _pickled)(file, key):
            pixels = _as_rgb(rows)
            assert pixels is not None
            yield total, pixels


def _as_rgb(rows: np.ndarray) -> np.ndarray | None:
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


def _holds_images(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    return dtype == np.uint8 and len(shape) > 1 and _as_rgb(np.empty((0, *shape[1:]), np.uint8)) is not None


def _rows(stream: IO[bytes], shape: tuple[int, ...]) -> Iterator[tuple[int, np.ndarray]]:
    """Reads an array of uint8 in blocks of whole rows."""
    size = prod(shape[1:])
    step = max(1, _BLOCK // max(1, size))
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


def _npy_rows(stream: IO[bytes]) -> Iterator[tuple[int, np.ndarray]]:
    shape, fortran, dtype = _npy_header(stream)
    if not _holds_images(shape, dtype):
        raise TrainingError(f"expected images in uint8, got {shape} {dtype}")
    if fortran:
        raise TrainingError("the array is in Fortran's order; save numpy.ascontiguousarray of it")
    yield from _rows(stream, shape)


def _npy(file: Path, _: str | None) -> Iterator[tuple[int, np.ndarray]]:
    with file.open("rb") as stream:
        yield from _npy_rows(stream)


def _npz(file: Path, key: str | None) -> Iterator[tuple[int, np.ndarray]]:
    with zipfile.ZipFile(file) as archive:
        found, usable = [], []
        for member in archive.namelist():
            if member.endswith(".npy"):
                with archive.open(member) as stream:
                    shape, _, dtype = _npy_header(stream)
                found.append(f"{member[:-4]}: {shape} {dtype}")
                usable += [member[:-4]] if _holds_images(shape, dtype) else []
        wanted = [name for name in (_ARRAYS if key is None else (key,)) if name in usable]
        if not wanted and key is None and len(usable) == 1:
            wanted = usable
        if not wanted:
            what = f"{key} is no array of" if key is not None else "several arrays of" if usable else "no array of"
            hint = "; name one as FILE.npz:KEY" if key is None and usable else ""
            raise TrainingError(f"{what} images in uint8 ({', '.join(found)}){hint}")
        with archive.open(f"{wanted[0]}.npy") as stream:
            yield from _npy_rows(stream)


def _cifar_binary(file: Path, _: str | None) -> Iterator[tuple[int, np.ndarray]]:
    count, rest = divmod(file.stat().st_size, _CIFAR_RECORD)
    if rest:
        raise TrainingError(f"not CIFAR-10's records of {_CIFAR_RECORD} bytes")
    with file.open("rb") as stream:
        for total, records in _rows(stream, (count, _CIFAR_RECORD)):
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


def _pickled(file: Path, _: str | None) -> Iterator[tuple[int, np.ndarray]]:
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
    if not _holds_images(rows.shape, rows.dtype):
        raise TrainingError(f"data: expected images, got {rows.shape}")
    step = max(1, _BLOCK // max(1, prod(rows.shape[1:])))
    for first in range(0, len(rows), step):
        yield len(rows), rows[first : first + step]


# --- indexing shards ---


def _index_shards(shards: Sequence[Path], choice: _Choice) -> Index:
    """Lists the images of tar files; ``places`` (N, 3) int64 says which shard, from which byte, how many bytes."""
    places, start = [], 0
    for number, shard in enumerate(shards):
        with _naming(shard):
            try:
                tar = tarfile.open(shard, "r:")  # noqa: SIM115
            except tarfile.ReadError as error:
                raise TrainingError("not an uncompressed tar; decompress it if it is a compressed one") from error
            with tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # or they fill the memory
                    choice.reach(start + member.offset)
                    if not member.isreg() or not _is_image(member.name):
                        continue
                    name = f"{shard.name}/{member.name}"
                    try:
                        with Image.open(tar.extractfile(member)) as image:  # type: ignore[arg-type]
                            width, height = image.size
                    except Exception as error:
                        choice.skip(f"{name}: {_reason(error)}")
                        continue
                    if choice.fits(name, height, width):
                        choice.names.append(name)
                        choice.sizes.append((height, width))
                        places.append((number, member.offset_data, member.size))
        start += shard.stat().st_size
        choice.reach(start)
    return {**choice.index(), "places": np.array(places, np.int64)}


# --- the cache ---


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _load_index(file: Path) -> Index | None:
    """An index of the cache, or None if it is absent or damaged."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


@contextmanager
def _new_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears at once, when it is complete, or not at all; raises TrainingError if it cannot be written."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise TrainingError(f"{path.parent}: cannot keep the images there ({_reason(error)})") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns whatever reading a file raises into a one-line TrainingError that begins with its path."""
    try:
        yield
    except Exception as error:
        if isinstance(error, TrainingError) and str(error).startswith(str(path)):
            raise
        raise TrainingError(f"{path}: {_reason(error)}") from error

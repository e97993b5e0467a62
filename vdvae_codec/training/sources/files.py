"""Which files a path stands for, and errors that name them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from vdvae_codec.errors import TrainingError
from vdvae_codec.images.files import image_files

_BATCH = re.compile(r"(?:train_)?data_batch_(\d+)(?:\.bin|\.npz)?")
_TAR = re.compile(r".*\.(tar|tgz|tar\.(gz|bz2|xz|zst|lz4))")


def split_key(path: Path) -> tuple[Path, str | None]:
    """FILE.npz:KEY as its two parts; any other path as it is."""
    file, _, key = str(path).rpartition(":")
    return (Path(file), key) if file.endswith(".npz") and not path.exists() else (path, None)


def files_of(path: Path) -> list[Path]:
    """The files to read for ``path``, in order: itself, or a folder's shards, batches or images."""
    if not path.exists():
        raise TrainingError(f"{path}: no such file or folder")
    if path.is_file():
        return [path]
    entries = sorted(p for p in path.iterdir() if p.is_file())
    batches = {int(match[1]): p for p in entries if (match := _BATCH.fullmatch(p.name))}
    return [p for p in entries if is_tar(p)] or [batches[n] for n in sorted(batches)] or list(image_files(path))


def is_tar(file: Path) -> bool:
    """By its name; compressed ones too."""
    return _TAR.fullmatch(file.name) is not None


def is_image(name: str) -> bool:
    """Whether the suffix is that of an image format that Pillow knows."""
    return Path(name).suffix.lower() in Image.registered_extensions()


def reason(error: Exception) -> str:
    """What an error says, on one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turns whatever reading a file raises into a one-line TrainingError that begins with its path."""
    try:
        yield
    except Exception as error:
        if isinstance(error, TrainingError) and str(error).startswith(str(path)):
            raise
        raise TrainingError(f"{path}: {reason(error)}") from error

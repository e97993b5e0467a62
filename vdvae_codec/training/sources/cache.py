"""Files of the cache: named by what they are made of, and there at once or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np

from vdvae_codec.errors import TrainingError
from vdvae_codec.training.sources.choice import Index
from vdvae_codec.training.sources.files import reason


def digest(*parts: object) -> str:
    """16 hexadecimal digits that differ where the parts do."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def load_index(file: Path) -> Index | None:
    """An index of the cache, or None if it is absent or damaged."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
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
        raise TrainingError(f"{path.parent}: cannot keep the images there ({reason(error)})") from error
    finally:
        with suppress(OSError):
            temporary.unlink()

"""Files that appear complete or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

PREFIX, SUFFIX = ".vdvae-codec-", ".tmp"  # of temporary names


@contextlib.contextmanager
def replacing(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file under another name that becomes ``path``, or what that links to, at the end; in case of an error nothing
    changes.

    ``mode``: its permissions, less those that the process's umask takes away. What a killed process left in the same
    folder is removed, once a process. Raises OSError, which names ``path``.
    """
    path = path.resolve() if path.is_symlink() else path
    remove_left(path.parent)
    try:
        file, temporary = created(path.parent, mode)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if sys.platform == "win32":
                file.close()  # there no open file is renamed; elsewhere it stays locked until it has its name
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def created(folder: Path, mode: int) -> tuple[BinaryIO, Path]:
    """A new file that its owner can read and write, locked so that no other process removes it. Raises OSError."""
    while True:
        path = folder / f"{PREFIX}{secrets.token_hex(8)}{SUFFIX}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags, mode | 0o600)
        lock(descriptor, wait=True)
        if os.fstat(descriptor).st_nlink:
            return os.fdopen(descriptor, "wb"), path
        os.close(descriptor)  # removed before it was locked


def lock(descriptor: int, wait: bool = False) -> bool:
    """Whether a file is locked now, until it is closed or the process ends; not where another has it locked, unless
    that is ``wait``ed for, and not where there are no locks."""
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            return True
    return False


@cache
def remove_left(folder: Path) -> None:
    """Removes the temporary files that no process has locked: those that wrote them were killed."""
    with contextlib.suppress(OSError):
        names = [e.name for e in os.scandir(folder) if e.name.startswith(PREFIX) and e.name.endswith(SUFFIX)]
        for path in (folder / name for name in names if (folder / name).is_file()):
            with contextlib.suppress(OSError), path.open("r+b") as file:
                if lock(file.fileno()):
                    path.unlink()

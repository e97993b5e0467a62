"""Files here and on object stores, by URL (fsspec); outputs appear complete or not at all."""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from vdvae_codec.format.whole import replacing

Details = dict[str, Any]  # what a file system says of a file


def read(url: str, start: int | None = None, stop: int | None = None) -> bytes:
    """A file's bytes, or some of them. Raises OSError."""
    system, path = url_to_fs(url)
    data: bytes = system.cat_file(path, start=start, end=stop)
    return data


def write(url: str, data: bytes) -> None:
    """Writes a whole file: here under another name that becomes its own, on an object store in one request.

    Raises OSError.
    """
    system, path = url_to_fs(url)
    if is_local(system):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(Path(path)) as file:
            file.write(data)
    else:
        system.pipe_file(path, data)


def write_from(url: str, local: Path) -> None:
    """Likewise of a local file of any size, which an object store takes in parts that appear at once."""
    system, path = url_to_fs(url)
    if is_local(system):
        with local.open("rb") as source, replacing(Path(path)) as file:
            while block := source.read(2**20):
                file.write(block)
    else:
        system.put_file(str(local), path)


def is_local(system: Any) -> bool:
    return "file" in ((system.protocol,) if isinstance(system.protocol, str) else system.protocol)


def found(url: str) -> tuple[str, list[tuple[str, Details]]]:
    """A folder's URL, and the files below it by their paths there, sorted: of a folder, a pattern or a single file.

    Raises OSError if there is no such file.
    """
    system, path = url_to_fs(url)
    system.invalidate_cache()  # what is there now
    if any(c in path for c in "*?[") and not system.exists(path):
        fixed = posixpath.dirname(path[: min(path.find(c) for c in "*?[" if c in path)] + "x")
        root, files = fixed, system.glob(path, detail=True)
    elif system.isdir(path):
        root, files = path, system.find(path, detail=True)
    else:
        root, files = posixpath.dirname(path), {path: system.info(path)}
    root = root.rstrip("/")
    names = {name.removeprefix(root).lstrip("/"): info for name, info in files.items() if info["type"] == "file"}
    if not names:
        raise FileNotFoundError(2, "no files", url)
    return system.unstrip_protocol(root), sorted(names.items())


def joined(folder: str, name: str) -> str:
    """The URL of a file below a folder."""
    return f"{folder.rstrip('/')}/{name}"


def modified(info: Details) -> int | None:
    """Seconds since 1970."""
    time = info.get("mtime", info.get("LastModified"))
    return None if time is None else int(time.timestamp() if hasattr(time, "timestamp") else time)


def version(info: Details) -> str:
    """What differs where a file has changed."""
    tags = (info[key] for key in ("ETag", "etag", "mtime", "LastModified") if key in info)
    return f"{info['size']} {next(tags, '')}"

"""What a run takes in: folders of images, tar shards, Parquet columns, archives; each is cut into pieces of its kind.

A piece says where its images are and holds none of them: who works on it reads it.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import accumulate, pairwise
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from fsspec.core import url_to_fs

from vdvae_codec.bulk.places import found, joined, modified, read, version
from vdvae_codec.codec.archive import open_archive
from vdvae_codec.errors import ImageError, VdvaeCodecError
from vdvae_codec.images.files import is_image_name


class Limit(NamedTuple):
    """Of a piece, unless a single image or segment has more."""

    images: int
    bytes: int


class Item(NamedTuple):
    """An image file; ``read`` raises OSError and ImageError."""

    name: str
    read: Callable[[], bytes]
    modified: int | None = None  # seconds since 1970


@dataclass(frozen=True)
class File:
    """A file below a folder."""

    name: str
    size: int
    modified: int | None
    version: str


@dataclass(frozen=True)
class Files:
    """Image files below one folder."""

    name: str  # of what is made of it, without a suffix
    root: str
    files: tuple[File, ...]

    @property
    def size(self) -> int:
        """Bytes that are read."""
        return sum(file.size for file in self.files)

    def cut(self, limit: Limit) -> Iterator[Files]:
        runs = cuts([(n, file.size) for n, file in enumerate(self.files)], len(self.files), limit)
        return (replace(self, files=self.files[start:stop]) for start, stop in runs)

    def items(self) -> Iterator[Item]:
        for file in self.files:
            yield Item(file.name, lambda file=file: read(joined(self.root, file.name)), file.modified)  # type: ignore[misc]


@dataclass(frozen=True)
class Shard:
    """The members of an uncompressed tar from one byte to another, which is a tar by itself."""

    name: str
    url: str
    version: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def cut(self, limit: Limit) -> Iterator[Shard]:
        """Reads the heads of the members; raises VdvaeCodecError for what is no uncompressed tar."""
        system, path = url_to_fs(self.url)
        try:
            with system.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
                images = [(m.offset, m.size) for m in members(tar) if is_image_name(Path(m.name))]
                stop = tar.offset
        except tarfile.TarError as error:
            raise VdvaeCodecError(f"{self.url}: not an uncompressed tar ({error})") from error
        return (replace(self, start=a, stop=b) for a, b in cuts(images, stop, limit))

    def items(self) -> Iterator[Item]:
        with tarfile.open(fileobj=BytesIO(read(self.url, self.start, self.stop)), mode="r:") as tar:
            for member in members(tar):
                if is_image_name(Path(member.name)):
                    file = tar.extractfile(member)
                    assert file is not None
                    yield Item(member.name.removeprefix("./"), file.read, int(member.mtime))


def members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The regular files of a tar, none of which stays in memory."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]
        if member.isreg():
            yield member


@dataclass(frozen=True)
class Rows:
    """Rows of a Parquet file: of its first column of bytes, or of structs with ``bytes``, as data sets have images."""

    name: str
    url: str
    version: str
    start: int
    stop: int
    size: int

    def cut(self, limit: Limit) -> Iterator[Rows]:
        """Reads the end of the file; rows of one group count as equally large. Raises VdvaeCodecError."""
        with parquet_of(self.url) as file:
            groups = [file.metadata.row_group(n) for n in range(file.num_row_groups)]
            sizes = [g.total_byte_size // max(1, g.num_rows) for g in groups for _ in range(g.num_rows)]
        for start, stop in cuts(list(enumerate(sizes)), len(sizes), limit):
            yield replace(self, start=start, stop=stop, size=sum(sizes[start:stop]))

    def items(self) -> Iterator[Item]:
        with parquet_of(self.url) as file:
            counts = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
            begins = list(accumulate(counts, initial=0))
            groups = [n for n in range(len(counts)) if begins[n] < self.stop and begins[n + 1] > self.start]
            column = image_column(file.schema_arrow, self.url)
            rows = file.read_row_groups(groups, [column]).column(column)
        for n, row in enumerate(rows.slice(self.start - begins[groups[0]], self.stop - self.start), self.start):
            yield Item(f"{n:08d}", lambda row=row, n=n: bytes_of(row.as_py(), f"row {n}"))  # type: ignore[misc]


def parquet_of(url: str) -> Any:
    """An open Parquet file. Raises VdvaeCodecError."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise VdvaeCodecError(f"{url}: reading Parquet needs pyarrow: pip install pyarrow") from error
    system, path = url_to_fs(url)
    try:
        return pyarrow.parquet.ParquetFile(path, filesystem=system)
    except pyarrow.ArrowInvalid as error:
        raise VdvaeCodecError(f"{url}: not a Parquet file") from error


def image_column(schema: Any, url: str) -> str:
    """The name of the column of images. Raises VdvaeCodecError."""
    for field in schema:
        kind = str(field.type)
        if kind in ("binary", "large_binary") or (kind.startswith("struct<") and "bytes: " in kind):
            name: str = field.name
            return name
    raise VdvaeCodecError(f"{url}: no column of bytes")


def bytes_of(value: bytes | dict[str, Any] | None, name: str) -> bytes:
    """Of a cell. Raises ImageError for none."""
    data = value.get("bytes") if isinstance(value, dict) else value
    if data is None:
        raise ImageError(f"{name}: no image")
    return data


@dataclass(frozen=True)
class Segments:
    """Segments of a .vdz."""

    name: str
    url: str
    version: str
    start: int
    stop: int
    size: int

    def cut(self, limit: Limit) -> Iterator[Segments]:
        """Reads the index. Raises VdvaeCodecError and OSError."""
        with open_archive(self.url) as archive:
            segments, end = archive.reader.segments, archive.reader.size
        ends = [*(segment.start for segment in segments[1:]), end]
        start, images = 0, 0
        for n, segment in enumerate(segments):
            count, size = segment.count or 1, ends[n] - segments[start].start
            if n > start and (images + count > limit.images or size > limit.bytes):
                yield replace(self, start=start, stop=n, size=segment.start - segments[start].start)
                start, images = n, 0
            images += count
        if segments:
            yield replace(self, start=start, stop=len(segments), size=end - segments[start].start)


Images = Files | Shard | Rows
Source = Images | Segments


def cuts(images: list[tuple[int, int]], end: int, limit: Limit) -> Iterator[tuple[int, int]]:
    """Where runs of images (place, bytes) start and stop, the last one at ``end``; none without images."""
    start, count, size = 0, 0, 0
    for place, own in images:
        if count == limit.images or (count and size + own > limit.bytes):
            yield start, place
            start, count, size = place, 0, 0
        count, size = count + 1, size + own
    if count:
        yield start, end


def image_sources(inputs: Iterable[str | Path]) -> list[Source]:
    """Folders, patterns and files of images, tar shards (.tar) and Parquet files (.parquet): paths or URLs.

    What else is there is no input. Raises VdvaeCodecError and OSError.
    """
    files, sources = dict[str, dict[str, File]](), list[Source]()
    for root, name, info in listed(inputs):
        kind, stem = PurePosixPath(name).suffix.lower(), name.rpartition(".")[0]
        if kind == ".tar":
            sources.append(Shard(stem, joined(root, name), version(info), 0, info["size"]))
        elif kind == ".parquet":
            sources.append(Rows(stem, joined(root, name), version(info), 0, 0, info["size"]))
        elif is_image_name(Path(name)):
            files.setdefault(root, {})[name] = File(name, info["size"], modified(info), version(info))
    sources += [Files(PurePosixPath(root).name, root, tuple(own.values())) for root, own in files.items()]
    return in_order(sources)


def archive_sources(inputs: Iterable[str | Path]) -> list[Source]:
    """Archives (.vdz), and folders and patterns of them: paths or URLs. Raises VdvaeCodecError and OSError."""
    return in_order([
        Segments(name.rpartition(".")[0], joined(root, name), version(info), 0, 0, info["size"])
        for root, name, info in listed(inputs) if name.lower().endswith(".vdz")
    ])


def listed(inputs: Iterable[str | Path]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Folder, path below it and details of each file."""
    for given in dict.fromkeys(map(str, inputs)):
        root, files = found(given)
        yield from ((root, name, info) for name, info in files)


def in_order(sources: list[Source]) -> list[Source]:
    """Sorted by their names; raises VdvaeCodecError where two have one."""
    sources = sorted(sources, key=lambda source: source.name)
    for one, two in pairwise(sources):
        if one.name == two.name:
            raise VdvaeCodecError(f"two inputs are called {one.name}: their outputs would be one")
    if not sources:
        raise VdvaeCodecError("no inputs: nothing was found that this can work on")
    return sources

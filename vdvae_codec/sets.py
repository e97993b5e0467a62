"""Sets of images as one archive, for Python users: streams in, streams out, a segment at a time."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from vdvae_codec import colours, tiles
from vdvae_codec.api import file_pixels
from vdvae_codec.archive import Entry, Found, Reader, Segment, Writer, is_safe
from vdvae_codec.config import DEFAULT_MODEL
from vdvae_codec.errors import FormatError, ImageError, ModelError, VdvaeCodecError
from vdvae_codec.images import SUFFIXES, best_file, image_files, read_picture, write_image
from vdvae_codec.released import Released, load_released, model_named
from vdvae_codec.tiles import Shape, runs_of, tile_of

SEGMENT = 10_000  # images of a segment
SEGMENT_PIXELS = 2**26  # of a segment: bounds the memory


@dataclass(frozen=True)
class Source:
    """An image for an archive: the bytes of a file, or pixels (H, W, 1 or 3) uint8."""

    name: str  # path with slashes
    content: bytes | np.ndarray
    modified: int | None = None  # seconds since 1970


@dataclass(frozen=True)
class SetReport:
    """What an archive holds and costs, in bytes unless the name says bits."""

    images: int
    stored: int  # of them, as files: 16 bits, transparency, palettes, animations
    segments: int
    dims: int  # sub-pixels that the model coded
    input_bytes: int
    file_bytes: int
    word_bytes: int  # of the entropy coder
    stored_bytes: int
    table_bytes: int  # names, times, shapes, metadata, groups and checksums
    initial_bits: float

    @property
    def bpd(self) -> float:
        """Bits of all but the stored files per sub-pixel that the model coded."""
        return 8 * (self.file_bytes - self.stored_bytes) / max(1, self.dims)


def write_archive(
    sources: Iterable[Source], file: BinaryIO, model: str = DEFAULT_MODEL, device: str = "auto", *,
    segment: int = SEGMENT, verify: bool = True, total: int | None = None,
    failed: Callable[[str], None] | None = None,
) -> SetReport:
    """Codes images, in their order, into an archive; ``segment`` bounds the images that one damaged byte can cost.

    Takes one segment at a time from ``sources``, of which ``total`` is only shown. ``verify`` decodes each segment and
    compares every pixel and file before the next one. An unreadable image is left out if ``failed`` takes the line that
    says so. Raises ImageError, ModelError or VdvaeCodecError.
    """
    released, writer = load_released(model, device), Writer(file)
    images = stored = segments = dims = input_bytes = word_bytes = stored_bytes = 0
    initial_bits = 0.0
    with tqdm(total=total, desc="compressing", unit="image", disable=None) as bar:
        for part in segments_of(sources, segment, failed):
            coded, initial = encode_segment(part, released)
            if verify:
                check(part, coded, released)
            writer.add(coded)
            segments += 1
            images += len(part)
            for item, entry in zip(part, coded.entries):
                stored += entry.shape is None
                stored_bytes += entry.file_bytes
                dims += int(np.prod(entry.shape)) if entry.shape else 0
                input_bytes += item.content.nbytes if isinstance(item.content, np.ndarray) else len(item.content)
            word_bytes += coded.word_bytes
            initial_bits += initial
            bar.update(len(part))
    if not images:
        raise ImageError("no images: nothing was written")
    writer.finish()
    return SetReport(
        images, stored, segments, dims, input_bytes, file.tell(), word_bytes, stored_bytes, writer.table_bytes,
        initial_bits,
    )


class FolderSources:
    """The images below a folder, in the order of their paths, each read when its turn comes."""

    def __init__(self, folder: Path, paths: list[Path], failed: Callable[[str], None]):
        self._folder, self._paths, self._failed = folder, paths, failed

    def __len__(self) -> int:
        return len(self._paths)

    def __iter__(self) -> Iterator[Source]:
        for path in self._paths:
            try:
                name = path.relative_to(self._folder).as_posix()
                source = Source(name, path.read_bytes(), int(path.stat().st_mtime))
            except OSError as error:
                self._failed(f"{path}: {error.strerror}")
            else:
                yield source


def folder_sources(folder: Path, failed: Callable[[str], None]) -> tuple[FolderSources, list[str]]:
    """The images below a folder, and the names of its other files; ``failed`` gets a line for each unreadable file."""
    images = list(image_files(folder))
    known = set(images)
    others = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file() and p not in known]
    return FolderSources(folder, images, failed), others


@dataclass(frozen=True)
class Item:
    """A source, read."""

    name: str
    modified: int | None
    content: bytes | np.ndarray
    pixels: np.ndarray | None  # (H, W, 1 or 3) uint8, if the model codes it
    stored: bytes  # else: the file that is stored
    suffix: str  # and its suffix, unless it is the original
    metadata: dict[str, bytes]


def read(source: Source) -> Item:
    """Raises ImageError."""
    if not is_safe(source.name):
        raise ImageError(f"{source.name!r}: a name that an archive cannot hold")
    if isinstance(source.content, np.ndarray):
        pixels = source.content
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or not pixels.size:
            raise ImageError(f"{source.name}: expected (H, W, 1 or 3) uint8, got {pixels.shape} {pixels.dtype}")
        return Item(source.name, source.modified, pixels, pixels, b"", "", {})
    picture = read_picture(source.content, source.name)
    if picture.pixels is not None:
        return Item(source.name, source.modified, source.content, picture.pixels, b"", "", picture.metadata)
    stored, suffix = best_file(picture)
    suffix = "" if stored is picture.data else suffix
    return Item(source.name, source.modified, source.content, None, stored, suffix, {})


def segments_of(
    sources: Iterable[Source], count: int, failed: Callable[[str], None] | None
) -> Iterator[list[Item]]:
    part: list[Item] = []
    pixels = 0
    for source in sources:
        try:
            item = read(source)
        except ImageError as error:
            if failed is None:
                raise
            failed(str(error))
            continue
        size = item.pixels.size // item.pixels.shape[2] if item.pixels is not None else len(item.stored)
        if part and (len(part) == count or pixels + size > SEGMENT_PIXELS):
            yield part
            part, pixels = [], 0
        part.append(item)
        pixels += size
    if part:
        yield part


def coded_shapes(entries: Iterable[Entry]) -> list[Shape]:
    return [e.shape for e in entries if e.shape is not None]


def encode_segment(part: list[Item], released: Released) -> tuple[Segment, float]:
    """The segment, and its initial bits."""
    images, hows, crc = [], [], 0
    for item in part:
        steps, how = (None, b"") if item.pixels is None else colours.undo(item.pixels)
        hows.append({"colours": how} if how else {})
        if item.pixels is not None and steps is not None:
            images.append(steps)
            crc = zlib.crc32(item.pixels.tobytes(), crc)
    shapes = [shape_of(image) for image in images]
    runs = runs_of(shapes, [tile_of(shape, released.config) for shape in shapes])
    coded = tiles.encode(images, runs, released)
    entries = tuple(
        Entry(
            i.name, i.modified, None if i.pixels is None else shape_of(i.pixels), len(i.stored), i.suffix,
            i.metadata | how,
        )
        for i, how in zip(part, hows)
    )
    payload = b"".join([coded.payload, *(item.stored for item in part)])
    return Segment(
        released.name, released.digest, entries, coded.groups, coded.direct, crc, len(coded.payload), payload
    ), coded.initial_bits


def shape_of(image: np.ndarray) -> Shape:
    height, width, channels = image.shape
    return height, width, channels


def decode_segment(segment: Segment, released: Released) -> list[np.ndarray]:
    """The images (H, W, 1 or 3) uint8 that the model coded; raises FormatError."""
    shapes = coded_shapes(segment.entries)
    grids = [tile_of(shape, released.config) for shape in shapes]
    count = sum(-(-shape[0] // grid[0]) * -(-shape[1] // grid[1]) for shape, grid in zip(shapes, grids))
    if sum(segment.groups) != count or sum(shape[0] * shape[1] for shape in shapes) > 2**32:
        raise FormatError("table: the groups do not fit the images")
    tiles.check_groups(segment.groups, min(grids, default=(1, 1), key=lambda grid: grid[0] * grid[1]))
    words = segment.payload[: segment.word_bytes]
    coded = tiles.decode(shapes, runs_of(shapes, grids), segment.groups, segment.direct, words, released)
    hows = (entry.metadata.get("colours", b"") for entry in segment.entries if entry.shape is not None)
    images = [colours.redo(image, how) for image, how in zip(coded, hows)]
    crc = 0
    for image in images:
        crc = zlib.crc32(image.tobytes(), crc)
    if crc != segment.pixels_crc:
        raise FormatError("the decoded pixels do not match their checksum")
    return images


def check(part: list[Item], segment: Segment, released: Released) -> None:
    """Raises VdvaeCodecError if a segment does not decode to what it was made of."""
    decoded = iter(decode_segment(segment, released))
    files = {entry.name: content for entry, content in segment.files()}
    for item in part:
        if item.pixels is not None:
            same = np.array_equal(next(decoded), item.pixels)
        else:
            assert isinstance(item.content, bytes)
            same = np.array_equal(file_pixels(files[item.name]), file_pixels(item.content))
        if not same:
            raise VdvaeCodecError(f"{item.name}: does not decode to the same pixels; nothing was written")


@dataclass(frozen=True)
class Member:
    """An image out of an archive."""

    entry: Entry
    pixels: np.ndarray | None  # (H, W, 1 or 3) uint8; None for a stored file
    file: bytes  # the stored file

    @property
    def name(self) -> str:
        """Of the file that ``to_bytes`` gives: the original's, if its format is lossless, or with .png behind."""
        name = self.entry.name
        own = PurePosixPath(name).suffix.lower()
        if self.pixels is None and not self.entry.suffix:
            return name
        grey = self.pixels is not None and self.pixels.shape[2] == 1
        return name if own in SUFFIXES and (own != ".pgm" or grey) else name + ".png"

    def to_bytes(self) -> bytes:
        """An image file. Raises ImageError."""
        if self.pixels is not None:
            return write_image(self.pixels, self.entry.metadata, PurePosixPath(self.name).suffix)
        if not self.entry.suffix:
            return self.file
        metadata = read_picture(self.file, self.entry.name + self.entry.suffix).metadata
        return write_image(file_pixels(self.file), metadata, PurePosixPath(self.name).suffix)


def read_archive(
    file: BinaryIO, model: str | None = None, device: str = "auto", *,
    only: Callable[[str], bool] = lambda name: True, lost: Callable[[str], None],
) -> Iterator[Member]:
    """The images of an archive whose names ``only`` takes, in order; segments without such are not decoded.

    A damaged segment does not end it: ``lost`` gets a line that says which images it costs, and why. Raises FormatError
    if the file is no archive at all, and ModelError.
    """
    reader = Reader(file)
    if not reader.complete:
        lost("the index at the end is missing or damaged: segments are taken as they come")
    with tqdm(desc="decompressing", unit="image", disable=None) as bar:
        for found in reader.segments:
            try:
                entries = reader.entries(found)
                found = Found(found.start, len(entries), entries[0].name, entries[-1].name)
                if not any(only(entry.name) for entry in entries):
                    continue
                segment = reader.segment(found)
                released = model_named(segment.model, segment.digest, model, device) if segment.word_bytes else None
                decoded = iter(decode_segment(segment, released) if released else [])
                stored = {entry.name: content for entry, content in segment.files()}
            except ModelError:
                raise
            except VdvaeCodecError as error:
                lost(f"{found} are lost: {error}")
                continue
            for entry in entries:
                member = Member(entry, None if entry.shape is None else next(decoded), stored.get(entry.name, b""))
                if only(entry.name):
                    yield member
                bar.update()


def list_archive(file: BinaryIO) -> Iterator[tuple[Found, tuple[Entry, ...] | FormatError]]:
    """Every segment and its images, or what is wrong with it, without decoding anything. Raises FormatError."""
    reader = Reader(file)
    for found in reader.segments:
        try:
            yield found, reader.entries(found)
        except FormatError as error:
            yield found, error

"""An archive as the files that its images become."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import PurePosixPath

from vdvae_codec.codec.archive import Archive, file_name
from vdvae_codec.errors import FormatError, ImageError
from vdvae_codec.format.vdz import Segment
from vdvae_codec.images.files import Picture
from vdvae_codec.images.frame import suffix_of


def is_single(archive: Archive) -> bool:
    """Whether a .vdz was made of one file, not of a folder: its only image has no name.

    Raises FormatError if nothing of it can be read.
    """
    reader = archive.reader
    if not reader.segments:
        raise FormatError(reader.trouble)
    return len(reader.segments) == 1 and [entry.name for entry in reader.entries(reader.segments[0])] == [""]


def single_suffix(archive: Archive) -> str:
    """Of the file that the only image of a .vdz becomes by default; nothing is decoded. Raises ImageError."""
    (entry,) = archive.entries
    return entry.suffix if entry.original else suffix_of(entry.metadata.get("frame", b""))


def files(
    archive: Archive, only: Callable[[str], bool] = lambda name: True, *, lost: Callable[[str], None]
) -> Iterator[tuple[str, bytes, int | None]]:
    """Name (with slashes), contents and time of the files of the images whose names ``only`` takes, in order.

    No two have the same name. ``lost`` gets a line for what cannot be had. Raises ModelError.
    """
    own, given = own_names(archive), set[str]()
    for picture in archive.pictures(only, lost=lost):
        try:
            name = free_name(picture, own)
            if name in given:
                raise ImageError(f"{name}: another image before it has this name")
            suffix = None if picture.data else PurePosixPath(name).suffix
            yield name, picture.to_bytes(suffix)[0], picture.modified
            given.add(name)
        except ImageError as error:
            lost(f"{picture.name} lost: {error}")


def whole_segments(archive: Archive, *, lost: Callable[[str], None]) -> Iterator[Segment]:
    """The segments that are not damaged, in order; ``lost`` gets a line for each of the others."""
    if not archive.reader.complete:
        lost(archive.reader.trouble)
    for found in archive.reader.segments:
        try:
            entries = archive.reader.entries(found)
            found = replace(found, count=len(entries), first=entries[0].name, last=entries[-1].name)
            yield archive.reader.segment(found)
        except FormatError as error:
            lost(f"{found} lost: {error}")


def own_names(archive: Archive) -> set[str]:
    """The names of all images whose segments can be read."""
    names: set[str] = set()
    for found in archive.reader.segments:
        with suppress(FormatError):
            names |= {entry.name for entry in archive.reader.entries(found)}
    return names


def free_name(picture: Picture, own: set[str]) -> str:
    """As ``archive.file_name``, but not the ``own`` name of another image."""
    name = file_name(picture) or "image"
    while name != picture.name and name in own:
        name += ".png"
    return name

"""An archive as the files that its images become."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from vdvae_codec.codec.archive import Archive
from vdvae_codec.errors import DeflateError, FormatError, ImageError
from vdvae_codec.format.vdz import Segment
from vdvae_codec.images.files import Picture
from vdvae_codec.images.names import file_names


def files(
    archive: Archive, only: Callable[[str], bool] = lambda name: True, *, lost: Callable[[str], None],
    there: Callable[[str], bool] = lambda name: False,
) -> Iterator[tuple[str, bytes, int | None]]:
    """Name (with slashes), contents and time of the files of the images whose names ``only`` takes, in order; not of
    files that are ``there`` already.

    No two have the same name. ``lost`` gets a line for what cannot be had, and as ``file_of``. Raises ModelError.
    """
    names, given = file_names(archive.reader), set[str]()
    for picture in archive.pictures(lambda own: only(own) and not there(names[own]), lost=lost):
        try:
            name = names[picture.name]
            if name in given:
                raise ImageError(f"{name}: another image before it has this name")
            suffix = None if picture.data else PurePosixPath(name).suffix
            image, trouble = file_of(picture, suffix)
            if trouble:
                lost(f"{name}: {trouble}")
            yield name, image, picture.modified
            given.add(name)
        except ImageError as error:
            lost(f"{picture.name} lost: {error}")


def file_of(picture: Picture, suffix: str | None) -> tuple[bytes, str]:
    """The image file of a picture, as ``Picture.to_bytes``; and a line where very bytes were promised that this machine
    cannot make: then the file has the same pixels and chunks. Raises ImageError."""
    try:
        return picture.to_bytes(suffix)[0], ""
    except DeflateError as error:
        trouble = f"{error}; what is written has the same pixels and chunks, and is another file"
        return picture.to_bytes(suffix, exact=False)[0], trouble


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

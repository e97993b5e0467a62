"""The names of the files that the images of a .vdz become, from its tables alone: nothing is decoded."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import replace
from pathlib import PurePosixPath

from vdvae_codec.errors import FormatError, ImageError
from vdvae_codec.format.vdz import Entry, Reader
from vdvae_codec.images.files import SUFFIXES, is_image_suffix, same_format
from vdvae_codec.images.frame import suffix_of

LONGEST = 255  # bytes of a file's name, on most systems
DEEP_SUFFIXES = (".png",)  # of formats that are written with 16 bits a sample
PLAIN_SUFFIXES = (".bmp", ".ppm", ".pgm")  # of formats that carry no metadata


def is_single(reader: Reader) -> bool:
    """Whether a .vdz was made of one file, not of a folder: its only image has no name.

    Raises FormatError if nothing of it can be read.
    """
    if not reader.segments:
        raise FormatError(reader.trouble)
    return len(reader.segments) == 1 and [entry.name for entry in reader.entries(reader.segments[0])] == [""]


def single_suffix(reader: Reader) -> str:
    """Of the file that the only image of a .vdz becomes by default. Raises FormatError and ImageError."""
    (entry,) = reader.entries(reader.segments[0])
    return suffix_alone(entry)


def suffix_alone(entry: Entry) -> str:
    """Of the file that an image without a name becomes: what ``file_name`` makes of the suffix that its file had.

    Raises ImageError for what no frame says.
    """
    if entry.original:
        return entry.suffix
    suffix_of(entry.metadata.get("frame", b""))
    own = entry.metadata.get("suffix", b"").decode()
    return PurePosixPath(file_name(replace(entry, name=f"image{own}"))).suffix


def file_names(reader: Reader) -> dict[str, str]:
    """Of the files that the images of an archive become, by the images' own names; without damaged segments."""
    names: dict[str, str] = {}
    for found in reader.segments:
        with suppress(FormatError):
            names |= {entry.name: file_name(entry) for entry in reader.entries(found)}
    return {own: shortened(free_name(own, name, names)) for own, name in names.items()}


def file_name(entry: Entry) -> str:
    """The image's own name, if that is what its file was, or if its format is lossless and holds its metadata; else
    with the suffix behind of what it was, or of .png."""
    own = PurePosixPath(entry.name).suffix.lower()
    frame = entry.metadata.get("frame", b"")
    if entry.original:
        return entry.name if not own or is_image_suffix(own) else entry.name + entry.suffix
    if frame:
        with suppress(ImageError):  # what no frame says is found when the image is decoded
            return entry.name if same_format(own, suffix_of(frame)) else entry.name + suffix_of(frame)
    count = entry.pixel_channels
    rich = count in (2, 4) or entry.metadata.keys() - {"side_info", "channels", "suffix"}
    plain = own in PLAIN_SUFFIXES and (rich or (own == ".pgm" and count > 1))
    keeps = own in (DEEP_SUFFIXES if entry.depth else SUFFIXES) and not plain
    return entry.name if keeps else entry.name + ".png"


def free_name(own: str, name: str, names: dict[str, str]) -> str:
    """A file's name that is not the ``own`` name of another image."""
    name = name or "image"
    while name != own and name in names:
        name += ".png"
    return name


def shortened(name: str) -> str:
    """A path whose last part has at most LONGEST bytes: of a longer one a digest takes the place of the middle."""
    path = PurePosixPath(name)
    if len(path.name.encode()) <= LONGEST:
        return name
    end = "~" + hashlib.sha256(name.encode()).hexdigest()[:16] + path.suffix
    start = path.name.encode()[: LONGEST - len(end.encode())].decode(errors="ignore")
    return str(path.with_name(start + end))

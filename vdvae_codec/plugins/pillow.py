"""Pillow opens and saves .vdz files once this module is imported.

    import vdvae_codec.plugins.pillow

    with Image.open("photo.vdz") as image: ...  # size, mode and info; decoded when the pixels are asked for
    image.save("photo.vdz", model="photo-2")

That is the whole of what it changes in the process: the format VDVAE is among Pillow's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from typing import IO, Any, BinaryIO, cast

import numpy as np
from PIL import Image, ImageFile, ImageSequence, PngImagePlugin

import vdvae_codec
from vdvae_codec.errors import VdvaeCodecError
from vdvae_codec.format.vdz import Entry, Reader, is_vdz
from vdvae_codec.images.files import INFO, Picture, deep, no_limits, opened, read_picture
from vdvae_codec.images.frame import XMP, blank, is_indexed, is_inks, loose, suffix_of

FORMAT = "VDVAE"
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # that a PNG holds exactly
OPTIONS = ("model", "device", "fallback", "verify")  # of save, as ``vdvae_codec.compress`` has them


@contextmanager
def _os_errors() -> Iterator[None]:
    """Turns the errors of this package into Pillow's kind."""
    try:
        yield
    except VdvaeCodecError as error:
        raise OSError(str(error)) from error


class VdzImageFile(ImageFile.ImageFile):
    """A .vdz as Pillow sees it: the images of an archive are its frames, of their own sizes and modes.

    ``Image.open`` and ``seek`` read tables, and of an image that was stored as a file that file's header. ``info`` has
    icc_profile, exif and xmp, and the ``name`` of an archive's image. Colours of 16 bits have mode RGB, as Pillow opens
    them elsewhere, with their highest 8 bits; grey has I;16. An animation or pages that were stored as a file have the
    frames and the info of that file, of which each image of a larger archive shows the first. Raises OSError, as Pillow
    does, for what is damaged.
    """

    format = FORMAT
    format_description = "vdvae-codec"
    _frame = _loaded = 0  # the frame that is shown, and the one whose pixels are there
    _film: Image.Image | None = None  # the stored file of several frames

    def _open(self) -> None:
        assert self.fp is not None
        with _os_errors():
            self._reader = Reader(cast(BinaryIO, self.fp))
            self._entries = lru_cache(1)(self._reader.entries)
            self._segment = lru_cache(1)(self._reader.segment)
            self._archive: Any = None  # opened when the first frame is decoded
            self.n_frames = self._reader.starts[-1]
            self._show(0)
            if self.n_frames == 1 and self._entries(self._reader.segments[0])[0].original:
                self._film = _film(self._stored(0, 0), self.info.get("name", "the image"))
                self.n_frames = getattr(self._film, "n_frames", 1)
            self.is_animated = self.n_frames > 1
        self.tile, self._loaded = [], -1  # no part of the file is for Pillow's own decoders

    def _stored(self, segment: int, place: int) -> bytes:
        """The file that an image was stored as. Raises FormatError."""
        file = list(self._segment(self._reader.segments[segment]).files())[place]
        assert file is not None
        return file

    def _show(self, frame: int) -> None:
        """Size, mode and info of a frame. Raises FormatError, ImageError, or what Pillow does."""
        if self._film is not None:
            if frame < self._film.tell():  # which Pillow's APNG cannot always
                self._film = _reopened(self._stored(0, 0), self._film.format or "")
            self._film.seek(frame)
            self._frame = frame
            self._show_film()
            return
        segment, place = self._reader.place(frame)
        found = self._reader.segments[segment]
        entry = self._entries(found)[place]
        self._frame, self._size = frame, (entry.width, entry.height)
        count = entry.pixel_channels
        if count and not _indexed_mode(entry):
            self._mode, self.info = _mode(entry, count), _info(entry, count)
        else:
            with opened(self._stored(segment, place), entry.name) as image:
                _require_size(image, self._size)
                self._mode = _indexed_mode(entry) or image.mode
                self.info = dict(image.info) if entry.original else _info(entry, count or len(image.getbands()))
        if entry.name:
            self.info["name"] = entry.name

    def _show_film(self) -> None:
        assert self._film is not None
        name, self.info = self.info.get("name"), dict(self._film.info)
        self._size, self._mode = self._film.size, self._film.mode
        if name is not None:
            self.info["name"] = name

    def seek(self, frame: int) -> None:
        """Shows another frame; EOFError if there is none."""
        if self._seek_check(frame):
            with _os_errors():
                self._show(frame)
            Image._decompression_bomb_check(self._size)

    def tell(self) -> int:
        return self._frame

    def load(self, model: str | None = None) -> Any:
        """Decodes the frame; frames of one segment are decoded at once, and kept until one of another is asked for.

        ``model`` is the folder of a model that is not shipped.
        """
        if self._loaded != self._frame:
            with _os_errors():
                image = self._decoded(model)
            self.im, self._mode, self.palette, self._loaded = image.im, image.mode, image.palette, self._frame
            if self.n_frames == 1:
                self._archive = None
                if self._exclusive_fp and self.fp:
                    self.fp.close()
                self.fp = None
        return super().load()

    def _decoded(self, model: str | None) -> Image.Image:
        """Raises FormatError, ImageError or ModelError."""
        if self._film is not None:
            self._film.load()
            self._show_film()  # some formats say how long a frame lasts when it is decoded
            return self._film.copy()
        if self._archive is None or model is not None:
            self._archive = vdvae_codec.open_archive(cast(BinaryIO, self.fp), model=model)
        picture: Picture = self._archive[self._frame]
        frame, pixels = picture.metadata.get("frame", b""), picture.pixels
        if pixels is not None and is_inks(frame):
            return Image.frombytes("CMYK", pixels.shape[1::-1], (~pixels).tobytes())
        if pixels is not None and not is_indexed(frame):
            if deep(pixels) and pixels.shape[2] > 1:
                return Image.fromarray((pixels >> 8).astype(np.uint8)).convert("RGBA" if pixels.shape[2] == 2 else None)
            return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        with opened(picture.to_bytes(exact=False)[0], picture.name) as image:
            _require_size(image, self._size)
            image.load()
            return image

    def verify(self) -> None:
        """Reads the file and compares all checksums; nothing is decoded. Raises OSError."""
        with _os_errors():
            for found in self._reader.segments:
                self._reader.segment(found)
        super().verify()


def _film(file: bytes, name: str) -> Image.Image | None:
    """A file of several frames, from its first one on; None for any other. Raises ImageError."""
    with opened(file, name) as image:
        format = image.format or ""
        if getattr(image, "n_frames", 1) == 1 or image.tell() > 0:  # layers are numbered from 1
            return None
    return _reopened(file, format)


def _reopened(file: bytes, format: str) -> Image.Image:
    with no_limits:
        return Image.open(BytesIO(file), formats=(format,))


def _require_size(image: Image.Image, size: tuple[int, int]) -> None:
    """Before the pixels of a stored file are asked for: Pillow's limit was held against what the table says."""
    if image.size != size:
        raise OSError("the stored file is not of the size that the table says")


def _mode(entry: Entry, count: int) -> str:
    """Of ``count`` channels; of 16 bits as Pillow has those of a PNG."""
    if is_inks(entry.metadata.get("frame", b"")):
        return "CMYK"
    return (("I;16", "RGBA", "RGB", "RGBA") if entry.depth else ("L", "LA", "RGB", "RGBA"))[count - 1]


def _indexed_mode(entry: Entry) -> str:
    """Of a PNG with a palette or of few bits, which was stored as its colours; empty for another image."""
    frame = entry.metadata.get("frame", b"")
    if not is_indexed(frame):
        return ""
    depth, kind = loose(frame)[1:3]
    return "P" if kind == 3 else "1" if depth == 1 else "L"


def _info(entry: Entry, bands: int) -> dict[str | tuple[int, int], Any]:
    """Colour profile, EXIF and XMP of a table, by Pillow's names; a frame is read around blank pixels."""
    frame = entry.metadata.get("frame", b"")
    whole = suffix_of(frame) != ".png"  # the chunks of a PNG fit any size
    pixels = blank(frame, entry.height if whole else 1, entry.width if whole else 1, bands)
    portable = Picture("", pixels, b"", "", entry.width, entry.height, entry.metadata).portable()
    return {INFO[key]: value for key, value in portable.items() if key in INFO}


def _save(image: Image.Image, file: IO[bytes], filename: str | bytes) -> None:
    with _os_errors():
        file.write(vdvae_codec.compress(_png(image, image.encoderinfo), **_own(image.encoderinfo)))


def _save_all(image: Image.Image, file: IO[bytes], filename: str | bytes) -> None:
    """All frames of the image and of those of ``append_images``, as an archive of 0000.png, 0001.png, ..."""
    from vdvae_codec.codec.archive import write

    sources, options, shown = [image, *image.encoderinfo.get("append_images", ())], image.encoderinfo, image.tell()
    if sum(getattr(source, "n_frames", 1) for source in sources) == 1:
        return _save(image, file, filename)
    frames = (frame for source in sources for frame in ImageSequence.Iterator(source))
    pictures = (read_picture(_png(frame, options), f"{n:04}.png") for n, frame in enumerate(frames))
    with _os_errors():
        write(pictures, cast(BinaryIO, file), **_own(options))
    image.seek(shown)


def _own(options: dict[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in OPTIONS if key in options}


def _png(image: Image.Image, options: dict[str, Any]) -> bytes:
    """The image as a PNG, with the icc_profile (by default the image's own), exif and xmp of ``options``.

    Raises OSError for a mode that a PNG would change.
    """
    if image.mode not in MODES:
        raise OSError(f"cannot write mode {image.mode} as {FORMAT}: its modes are {', '.join(MODES)}")
    carried: dict[str, Any] = {key: options[key] for key in ("icc_profile", "exif") if key in options}
    if "xmp" in options:
        carried["pnginfo"] = PngImagePlugin.PngInfo()
        carried["pnginfo"].add(b"iTXt", XMP + bytes(4) + options["xmp"])
    out = BytesIO()
    image.copy().save(out, "PNG", **carried)  # a copy: Pillow hands an image's other options on
    return out.getvalue()


Image.register_open(FORMAT, VdzImageFile, is_vdz)
Image.register_save(FORMAT, _save)
Image.register_save_all(FORMAT, _save_all)
Image.register_extension(FORMAT, ".vdz")
Image.register_mime(FORMAT, "image/x-vdz")

"""Image files to arrays and back, with their metadata; folders of images."""

from __future__ import annotations

import importlib
import math
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from vdvae_codec.errors import ImageError
from vdvae_codec.images.carried import holds_more
from vdvae_codec.images.frame import PLAIN, colours_of, frame_of, framed, is_exact, loose, lost_elsewhere, suffix_of
from vdvae_codec.images.png16 import read_png
from vdvae_codec.images.rows import deep_rows

with suppress(ImportError):  # JPEG XL is read when the plug-in is installed
    importlib.import_module("pillow_jxl")

_REFUSED = ("EPS", "VDVAE")  # formats that Pillow gives to other programs to read, and our own once it is registered
_STUBS = ("BUFR", "GRIB", "HDF5", "MPEG", "WMF")  # formats that Pillow recognises, and reads with other programs only
_PLUGINS = {".avif", ".heic", ".heif", ".hif", ".jxl", ".jp2", ".dng"}
INFO = {"icc": "icc_profile", "exif": "exif", "xmp": "xmp"}  # our names of metadata to Pillow's
_FORMATS = {
    ".png": "PNG", ".bmp": "BMP", ".ppm": "PPM", ".pgm": "PPM", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP",
}  # fmt: skip
SUFFIXES = frozenset(_FORMATS)  # of the lossless formats that can be written
OPTIONS: dict[str, dict[str, int]] = {  # by Pillow's name of the format
    "PNG": {"compress_level": 4},
    "WEBP": {"lossless": True, "quality": 75, "method": 4, "exact": True},  # quality 100: 6 times slower, 0.4 % smaller
}
_MODES = ("L", "LA", "RGB", "RGBA")
NOT_EXACT = "kept as it is, since its pixels do not give the very file again"
_SAME = {".tiff": ".tif"}  # suffixes of one format
_MAX_FRAME = 1 << 24  # bytes; a file that has more is kept as it is
_PLAIN = ("BMP", "PPM")  # formats that Pillow writes without transparency and without metadata
# tags that say where and how a TIFF's own pixels lie
_TIFF_LAYOUT = {254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 330, 338}
_TIFF_BITS, _TIFF_ORIENTATION, _TIFF_SAMPLES, _TIFF_CHILDREN, _TIFF_FORMAT, _TIFF_XMP, _TIFF_ICC = (
    258, 274, 277, 330, 339, 700, 34675,
)  # fmt: skip
_SPACE = rb"\s+(?:#[^\r\n]*[\r\n]\s*)*"
_PPM_HEADER = re.compile(rb"P([2356])%b(\d+)%b(\d+)%b(\d+)\s" % (_SPACE, _SPACE, _SPACE))


@dataclass(frozen=True, eq=False)
class Picture:
    """An image, on its way in and on its way out.

    An image file as ``read_picture`` found it, or an array (``picture_of``), or what was decoded. ``pixels`` has (H, W,
    1 to 4) uint8 or uint16, grey or R, G, B, then transparency, EXIF orientation not applied, where these are all there
    is; of a file of inks 255 less C, M, Y, K. None: only the file says what it holds. Decoded from a WebP or PNG that
    replaced a file they may be of another kind.
    """

    name: str  # path with slashes, below a folder; empty for a single image
    pixels: np.ndarray | None
    data: bytes  # the file itself; empty for pixels without a file
    suffix: str  # of the file's name, or else of its format, or of what it is to become; with the dot
    width: int
    height: int
    metadata: dict[str, bytes]  # the frame (``images.frame``), or icc, exif and xmp, where present
    modified: int | None = None  # seconds since 1970
    notice: str = ""  # what a person should know of the file

    def to_bytes(self, suffix: str | None = None, exact: bool = True) -> tuple[bytes, str]:
        """An image file and its suffix: the file itself where there is one, else pixels and metadata as ``suffix``.

        By default that of the file that it was, if there is a frame of it, else ``self.suffix``. Raises ImageError for
        another suffix than the file's, for what would lose what a frame holds, and as ``write_image``; DeflateError
        where this machine does not give the bytes that an exact frame promises, unless ``exact`` is False: then a PNG
        with other IDATs will do.
        """
        if self.data:
            if suffix is not None and suffix.lower() != self.suffix.lower():
                name = self.name or "the image"
                raise ImageError(f"{name}: kept as the {self.suffix} file that it was; cannot be written as {suffix}")
            return self.data, self.suffix
        if self.pixels is None:
            raise ImageError(f"{self.name or 'the image'}: neither a file nor pixels")
        frame = self.metadata.get("frame", b"")
        if not frame:
            suffix = suffix or self.suffix
            return write_image(self.pixels, self.metadata, suffix), suffix
        own = suffix_of(frame)
        if same_format(suffix or own, own):
            return framed(frame if exact else loose(frame), self.pixels), suffix or own
        suffix = (suffix or own).lower()
        if lost := lost_elsewhere(frame):
            raise ImageError(
                f"{suffix}: would lose what the {own} file held beside its pixels ({', '.join(lost)}); {own} holds it"
            )
        return write_image(self.pixels, self.portable(), suffix), suffix

    def to_array(self) -> np.ndarray:
        """Pixels (H, W, C): ``pixels``, or what Pillow shows of the first frame of a file that was kept.

        Of such a file a palette's colours (RGB, or RGBA), and what is not uint8: grey of 16 bits as uint16, of one bit
        as bool, of real numbers as float32. Raises ImageError.
        """
        if self.pixels is not None:
            return self.pixels
        with opened(self.data, self.name or "the image") as image:
            return _pixels(image.convert() if image.mode == "P" else image)

    def portable(self) -> dict[str, bytes]:
        """Colour profile, EXIF and XMP (icc, exif, xmp) where there are any, as other formats hold them too."""
        frame = self.metadata.get("frame", b"")
        if not frame or self.pixels is None:
            return self.metadata
        with opened(framed(loose(frame), self.pixels), self.name or "the image") as image:
            image.load()  # chunks of a PNG may lie behind its pixels
            return _portable(image)


def same_format(suffix: str, other: str) -> bool:
    suffix, other = suffix.lower(), other.lower()
    return _SAME.get(suffix, suffix) == _SAME.get(other, other)


class _NoLimits:
    """Context in which Pillow takes large images and profiles; its limits are the process's own, and come back.

    Any number of threads may hold it, any number of times: the first one in lifts the limits, the last one out sets
    what the first one found.
    """

    LIFTED = (
        (Image, "MAX_IMAGE_PIXELS", None),  # ``most_pixels`` is checked here
        (PngImagePlugin, "MAX_TEXT_CHUNK", 1 << 26),  # colour profiles of over 1 MiB
        (PngImagePlugin, "MAX_TEXT_MEMORY", 1 << 26),
    )

    def __init__(self) -> None:
        self._lock, self._holders, self._found = threading.Lock(), 0, list[object]()

    def most_pixels(self) -> float:
        """Of an image: twice Pillow's MAX_IMAGE_PIXELS, where Pillow refuses, as the program around us has set it."""
        with self._lock:
            own = self._found[0] if self._holders else Image.MAX_IMAGE_PIXELS
        return 2 * own if isinstance(own, int | float) else math.inf

    def __enter__(self) -> None:
        with self._lock:
            if self._holders == 0:
                self._found = [getattr(module, name) for module, name, _ in self.LIFTED]
                for module, name, value in self.LIFTED:
                    setattr(module, name, value)
            self._holders += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                for (module, name, _), value in zip(self.LIFTED, self._found):
                    setattr(module, name, value)


no_limits = _NoLimits()


@contextmanager
def _naming(name: str | Path) -> Iterator[None]:
    """Turns whatever Pillow and its plug-ins raise, but for want of memory, into a one-line ImageError."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image file that can be read") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{name}: cannot be read as an image ({reason})") from error


@contextmanager
def opened(
    file: Path | bytes, name: str | Path, formats: tuple[str, ...] | None = None
) -> Iterator[Image.Image]:
    """An image file, opened by Pillow without its limits; any error until it is closed is an ImageError.

    ``formats`` are Pillow's names of those that are tried; None: all that run no other program, and no .vdz.
    """
    source = BytesIO(file) if isinstance(file, bytes) else file
    if formats is None:
        Image.init()
        formats = tuple(format for format in Image.ID if format not in _REFUSED)
    with _naming(name), no_limits, Image.open(source, formats=formats) as image:
        check_pixels(image.width, image.height, str(name))
        yield image


def check_pixels(width: int, height: int, name: str) -> None:
    """Raises ImageError for an image of more pixels than Pillow takes."""
    if width * height > (most := no_limits.most_pixels()):
        raise ImageError(
            f"{name}: {width} x {height} pixels, more than the {most:.0f} that are taken (Image.MAX_IMAGE_PIXELS of "
            "Pillow, --max-pixels)"
        )


def read_rgb(file: Path | bytes, name: str = "") -> np.ndarray:
    """Reads any image as (H, W, 3) uint8; raises ImageError naming the file, or ``name``."""
    with opened(file, name or str(file)) as image:
        if image.mode.startswith("I;16"):  # which Pillow would clip
            return np.repeat(highest(np.array(image)[..., None])[0], 3, 2)
        return np.asarray(image.convert("RGB"))


def highest(numbers: np.ndarray) -> tuple[np.ndarray, int]:
    """The highest 8 bits, as uint8, of those that any of ``numbers`` uint16 needs, and how many are below them."""
    bits = max(0, int(numbers.max()).bit_length() - 8)
    return (numbers >> bits).astype(np.uint8), bits


def image_files(folder: Path, failed: Callable[[str], None] | None = None) -> Iterator[Path]:
    """The files below a folder, sorted by path, that have the suffix of an image format that Pillow reads.

    As ``all_files``.
    """
    return (path for path in all_files(folder, failed) if is_image_name(path))


def is_image_name(path: Path) -> bool:
    """Whether a path has the suffix of an image format that Pillow reads."""
    format = Image.registered_extensions().get(path.suffix.lower())
    return format in Image.OPEN and format not in (*_REFUSED, *_STUBS)


def is_image_suffix(suffix: str) -> bool:
    """Whether files of a suffix are images: of what Pillow knows, or a plug-in that may be missing here."""
    return suffix.lower() in _PLUGINS or suffix.lower() in Image.registered_extensions()


def all_files(folder: Path, failed: Callable[[str], None] | None = None) -> list[Path]:
    """The files below a folder, sorted by path.

    ``failed`` gets a line for each folder below it that cannot be read, and for links to folders, which are not
    entered; without it the first raises OSError, and links are left out.
    """
    found: list[Path] = []

    def trouble(error: OSError) -> None:
        if failed is None:
            raise error
        failed(f"{error.filename}: {error.strerror}")

    for root, folders, names in os.walk(folder, onerror=trouble):
        found += (Path(root, name) for name in names)
        for name in folders:
            if failed is not None and Path(root, name).is_symlink():
                failed(f"{Path(root, name)}: a link to a folder, which is not entered")
    return sorted(path for path in found if is_file(path))


def is_file(path: Path) -> bool:
    """True too of a link to nothing, and where it cannot be asked: reading it will say why."""
    try:
        return path.is_file() or not path.exists()
    except OSError:
        return True


def read_picture(data: bytes, name: str, modified: int | None = None, *, exact_file: bool = False) -> Picture:
    """Reads the image file ``data``; raises ImageError naming ``name`` if it is damaged or of no known format.

    ``pixels`` is given if they are all there is: one frame of grey or RGB with 8 or 16 bits a sample, with transparency
    or without, or a PNG with a palette or less bits; and around it nothing but what ``metadata`` holds. 16 bits are
    those of a PNG that is not interlaced, of a PPM, and of a TIFF that is not compressed, as are inks. With
    ``exact_file`` only where the file's very bytes can be made of these.
    """
    with opened(data, name) as image:
        tiles = list(getattr(image, "tile", ()))
        image.load()
        known = (Path(name).suffix, f".{image.format}".lower(), ".png")
        suffix = next(s for s in known if is_image_suffix(s))
        pixels = _pixels(image) if image.mode in _MODES and _is_still_of(image, data, 8) else None
        metadata, notice = _portable(image), ""
        try:
            is_png = image.format == "PNG"
            if pixels is None and image.mode == "CMYK" and _is_still_of(image, data, 8):
                pixels = ~_pixels(image)
            elif pixels is None and _is_still_of(image, data, 16):
                tiles = _ppm_tiles(data) if image.format == "PPM" else tiles
                pixels = read_png(data) if is_png else deep_rows(data, tiles, image.width, image.height)
            if pixels is None and image.mode in ("1", "L", "P") and _is_still(image) and is_png:
                pixels = colours_of(data, _pixels(image))
            frame = frame_of(data, suffix, pixels, tiles, exact_file) if pixels is not None or is_png else None
            if frame is not None and len(frame) <= _MAX_FRAME:
                metadata = {"frame": frame} if frame else {}
            elif pixels is not None and not (is_png and frame is None):
                of_rows = frame is not None or image.mode == "CMYK" or deep(pixels)  # and no way else
                pixels = None if of_rows or _holds_more(image, data, metadata) else pixels
            if exact_file and pixels is not None and not is_exact(metadata.get("frame", b"")):
                pixels, notice = None, NOT_EXACT
        except ImageError as error:
            pixels, notice = None, f"{error}; kept as it is"
        return Picture(name, pixels, data, suffix, image.width, image.height, metadata, modified, notice)


def _portable(image: Image.Image) -> dict[str, bytes]:
    """Colour profile, EXIF and XMP."""
    entries = {key: image.info.get(theirs) for key, theirs in INFO.items()}
    return {key: value for key, value in entries.items() if isinstance(value, bytes) and value}


def picture_of(pixels: np.ndarray, name: str = "", modified: int | None = None) -> Picture:
    """A picture of an array (H, W[, 1 to 4]) uint8 or uint16 without a file; raises ImageError for any other."""
    array = pixels[..., None] if pixels.ndim == 2 else pixels
    if array.dtype not in (np.uint8, np.uint16) or array.ndim != 3 or array.shape[2] > 4 or not array.size:
        raise ImageError(
            f"{name or 'pixels'}: expected (H, W, 1 to 4) uint8 or uint16, got {pixels.shape} {pixels.dtype}"
        )
    return Picture(name, array, b"", ".png", array.shape[1], array.shape[0], {}, modified)


def deep(pixels: np.ndarray) -> bool:
    """Whether they have 16 bits."""
    return pixels.dtype == np.uint16


def opaque(pixels: np.ndarray) -> np.ndarray:
    """The grey or R, G, B of pixels (H, W, 1 to 4)."""
    return pixels[..., : 1 if pixels.shape[2] < 3 else 3]


def with_channels(pixels: np.ndarray, count: int) -> np.ndarray:
    """Pixels (H, W, 1 to 4) uint8 as ``count`` channels: grey is the first colour, and what has no transparency is
    opaque."""
    if pixels.shape[2] == count:
        return pixels
    colours = opaque(pixels)
    alpha = pixels[..., colours.shape[2] :] if pixels.shape[2] in (2, 4) else np.full_like(pixels[..., :1], 255)
    colours = np.broadcast_to(colours[..., : count - 1 + count % 2], (*pixels.shape[:2], count - 1 + count % 2))
    return np.concatenate([colours, alpha][: 1 + (count % 2 == 0)], 2)


def file_pixels(
    data: bytes, formats: tuple[str, ...] | None = None, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Pixels (H, W, C) of an image file in its own mode, indices for a palette; raises ImageError.

    ``formats`` are Pillow's names of those that are read, ``size`` the height and width that it must have before it is
    decoded; None: any.
    """
    with opened(data, "payload", formats) as image:
        if size is not None and (image.height, image.width) != size:
            raise ImageError("a stored file is not of the size that the table says")
        return _pixels(image)


def write_image(pixels: np.ndarray, metadata: dict[str, bytes], suffix: str) -> bytes:
    """A file of the suffix's format that holds pixels (H, W, 1 to 4) uint8, or as a PNG uint16, exactly.

    PNG, WebP and TIFF carry icc, exif and xmp; WebP stores grey as RGB. Raises ImageError for other suffixes, for
    arrays of another kind, and for what the format cannot hold: transparency, metadata, 16 bits.
    """
    format = _FORMATS.get(suffix.lower())
    if format is None:
        raise ImageError(f"{suffix or 'no suffix'}: not a lossless format that can be written ({' '.join(_FORMATS)})")
    if pixels.dtype not in (np.uint8, np.uint16) or pixels.ndim != 3 or pixels.shape[2] not in (1, 2, 3, 4):
        raise ImageError(f"pixels: expected (H, W, 1 to 4) uint8 or uint16, got {pixels.shape} {pixels.dtype}")
    if deep(pixels):
        if format != "PNG":
            raise ImageError(f"{suffix}: is written with 8 bits a sample; .png holds 16")
        around = encode(np.zeros((1, 1, 1), np.uint8), "PNG", metadata, {})
        return framed(frame_of(around, suffix, None, ()) or PLAIN, pixels)
    if suffix.lower() == ".pgm" and pixels.shape[2] > 1:
        raise ImageError(".pgm: holds grey images only")
    if format in _PLAIN and pixels.shape[2] in (2, 4):
        raise ImageError(f"{suffix}: holds no transparency; .png, .webp and .tif do")
    if format in _PLAIN and metadata:
        lost = ", ".join(key.upper() for key in metadata)
        raise ImageError(f"{suffix}: would lose the image's metadata ({lost}); .png, .webp and .tif hold it")
    return encode(pixels, format, metadata, OPTIONS.get(format, {}))


def encode(pixels: np.ndarray, format: str, metadata: dict[str, bytes], options: dict[str, int]) -> bytes:
    """Writes (H, W, C) uint8 in Pillow's ``format`` with as much of the metadata as it carries; raises ImageError."""
    out = BytesIO()
    keys: dict[str, object] = {INFO[key]: value for key, value in metadata.items() if key in INFO}
    try:
        if format == "PNG" and "xmp" in keys:
            text = PngImagePlugin.PngInfo()
            text.add(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + metadata["xmp"])
            keys["pnginfo"] = text
        elif format == "TIFF":
            keys["exif"] = _tiff_tags(metadata)
        Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(out, format, **keys, **options)
    except MemoryError:
        raise
    except Exception as error:
        raise ImageError(f"cannot write the image as {format} ({' '.join(str(error).split())})") from error
    return out.getvalue()


def _pixels(image: Image.Image) -> np.ndarray:
    """(H, W, C) in the image's mode."""
    return np.array(image).reshape(image.height, image.width, -1)


def _is_still(image: Image.Image) -> bool:
    return getattr(image, "n_frames", 1) == 1


def _is_still_of(image: Image.Image, data: bytes, bits: int) -> bool:
    """Whether the file holds samples of 8 or 16 ``bits`` of one frame, and Pillow shows all of them, if they have 8.

    Pillow scales other depths to 8 bits in silence, so the file itself is asked. Formats where that takes a parser are
    left out: the JPEG XL plug-in, for one, drops both the low bits of deep samples and all frames but the first.
    """
    if not _is_still(image) or ("transparency" in image.info and image.format != "PNG"):
        return False
    if image.format == "PNG":
        return data[12:16] == b"IHDR" and data[24] == bits
    if image.format == "TIFF":  # no extra samples, and no image beside this one: raw photographs hide theirs there
        tags = image.tag_v2  # type: ignore[attr-defined]
        whole = tags.get(_TIFF_SAMPLES, 1) == len(image.getbands()) and _TIFF_CHILDREN not in tags
        whole &= tags.get(_TIFF_ORIENTATION, 1) == 1  # Pillow would have turned the pixels
        whole &= set(tags.get(_TIFF_FORMAT, (1,))) == {1}  # numbers from 0 on
        return whole and set(tags.get(_TIFF_BITS, (1,))) == {bits}
    if image.format == "PPM":
        header = _PPM_HEADER.match(data)
        if header is None or (int(header[4]) != 255 if bits == 8 else int(header[4]) < 256):
            return False
        size = image.width * image.height * len(image.getbands()) * bits // 8
        return (header[1] in b"23" and bits == 8) or len(data) == header.end() + size  # more bytes are more images
    if image.format == "BMP":
        return bits == 8 and data[24 if data[14] == 12 else 28] in (8, 24, 32)  # the oldest header has 12 bytes
    return bits == 8 and image.format in ("JPEG", "WEBP", "TGA", "QOI")


def _ppm_tiles(data: bytes) -> list[tuple[str, tuple[int, int, int, int], int, str]]:
    """Of a PPM of 16 bits, as Pillow has those of other files."""
    header = _PPM_HEADER.match(data)
    assert header is not None
    return [("raw", (0, 0, int(header[2]), int(header[3])), header.end(), "I;16B" if header[1] == b"5" else "RGB;16B")]


def _holds_more(image: Image.Image, data: bytes, metadata: dict[str, bytes]) -> bool:
    """Whether a file without a frame holds more than pixels and ``metadata``, to which a TIFF's tags are added as EXIF:
    a TIFF does if one that is written with these has other tags."""
    if "A" in image.mode and image.format != "WEBP":  # Pillow may have changed the samples
        return True
    if image.format != "TIFF":
        return holds_more(data, image.format or "")
    tags = Image.Exif()
    tags.update(_own_tags(image))
    if len(tags):
        metadata["exif"] = tags.tobytes()
    try:
        file = write_image(np.zeros((1, 1, 1), np.uint8), metadata, ".tif")
    except ImageError:
        return True
    with Image.open(BytesIO(file)) as written:
        return _own_tags(written) != _own_tags(image)


def _own_tags(image: Image.Image) -> dict[int, object]:
    """Tags of a TIFF less those that say where its pixels lie, its colour profile and its XMP."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    return {tag: tags[tag] for tag in tags if tag not in _TIFF_LAYOUT | {_TIFF_ICC, _TIFF_XMP}}


def _tiff_tags(metadata: dict[str, bytes]) -> Image.Exif:
    """EXIF and XMP as tags of a TIFF, less the tags that say where its own pixels lie."""
    tags = Image.Exif()
    if "exif" in metadata:
        tags.load(metadata["exif"])
    for tag in _TIFF_LAYOUT & set(tags):
        del tags[tag]
    if "xmp" in metadata:
        tags[_TIFF_XMP] = metadata["xmp"]
    return tags

"""Image files to arrays and back, with their metadata; folders of images; the grid of tiles."""

from __future__ import annotations

import importlib
import itertools
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from vdvae_codec.errors import ImageError

with suppress(ImportError):  # JPEG XL is read when the plug-in is installed
    importlib.import_module("pillow_jxl")

Image.MAX_IMAGE_PIXELS = None  # archives hold large photographs; sizes are checked where memory is allocated
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # Pillow refuses colour profiles of over 1 MiB

FILL = 128  # level of the pixels beyond an image's border, which are not coded
Box = tuple[int, int, int, int]  # y0, x0, y1, x1
Place = tuple[int, Box]  # number of an image, and a box of it

_INFO = {"icc": "icc_profile", "exif": "exif", "xmp": "xmp"}  # our names of metadata to Pillow's
_FORMATS = {
    ".png": "PNG", ".bmp": "BMP", ".ppm": "PPM", ".pgm": "PPM", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP",
}  # fmt: skip
SUFFIXES = frozenset(_FORMATS)  # of the lossless formats that can be written
_OPTIONS: dict[str, dict[str, int]] = {
    "PNG": {"compress_level": 4},
    "WEBP": {"lossless": True, "quality": 75, "method": 4, "exact": True},  # quality 100: 6 times slower, 0.4 % smaller
}
_WEBP_SIDE = 16383  # the largest side that WebP can hold
_SMALL = 256 * 256  # pixels up to which PNG is tried beside WebP
# tags that say where and how a TIFF's own pixels lie
_TIFF_LAYOUT = {254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 330, 338}
_TIFF_BITS, _TIFF_SAMPLES, _TIFF_CHILDREN, _TIFF_XMP = 258, 277, 330, 700
_SPACE = rb"\s+(?:#[^\r\n]*[\r\n]\s*)*"
_PPM_HEADER = re.compile(rb"P([2356])%b(\d+)%b(\d+)%b(\d+)\s" % (_SPACE, _SPACE, _SPACE))


@dataclass(frozen=True, eq=False)
class Picture:
    """An image file and what is in it."""

    pixels: np.ndarray | None  # (H, W, 1 or 3) uint8, as stored (EXIF orientation not applied); None: keep the file
    metadata: dict[str, bytes]  # icc, exif, xmp where present
    format: str  # Pillow's name, such as "PNG"
    data: bytes  # the file
    suffix: str  # of the file's name, lower case with the dot
    width: int
    height: int


@contextmanager
def _naming(name: str | Path) -> Iterator[None]:
    """Turns whatever Pillow and its plug-ins raise into a one-line ImageError."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image file that can be read") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{name}: cannot be read as an image ({reason})") from error


def read_rgb(path: Path) -> np.ndarray:
    """Reads any image as (H, W, 3) uint8; raises ImageError naming the file."""
    with _naming(path), Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def image_files(folder: Path) -> Iterator[Path]:
    """The files below a folder, sorted by path, that have the suffix of an image format that Pillow knows."""
    suffixes = set(Image.registered_extensions())
    return (p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix.lower() in suffixes)


def read_picture(data: bytes, name: str) -> Picture:
    """Reads the image file ``data``; raises ImageError naming ``name`` if it is damaged or of no known format.

    ``pixels`` is given if they are all there is: one frame of grey or RGB with 8 bits a sample and no transparency.
    """
    with _naming(name), Image.open(BytesIO(data)) as image:
        image.load()
        pixels = _pixels(image) if image.mode in ("L", "RGB") and _is_still_8_bit(image, data) else None
        entries = {key: image.info.get(theirs) for key, theirs in _INFO.items()}
        metadata = {key: value for key, value in entries.items() if isinstance(value, bytes) and value}
        known = (Path(name).suffix.lower(), f".{image.format}".lower(), ".png")
        suffix = next(s for s in known if s in Image.registered_extensions())
        return Picture(pixels, metadata, image.format or "", data, suffix, image.width, image.height)


def decode_file(data: bytes) -> np.ndarray:
    """Pixels of an image file in its own mode: (H, W) or (H, W, C), indices for a palette; raises ImageError."""
    with _naming("payload"), Image.open(BytesIO(data)) as image:
        return np.array(image)


def best_file(picture: Picture) -> tuple[bytes, str]:
    """The smallest file that holds exactly the picture, and its suffix: the input itself, a WebP or a PNG.

    If the picture has ``pixels`` then a new file carries no metadata: that is the container's, and counted here.
    """
    best, suffix = picture.data, picture.suffix
    pixels, carried, limit = picture.pixels, {}, len(best)
    if pixels is not None:
        limit -= sum(len(zlib.compress(value)) for value in picture.metadata.values())
    else:
        pixels, carried = _rgba_png(picture.data), picture.metadata
        if pixels is None:
            return best, suffix
    tries: dict[str, dict[str, int]] = {}
    if pixels.shape[2] > 1 and max(pixels.shape) <= _WEBP_SIDE:  # WebP cannot say that an image is grey
        tries["WEBP"] = _OPTIONS["WEBP"]
    if pixels.shape[2] == 1 or pixels.shape[0] * pixels.shape[1] <= _SMALL:
        tries["PNG"] = {"optimize": True}
    for format, options in tries.items():
        data = _encode(pixels, format, carried, options)
        if len(data) < limit and np.array_equal(decode_file(data), _squeeze(pixels)):
            best, suffix, limit = data, f".{format.lower()}", len(data)
    return best, suffix


def quick_size(pixels: np.ndarray) -> int:
    """Bytes of a fast classical coding of (H, W, 1 or 3) uint8: 0.1 s a megapixel, within 5 % of the thorough one.

    Grey images, and those that WebP cannot hold, are judged by their PNG.
    """
    if pixels.shape[2] == 1 or max(pixels.shape) > _WEBP_SIDE:
        return len(_encode(pixels, "PNG", {}, {"compress_level": 3}))
    return len(_encode(pixels, "WEBP", {}, {"lossless": True, "quality": 0, "method": 1, "exact": True}))


def write_image(pixels: np.ndarray, metadata: dict[str, bytes], suffix: str) -> bytes:
    """A file of the suffix's format that holds pixels (H, W, 1, 3 or 4) uint8 exactly.

    PNG, WebP and TIFF carry icc, exif and xmp; WebP stores grey as RGB. Raises ImageError for other suffixes, for
    arrays of another kind, and for what the format cannot hold.
    """
    format = _FORMATS.get(suffix.lower())
    if format is None:
        raise ImageError(f"{suffix or 'no suffix'}: not a lossless format that can be written ({' '.join(_FORMATS)})")
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise ImageError(f"pixels: expected (H, W, 1, 3 or 4) uint8, got {pixels.shape} {pixels.dtype}")
    if suffix.lower() == ".pgm" and pixels.shape[2] > 1:
        raise ImageError(".pgm: holds grey images only")
    return _encode(pixels, format, metadata, _OPTIONS.get(format, {}))


def tile_grid(height: int, width: int, largest: int, multiple: int) -> tuple[int, int]:
    """Height and width of about equal tiles that cover an image.

    Sides are multiples of ``multiple`` and, if ``largest`` is such a multiple, at most ``largest``.
    """

    def side(total: int) -> int:
        count = -(-total // largest)
        return -(-total // (count * multiple)) * multiple

    return side(height), side(width)


def tile_boxes(height: int, width: int, tile: tuple[int, int]) -> list[Box]:
    """Boxes (y0, x0, y1, x1) of the tiles of ``tile`` = (height, width) in raster order, clipped to the image."""
    corners = itertools.product(range(0, height, tile[0]), range(0, width, tile[1]))
    return [(y, x, min(y + tile[0], height), min(x + tile[1], width)) for y, x in corners]


def inside_tiles(boxes: Sequence[Box], tile: tuple[int, int]) -> np.ndarray:
    """(B, th, tw) bool: which pixels of tiles lie inside of the image that their boxes were clipped to."""
    inside = np.zeros((len(boxes), *tile), bool)
    for n, (y0, x0, y1, x1) in enumerate(boxes):
        inside[n, : y1 - y0, : x1 - x0] = True
    return inside


def cut_tiles(
    images: Sequence[np.ndarray], places: Sequence[Place], tile: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Tiles of images (H, W, 1 or 3) uint8: (B, 3, th, tw) uint8, G, R, B or grey three times; (B, th, tw) bool inside.

    Pixels beyond an image's border are FILL.
    """
    x = np.full((len(places), *tile, 3), FILL, np.uint8)
    for n, (image, (y0, x0, y1, x1)) in enumerate(places):
        x[n, : y1 - y0, : x1 - x0] = images[image][y0:y1, x0:x1]
    grey = images[places[0][0]].shape[2] == 1
    x = x[..., [0, 0, 0] if grey else [1, 0, 2]]
    return x.transpose(0, 3, 1, 2), inside_tiles([box for _, box in places], tile)


def _pixels(image: Image.Image) -> np.ndarray:
    """(H, W, C) uint8"""
    return np.array(image).reshape(image.height, image.width, -1)


def _squeeze(pixels: np.ndarray) -> np.ndarray:
    """As Pillow has it: grey without the axis of channels."""
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def _is_still_8_bit(image: Image.Image, data: bytes) -> bool:
    """Whether the file holds 8-bit samples of one opaque frame and Pillow shows all of them.

    Pillow scales other depths to 8 bits in silence, so the file itself is asked. Formats where that takes a parser are
    left out: the JPEG XL plug-in, for one, drops both the low bits of deep samples and all frames but the first.
    """
    if getattr(image, "n_frames", 1) != 1 or "transparency" in image.info:
        return False
    if image.format == "PNG":
        return data[12:16] == b"IHDR" and data[24] == 8
    if image.format == "TIFF":  # no extra samples, and no image beside this one: raw photographs hide theirs there
        tags = image.tag_v2  # type: ignore[attr-defined]
        whole = tags.get(_TIFF_SAMPLES, 1) == len(image.getbands()) and _TIFF_CHILDREN not in tags
        return whole and all(bits == 8 for bits in tags.get(_TIFF_BITS, (1,)))
    if image.format == "PPM":
        header = _PPM_HEADER.match(data)
        if header is None or int(header[4]) != 255:
            return False
        samples = image.width * image.height * len(image.getbands())
        return header[1] in b"23" or len(data) == header.end() + samples  # more bytes are more images
    if image.format == "BMP":
        return data[24 if data[14] == 12 else 28] in (8, 24)  # the oldest header has 12 bytes
    return image.format in ("JPEG", "WEBP", "TGA", "QOI")


def _rgba_png(data: bytes) -> np.ndarray | None:
    """(H, W, 4) uint8 if the file is a PNG of that kind."""
    with _naming("picture"), Image.open(BytesIO(data)) as image:
        if image.format == "PNG" and image.mode == "RGBA" and _is_still_8_bit(image, data):
            return _pixels(image)
    return None


def _encode(pixels: np.ndarray, format: str, metadata: dict[str, bytes], options: dict[str, int]) -> bytes:
    """Writes (H, W, C) uint8 with as much of the metadata as the format carries; raises ImageError."""
    out = BytesIO()
    keys: dict[str, object] = {_INFO[key]: value for key, value in metadata.items() if key in _INFO}
    try:
        if format == "PNG" and "xmp" in keys:
            text = PngImagePlugin.PngInfo()
            text.add(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + metadata["xmp"])
            keys["pnginfo"] = text
        elif format == "TIFF":
            keys["exif"] = _tiff_tags(metadata)
        Image.fromarray(_squeeze(pixels)).save(out, format, **keys, **options)
    except Exception as error:
        raise ImageError(f"cannot write the image as {format} ({' '.join(str(error).split())})") from error
    return out.getvalue()


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

"""What an image file holds around its pixels, so that file = frame + pixels: the chunks of a PNG; of files that hold
rows of pixels as they are (BMP, PPM, TGA and TIFF, as most programs write them) all other bytes.

A frame is a byte that says of which kind it is, and what docs/format.md says behind it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from vdvae_codec.errors import ImageError
from vdvae_codec.images.chunks import CHUNK, COLOUR_TYPES, HEADER, SIGNATURE, chunk, chunks
from vdvae_codec.images.png16 import write_deep
from vdvae_codec.images.recipe import idats_of, is_interlaced, recipe_of, words_of
from vdvae_codec.images.rows import DEEP, INKS, file_of_rows, rows_around, samples_of

CHUNKS, ROWS, INDEXED, EXACT = b"\0", b"\1", b"\2", b"\3"
XMP = b"XML:com.adobe.xmp\0"
_BARE = (".bmp", ".ppm", ".pgm", ".pnm", ".tga")  # of formats that say little beyond the size
_OF_ROWS = (*_BARE, ".tif", ".tiff", ".dng")
_STARTS = {b"BM": ".bmp", b"P": ".ppm", b"II*": ".tif", b"MM": ".tif"}
PLAIN = CHUNKS + CHUNK.pack(0, b"IDAT")  # of nothing but pixels
_DEPTH = struct.Struct("BB")  # bits of a sample, and colour type: 0 grey, 3 palette
_RECIPE = struct.Struct("<I")  # bytes of an exact frame's recipe


def frame_of(
    data: bytes, suffix: str, pixels: np.ndarray | None, tiles: Sequence[Any], exact: bool = False
) -> bytes | None:
    """The frame of the file ``data``, of pixels (H, W, C) uint8 or uint16 in ``tiles``; ``suffix`` is the file's.

    Empty for a PNG that holds nothing but pixels; None where a file has no frame. A frame was tried: with the pixels it
    gives the file's very bytes, or (unless ``exact``) those of a PNG whose other chunks are the same. Raises ImageError
    for a damaged PNG.
    """
    if data.startswith(SIGNATURE):
        frame = _chunk_frame(data)
        if exact:
            return None if pixels is None else _exact_frame(data, frame, pixels)
        return b"" if frame == PLAIN else frame
    if suffix.lower() not in _OF_ROWS:  # a name that does not fit
        suffix = next((own for start, own in _STARTS.items() if data.startswith(start)), ".tga")
    around = None if pixels is None else rows_around(data, suffix, pixels, tiles)
    if pixels is None or around is None or framed(ROWS + around, pixels) != data:
        return None
    return ROWS + around


def framed(frame: bytes, pixels: np.ndarray) -> bytes:
    """The file of a frame and its pixels (H, W, C) uint8 or uint16. Raises ImageError for what is no frame of them,
    DeflateError where an exact one cannot be followed on this machine."""
    try:
        if suffix_of(frame) != ".png":
            return file_of_rows(frame[1:], pixels)
        if frame[:1] == EXACT:
            return _exact_png(*_recipe_and_frame(frame), pixels)
        return _indexed_png(frame, pixels) if is_indexed(frame) else _png(frame[1:], pixels)
    except (struct.error, ValueError, KeyError) as error:
        raise ImageError("the frame of the image does not fit its pixels") from error


def is_exact(frame: bytes) -> bool:
    """Whether it gives the file's very bytes."""
    return frame[:1] in (ROWS, EXACT)


def loose(frame: bytes) -> bytes:
    """Of an exact frame of a PNG that of the same chunks with other IDATs; any other is as it is. Raises ImageError."""
    return _recipe_and_frame(frame)[1] if frame[:1] == EXACT else frame


def exactness(frame: bytes) -> str:
    """How the bytes of the file of an exact frame are made again, for people. Raises ImageError."""
    if frame[:1] != EXACT:
        return "its bytes around its rows"
    try:
        return words_of(_recipe_and_frame(frame)[0])
    except (struct.error, ValueError) as error:
        raise ImageError("the frame of the image is damaged") from error


def is_indexed(frame: bytes) -> bool:
    """Whether it is of a PNG whose samples are numbers of colours in a palette, or greys of less than 8 bits."""
    return loose(frame)[:1] == INDEXED


def is_inks(frame: bytes) -> bool:
    """Whether it is of a file of C, M, Y, K, whose pixels are 255 less these."""
    return frame[:1] == ROWS and samples_of(frame[1:]) == INKS


def colours_of(data: bytes, samples: np.ndarray) -> np.ndarray | None:
    """Colours (H, W, 1, 3 or 4) uint8 of the samples (H, W, 1) of such a PNG, as Pillow gives them; None for another
    one, for samples that its palette has no colour for, and where an earlier sample has the same colour."""
    depth, kind = data[24:26]
    if kind not in (0, 3) or (kind == 0 and depth >= 8):
        return None
    palette = _palette(depth, kind, dict(chunks(data)))
    indices = samples[..., 0].astype(np.uint8)
    if kind == 0 and depth > 1:
        indices //= 255 // (2**depth - 1)  # Pillow has them as levels
    if int(indices.max()) >= len(palette):
        return None
    _, first, same = np.unique(_packed(palette), return_index=True, return_inverse=True)
    return palette[indices] if np.array_equal(first[same][indices], indices) else None


def blank(frame: bytes, height: int, width: int, channels: int) -> np.ndarray:
    """Pixels (H, W, C), all the same, that a frame fits: of 8 bits if those of a PNG. Raises ImageError for what is no
    frame."""
    frame = loose(frame)
    is_deep = frame[:1] == ROWS and samples_of(frame[1:]) in DEEP
    pixels = np.zeros((height, width, channels), np.uint16 if is_deep else np.uint8)
    if is_indexed(frame):
        try:
            depth, kind = _DEPTH.unpack_from(frame, 1)
            return np.broadcast_to(_palette(depth, kind, dict(_chunks_of(frame[_start(frame) :])))[0], pixels.shape)
        except (struct.error, ValueError, KeyError, IndexError) as error:
            raise ImageError("the frame of the image does not fit its pixels") from error
    return pixels


def suffix_of(frame: bytes) -> str:
    """Of the file of a frame, upper or lower case as it was; that of none is a PNG. Raises ImageError for what no frame
    says."""
    is_png = frame[:1] in (b"", CHUNKS, INDEXED, EXACT)
    suffix = ".png" if is_png else frame[1:9].rstrip(b"\0").decode("ascii", "replace")
    if suffix != ".png" and suffix.lower() not in _OF_ROWS:
        raise ImageError(f"a frame of {suffix!r}, which no file has")
    return suffix


def lost_elsewhere(frame: bytes) -> list[str]:
    """What another format would not hold of the file of a frame, besides its colour profile, EXIF and XMP."""
    if suffix_of(frame) != ".png":
        bare = suffix_of(frame).lower() in _BARE
        return ["inks"] * is_inks(frame) + ["tags and bytes around its pixels"] * (not bare)
    frame = loose(frame)
    kinds = {kind: contents for kind, contents in _chunks_of(frame[_start(frame) :])}
    portable = {b"IDAT", b"iCCP", b"eXIf"} | ({b"PLTE", b"tRNS"} if b"PLTE" in kinds and is_indexed(frame) else set())
    portable |= {b"iTXt"} if kinds.get(b"iTXt", b"").startswith(XMP) else set()
    names = {b"IEND": "bytes behind its end"}
    return [names.get(kind, kind.decode("latin-1")) for kind in kinds if kind not in portable]


def _chunk_frame(data: bytes) -> bytes:
    """Its start; length, type and contents of all chunks but IHDR; the first IDAT is empty, and there are no others."""
    kept = [(kind, b"" if kind == b"IDAT" else contents) for kind, contents in chunks(data) if kind != b"IHDR"]
    first = kept.index((b"IDAT", b""))
    kept = [own for n, own in enumerate(kept) if own[0] != b"IDAT" or n == first]
    depth, kind = data[24:26]
    start = INDEXED + _DEPTH.pack(depth, kind) if kind == 3 or depth < 8 else CHUNKS
    return start + b"".join(CHUNK.pack(len(contents), kind) + contents for kind, contents in kept)


def _start(frame: bytes) -> int:
    """Of a PNG's frame, where its chunks begin."""
    return 1 + _DEPTH.size if is_indexed(frame) else 1


def _palette(depth: int, kind: int, own: dict[bytes, bytes]) -> np.ndarray:
    """Colours (N, 1, 3 or 4) uint8 of the samples of a PNG of chunks ``own``; raises ValueError or KeyError."""
    if kind == 0:
        return np.linspace(0, 255, 2**depth).astype(np.uint8)[:, None]
    colours = np.frombuffer(own[b"PLTE"], np.uint8).reshape(-1, 3)
    if b"tRNS" not in own:
        return colours
    alpha = np.full((len(colours), 1), 255, np.uint8)
    alpha[: len(own[b"tRNS"]), 0] = np.frombuffer(own[b"tRNS"], np.uint8)
    return np.concatenate([colours, alpha], 1)


def _samples(frame: bytes, pixels: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Those (H, W, C) uint8 of a PNG of pixels, their bits, and its colour type; raises ValueError or KeyError."""
    if not is_indexed(frame):
        return pixels, 8 * pixels.itemsize, COLOUR_TYPES[pixels.shape[2]]
    depth, kind = _DEPTH.unpack_from(frame, 1)
    if (depth, kind) not in ((1, 0), (2, 0), (4, 0), (1, 3), (2, 3), (4, 3), (8, 3)):
        raise ValueError("no such samples")
    palette = _palette(depth, kind, dict(_chunks_of(frame[_start(frame) :])))
    if palette.shape[1] != pixels.shape[2] or not 0 < len(palette) <= 2**depth:
        raise ValueError("a palette of other colours")
    known, first = np.unique(_packed(palette), return_index=True)
    packed = _packed(pixels)
    place = np.searchsorted(known, packed).clip(0, len(known) - 1)
    if not np.array_equal(known[place], packed):
        raise ValueError("colours that the palette has not")
    return first[place].astype(np.uint8)[..., None], depth, kind


def _indexed_png(frame: bytes, pixels: np.ndarray) -> bytes:
    samples, depth, kind = _samples(frame, pixels)
    out = BytesIO()
    image = Image.fromarray(samples[..., 0])
    image.putpalette(bytes(3 * 2**depth))
    image.save(out, "PNG", compress_level=4, bits=depth)
    head, *body = chunks(out.getvalue())
    own = head[1][:9] + bytes([kind]) + head[1][10:]  # of samples that are packed alike
    return _with_chunks((head[0], own), [c for c in body if c[0] == b"IDAT"], frame[_start(frame) :])


def _exact_frame(data: bytes, frame: bytes, pixels: np.ndarray) -> bytes | None:
    """Length of the recipe; the recipe; the loose frame. None where no recipe is found."""
    idats = [contents for kind, contents in chunks(data) if kind == b"IDAT"]
    try:
        samples, depth, kind = _samples(frame, pixels)
    except (ValueError, KeyError):
        return None
    interlaced = data[28] == 1
    recipe = recipe_of(idats, samples, depth, interlaced)
    if recipe is None or _around(frame, pixels, depth, kind, interlaced, idats) != data:
        return None
    return EXACT + _RECIPE.pack(len(recipe)) + recipe + frame


def _recipe_and_frame(frame: bytes) -> tuple[bytes, bytes]:
    """Of an exact frame. Raises ImageError."""
    start = 1 + _RECIPE.size
    end = start + int.from_bytes(frame[1:start], "little")
    if frame[end : end + 1] not in (CHUNKS, INDEXED) or len(frame) < start:
        raise ImageError("the frame of the image ends early")
    return frame[start:end], frame[end:]


def _exact_png(recipe: bytes, frame: bytes, pixels: np.ndarray) -> bytes:
    samples, depth, kind = _samples(frame, pixels)
    idats = idats_of(recipe, samples, depth)
    return _around(frame, pixels, depth, kind, is_interlaced(recipe), idats)


def _around(
    frame: bytes, pixels: np.ndarray, depth: int, kind: int, interlaced: bool, idats: list[bytes]
) -> bytes:
    """A PNG of the contents of its IDATs and a loose frame."""
    head = HEADER.pack(pixels.shape[1], pixels.shape[0], depth, kind, 0, 0, interlaced)
    return _with_chunks((b"IHDR", head), [(b"IDAT", contents) for contents in idats], frame[_start(frame) :])


def _packed(colours: np.ndarray) -> np.ndarray:
    """(...,) uint32 of colours (..., up to 4) uint8."""
    return sum(colours[..., n].astype(np.uint32) << 8 * n for n in range(colours.shape[-1]))  # type: ignore[return-value]


def _png(frame: bytes, pixels: np.ndarray) -> bytes:
    if pixels.dtype == np.uint16:
        header, lines = write_deep(pixels)
        return _with_chunks((b"IHDR", header), [(b"IDAT", lines)], frame)
    out = BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(out, "PNG", compress_level=4)
    head, *body = chunks(out.getvalue())
    return _with_chunks(head, body, frame)


def _with_chunks(head: tuple[bytes, bytes], body: list[tuple[bytes, bytes]], frame: bytes) -> bytes:
    """A PNG of the header ``head``, the pixels' chunks ``body``, and the chunks of a frame around them."""
    parts, tail = [SIGNATURE, chunk(*head)], b""
    for kind, contents in _chunks_of(frame):
        if kind == b"IDAT":
            parts += [chunk(*own) for own in body]
            body = []  # which is there once
        elif kind == b"IEND":
            tail = contents
        else:
            parts.append(chunk(kind, contents))
    return b"".join([*parts, chunk(b"IEND", b""), tail])


def _chunks_of(frame: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < len(frame):
        length, kind = CHUNK.unpack_from(frame, at)
        at += CHUNK.size + length
        if len(frame) < at:
            raise ValueError("ends within a chunk")
        yield kind, frame[at - length : at]

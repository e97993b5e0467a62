"""What an image file holds around its pixels, so that file = frame + pixels: the chunks of a PNG; of files that hold
rows of pixels as they are (BMP, PPM, TGA and TIFF, as most programs write them) all other bytes.

A frame is a byte that says of which kind it is, and what docs/format.md says behind it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from vdvae_codec.errors import ImageError
from vdvae_codec.images.png16 import read_scanlines, write_scanlines

CHUNKS, ROWS, INDEXED = b"\0", b"\1", b"\2"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
XMP = b"XML:com.adobe.xmp\0"
_BARE = (".bmp", ".ppm", ".pgm", ".pnm", ".tga")  # of formats that say little beyond the size
_OF_ROWS = (*_BARE, ".tif", ".tiff")
_STARTS = {b"BM": ".bmp", b"P": ".ppm", b"II*": ".tif", b"MM": ".tif"}
_CHUNK = struct.Struct(">I4s")  # length and type
PLAIN = CHUNKS + _CHUNK.pack(0, b"IDAT")  # frame of a PNG that holds nothing but pixels, in full
_DEPTH = struct.Struct("BB")  # bits of a sample, and colour type: 0 grey, 3 palette
_LAYOUT = struct.Struct("<8sIB")  # suffix, number of strips, and which samples
# Samples: bytes; bytes B, G, R (and A); 16 bits, low or high byte first; inks, 255 less what the pixels have.
_AS_THEY_ARE, _BLUE_FIRST, _LITTLE, _BIG, _INKS = range(5)
_ORDERS = {_LITTLE: "<u2", _BIG: ">u2"}
_STRIP = struct.Struct("<QIIB")  # place of the first row in the file, rows, bytes from one to the next, whether upwards
_RAW_MODES = {  # Pillow's names to samples and channels
    "L": (_AS_THEY_ARE, 1), "LA": (_AS_THEY_ARE, 2), "RGB": (_AS_THEY_ARE, 3), "RGBA": (_AS_THEY_ARE, 4),
    "BGR": (_BLUE_FIRST, 3), "BGRA": (_BLUE_FIRST, 4), "I;16": (_LITTLE, 1), "I;16B": (_BIG, 1),
    "CMYK": (_INKS, 4), "RGB;16L": (_LITTLE, 3), "RGB;16B": (_BIG, 3), "RGBA;16L": (_LITTLE, 4), "RGBA;16B": (_BIG, 4),
}  # fmt: skip
_BGR = {3: [2, 1, 0], 4: [2, 1, 0, 3]}
Strip = tuple[int, int, int, int]


def frame_of(data: bytes, suffix: str, pixels: np.ndarray | None, tiles: Sequence[Any]) -> bytes | None:
    """The frame of the file ``data``, of pixels (H, W, C) uint8 or uint16 in ``tiles``; ``suffix`` is the file's.

    Empty for a PNG that holds nothing but pixels; None where a file has no frame. A frame was tried: with the pixels it
    gives the file's very bytes, or those of a PNG whose other chunks are the same. Raises ImageError for a damaged PNG.
    """
    if data.startswith(SIGNATURE):
        return _chunk_frame(data)
    if suffix.lower() not in _OF_ROWS:  # a name that does not fit
        suffix = next((own for start, own in _STARTS.items() if data.startswith(start)), ".tga")
    return None if pixels is None else _row_frame(data, suffix, pixels, tiles)


def framed(frame: bytes, pixels: np.ndarray) -> bytes:
    """The file of a frame and its pixels (H, W, C) uint8 or uint16. Raises ImageError for what is no frame of them."""
    try:
        if suffix_of(frame) != ".png":
            return _file_of_rows(frame, pixels)
        return _indexed_png(frame, pixels) if is_indexed(frame) else _png(frame[1:], pixels)
    except (struct.error, ValueError, KeyError) as error:
        raise ImageError("the frame of the image does not fit its pixels") from error


def is_indexed(frame: bytes) -> bool:
    """Whether it is of a PNG whose samples are numbers of colours in a palette, or greys of less than 8 bits."""
    return frame[:1] == INDEXED


def is_inks(frame: bytes) -> bool:
    """Whether it is of a file of C, M, Y, K, whose pixels are 255 less these."""
    return _samples(frame) == _INKS


def _samples(frame: bytes) -> int:
    return frame[_LAYOUT.size] if frame[:1] == ROWS and len(frame) > _LAYOUT.size else _AS_THEY_ARE


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
    pixels = np.zeros((height, width, channels), np.uint16 if _samples(frame) in _ORDERS else np.uint8)
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
    suffix = ".png" if frame[:1] in (b"", CHUNKS, INDEXED) else frame[1:9].rstrip(b"\0").decode("ascii", "replace")
    if suffix != ".png" and suffix.lower() not in _OF_ROWS:
        raise ImageError(f"a frame of {suffix!r}, which no file has")
    return suffix


def lost_elsewhere(frame: bytes) -> list[str]:
    """What another format would not hold of the file of a frame, besides its colour profile, EXIF and XMP."""
    if suffix_of(frame) != ".png":
        bare = suffix_of(frame).lower() in _BARE
        return ["inks"] * is_inks(frame) + ["tags and bytes around its pixels"] * (not bare)
    kinds = {kind: contents for kind, contents in _chunks_of(frame[_start(frame) :])}
    portable = {b"IDAT", b"iCCP", b"eXIf"} | ({b"PLTE", b"tRNS"} if b"PLTE" in kinds and is_indexed(frame) else set())
    portable |= {b"iTXt"} if kinds.get(b"iTXt", b"").startswith(XMP) else set()
    names = {b"IEND": "bytes behind its end"}
    return [names.get(kind, kind.decode("latin-1")) for kind in kinds if kind not in portable]


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and contents of each chunk of a PNG; what lies behind the last one comes as of the type IEND, if anything.

    Raises ImageError for what ends early and for wrong checksums.
    """
    at, kind = len(SIGNATURE), b""
    while kind != b"IEND":
        if len(data) < at + 12:
            raise ImageError("the PNG has no end chunk")
        length, kind = _CHUNK.unpack_from(data, at)
        contents, at = data[at + 8 : at + 8 + length], at + 12 + length
        if len(data) < at or zlib.crc32(kind + contents) != int.from_bytes(data[at - 4 : at], "big"):
            raise ImageError(f"the checksum of the PNG's chunk {kind.decode('latin-1')} is wrong")
        if kind != b"IEND":
            yield kind, contents
    if at < len(data):
        yield b"IEND", data[at:]


def _chunk_frame(data: bytes) -> bytes:
    """Its start; length, type and contents of all chunks but IHDR; the first IDAT is empty, and there are no others."""
    kept = [(kind, b"" if kind == b"IDAT" else contents) for kind, contents in chunks(data) if kind != b"IHDR"]
    first = kept.index((b"IDAT", b""))
    kept = [chunk for n, chunk in enumerate(kept) if chunk[0] != b"IDAT" or n == first]
    depth, kind = data[24:26]
    indexed = kind == 3 or depth < 8
    if len(kept) == 1 and not indexed:
        return b""
    start = INDEXED + _DEPTH.pack(depth, kind) if indexed else CHUNKS
    return start + b"".join(_CHUNK.pack(len(contents), kind) + contents for kind, contents in kept)


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


def _indexed_png(frame: bytes, pixels: np.ndarray) -> bytes:
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
    out = BytesIO()
    image = Image.fromarray(first[place].astype(np.uint8))
    image.putpalette(bytes(3 * 2**depth))
    image.save(out, "PNG", compress_level=4, bits=depth)
    head, *body = chunks(out.getvalue())
    own = head[1][:9] + bytes([kind]) + head[1][10:]  # of samples that are packed alike
    return _with_chunks((head[0], own), [c for c in body if c[0] == b"IDAT"], frame[_start(frame) :])


def _packed(colours: np.ndarray) -> np.ndarray:
    """(...,) uint32 of colours (..., up to 4) uint8."""
    return sum(colours[..., n].astype(np.uint32) << 8 * n for n in range(colours.shape[-1]))  # type: ignore[return-value]


def _png(frame: bytes, pixels: np.ndarray) -> bytes:
    if pixels.dtype == np.uint16:
        header, lines = write_scanlines(pixels)
        return _with_chunks((b"IHDR", header), [(b"IDAT", lines)], frame)
    out = BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(out, "PNG", compress_level=4)
    head, *body = chunks(out.getvalue())
    return _with_chunks(head, body, frame)


def _with_chunks(head: tuple[bytes, bytes], body: list[tuple[bytes, bytes]], frame: bytes) -> bytes:
    """A PNG of the header ``head``, the pixels' chunks ``body``, and the chunks of a frame around them."""
    parts, tail = [SIGNATURE, _chunk(*head)], b""
    for kind, contents in _chunks_of(frame):
        if kind == b"IDAT":
            parts += [_chunk(*chunk) for chunk in body]
        elif kind == b"IEND":
            tail = contents
        else:
            parts.append(_chunk(kind, contents))
    return b"".join([*parts, _chunk(b"IEND", b""), tail])


def _chunks_of(frame: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < len(frame):
        length, kind = _CHUNK.unpack_from(frame, at)
        at += _CHUNK.size + length
        if len(frame) < at:
            raise ValueError("ends within a chunk")
        yield kind, frame[at - length : at]


def _chunk(kind: bytes, contents: bytes) -> bytes:
    return _CHUNK.pack(len(contents), kind) + contents + zlib.crc32(kind + contents).to_bytes(4, "big")


def deep_samples(data: bytes, tiles: Sequence[Any], width: int, height: int) -> np.ndarray | None:
    """The samples (H, W, C) uint16 of a file of 16-bit samples: a PNG, or one whose rows lie in ``tiles``; None for any
    other. Raises ImageError for a damaged PNG."""
    if data.startswith(SIGNATURE):
        found = list(chunks(data))
        return read_scanlines(dict(found)[b"IHDR"], b"".join(part for kind, part in found if kind == b"IDAT"))
    layout = _layout_of(tiles, width)
    if layout is None or layout[0] not in _ORDERS:
        return None
    samples, channels, strips = layout
    rows = np.empty((height, 2 * channels * width), np.uint8)
    try:
        for part, place in _strip_views(strips, rows, np.frombuffer(data, np.uint8)):
            part[:] = place
    except ValueError:
        return None
    return rows.view(_ORDERS[samples]).astype(np.uint16).reshape(height, width, channels)


def _layout_of(tiles: Sequence[Any], width: int) -> tuple[int, int, list[Strip]] | None:
    """Which samples, how many channels, and the strips of rows that lie in a file as they are."""
    strips: list[Strip] = []
    samples, channels = _AS_THEY_ARE, 0
    for decoder, (left, top, right, bottom), place, args in tiles:
        mode, stride, direction = args if isinstance(args, tuple) and len(args) == 3 else (args, 0, 1)
        if decoder != "raw" or mode not in _RAW_MODES or (left, right) != (0, width):
            return None
        samples, channels = _RAW_MODES[mode]
        size = width * channels * (2 if samples in _ORDERS else 1)
        strips.append((place, bottom - top, stride or size, direction < 0))
    return (samples, channels, strips) if strips else None


def _row_frame(data: bytes, suffix: str, pixels: np.ndarray, tiles: Sequence[Any]) -> bytes | None:
    """Layout, strips, and all bytes of the file that are no pixels."""
    layout = _layout_of(tiles, pixels.shape[1])
    if layout is None or layout[1] != pixels.shape[2]:
        return None
    samples, _, strips = layout
    head = ROWS + _LAYOUT.pack(suffix.encode(), len(strips), samples) + b"".join(_STRIP.pack(*own) for own in strips)
    try:
        _, taken = _spread(strips, samples, pixels, len(data))
    except ValueError:
        return None
    frame = head + np.frombuffer(data, np.uint8)[~taken].tobytes()
    return frame if framed(frame, pixels) == data else None


def _file_of_rows(frame: bytes, pixels: np.ndarray) -> bytes:
    _, count, samples = _LAYOUT.unpack_from(frame, 1)
    start = 1 + _LAYOUT.size + count * _STRIP.size
    if len(frame) < start:
        raise ValueError("ends within its strips")
    strips = list(_STRIP.iter_unpack(frame[1 + _LAYOUT.size : start]))
    rest = np.frombuffer(frame, np.uint8)[start:]
    out, taken = _spread(strips, samples, pixels, len(rest) + pixels.nbytes)
    out[~taken] = rest
    return out.tobytes()


def _spread(strips: list[Strip], samples: int, pixels: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A file (size,) uint8 with its pixels alone, and where they are (size,) bool. Raises ValueError."""
    if samples > _INKS or (samples in _ORDERS) != (pixels.dtype == np.uint16):
        raise ValueError("no such samples")
    if samples == _BLUE_FIRST:
        pixels = pixels[..., _BGR[pixels.shape[2]]]
    elif samples in _ORDERS:
        pixels = pixels.astype(_ORDERS[samples]).view(np.uint8)
    elif samples == _INKS:
        pixels = ~pixels
    out, taken = np.zeros(size, np.uint8), np.zeros(size, bool)
    rows = np.ascontiguousarray(pixels).reshape(len(pixels), -1)
    for (part, place), (_, mark) in zip(_strip_views(strips, rows, out), _strip_views(strips, rows, taken)):
        place[:], mark[:] = part, True
    if int(taken.sum()) != rows.size:
        raise ValueError("the strips do not hold the rows")
    return out, taken


def _strip_views(
    strips: list[Strip], rows: np.ndarray, file: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The rows (n, bytes) of each strip, the top one first as the file has them, and their place in ``file``.

    Raises ValueError for strips that do not lie in it, or are not all the rows.
    """
    own, top, item = rows.shape[1], 0, file.itemsize
    for place, count, stride, upwards in strips:
        end = place + (count - 1) * stride + own
        if not 0 < count <= len(rows) - top or stride < own or end > len(file):
            raise ValueError("a strip lies outside")
        part = rows[top : top + count]
        view = np.lib.stride_tricks.as_strided(file[place:end], (count, own), (stride * item, item))
        yield part[::-1] if upwards else part, view
        top += count
    if top != len(rows):
        raise ValueError("the strips do not hold the rows")

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

CHUNKS, ROWS, INDEXED = b"\0", b"\1", b"\2"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
XMP = b"XML:com.adobe.xmp\0"
_BARE = (".bmp", ".ppm", ".pgm", ".pnm", ".tga")  # of formats that say little beyond the size
_OF_ROWS = (*_BARE, ".tif", ".tiff")
_STARTS = {b"BM": ".bmp", b"P": ".ppm", b"II*": ".tif", b"MM": ".tif"}
_CHUNK = struct.Struct(">I4s")  # length and type
_DEPTH = struct.Struct("BB")  # bits of a sample, and colour type: 0 grey, 3 palette
_LAYOUT = struct.Struct("<8sIB")  # suffix, number of strips, and whether samples are B, G, R (and A)
_STRIP = struct.Struct("<QIIB")  # place of the first row in the file, rows, bytes from one to the next, whether upwards
_BGR = {3: [2, 1, 0], 4: [2, 1, 0, 3]}
Strip = tuple[int, int, int, int]


def frame_of(data: bytes, suffix: str, pixels: np.ndarray | None, tiles: Sequence[Any]) -> bytes | None:
    """The frame of the file ``data``, whose pixels (H, W, C) uint8 Pillow found in ``tiles``; ``suffix`` is the file's.

    Empty for a PNG that holds nothing but pixels; None where a file has no frame. A frame was tried: with the pixels it
    gives the file's very bytes, or those of a PNG whose other chunks are the same. Raises ImageError for a damaged PNG.
    """
    if data.startswith(SIGNATURE):
        return _chunk_frame(data)
    if suffix.lower() not in _OF_ROWS:  # a name that does not fit
        suffix = next((own for start, own in _STARTS.items() if data.startswith(start)), ".tga")
    return None if pixels is None else _row_frame(data, suffix, pixels, tiles)


def framed(frame: bytes, pixels: np.ndarray) -> bytes:
    """The file of a frame and its pixels (H, W, C) uint8. Raises ImageError for what is no frame of them."""
    try:
        if suffix_of(frame) != ".png":
            return _file_of_rows(frame, pixels)
        return _indexed_png(frame, pixels) if is_indexed(frame) else _png(frame[1:], pixels)
    except (struct.error, ValueError, KeyError) as error:
        raise ImageError("the frame of the image does not fit its pixels") from error


def is_indexed(frame: bytes) -> bool:
    """Whether it is of a PNG whose samples are numbers of colours in a palette, or greys of less than 8 bits."""
    return frame[:1] == INDEXED


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
    """Pixels (H, W, C) uint8, all the same, that a frame fits. Raises ImageError for what is no frame."""
    pixels = np.zeros((height, width, channels), np.uint8)
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
        return [] if suffix_of(frame).lower() in _BARE else ["tags and bytes around its pixels"]
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


def _row_frame(data: bytes, suffix: str, pixels: np.ndarray, tiles: Sequence[Any]) -> bytes | None:
    """Layout, strips, and all bytes of the file that are no pixels."""
    strips: list[Strip] = []
    bgr = False
    for decoder, (left, top, right, bottom), place, args in tiles:
        if decoder != "raw":
            return None
        mode, stride, direction = args if isinstance(args, tuple) and len(args) == 3 else (args, 0, 1)
        if mode not in ("L", "LA", "RGB", "BGR", "RGBA", "BGRA") or (left, right) != (0, pixels.shape[1]):
            return None
        bgr = mode.startswith("BGR")
        strips.append((place, bottom - top, stride or pixels.shape[1] * pixels.shape[2], direction < 0))
    head = ROWS + _LAYOUT.pack(suffix.encode(), len(strips), bgr) + b"".join(_STRIP.pack(*strip) for strip in strips)
    try:
        _, taken = _spread(strips, bgr, pixels, len(data))
    except ValueError:
        return None
    frame = head + np.frombuffer(data, np.uint8)[~taken].tobytes()
    return frame if framed(frame, pixels) == data else None


def _file_of_rows(frame: bytes, pixels: np.ndarray) -> bytes:
    _, count, bgr = _LAYOUT.unpack_from(frame, 1)
    start = 1 + _LAYOUT.size + count * _STRIP.size
    if len(frame) < start:
        raise ValueError("ends within its strips")
    strips = list(_STRIP.iter_unpack(frame[1 + _LAYOUT.size : start]))
    rest = np.frombuffer(frame, np.uint8)[start:]
    out, taken = _spread(strips, bool(bgr), pixels, len(rest) + pixels.size)
    out[~taken] = rest
    return out.tobytes()


def _spread(strips: list[Strip], bgr: bool, pixels: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A file (size,) uint8 with its pixels alone, and where they are (size,) bool. Raises ValueError."""
    out, taken = np.zeros(size, np.uint8), np.zeros(size, bool)
    rows = np.ascontiguousarray(pixels[..., _BGR[pixels.shape[2]]] if bgr else pixels).reshape(len(pixels), -1)
    own, top = rows.shape[1], 0
    for place, count, stride, upwards in strips:
        end = place + (count - 1) * stride + own
        if not 0 < count <= len(rows) - top or stride < own or end > size:
            raise ValueError("a strip lies outside")
        part = rows[top : top + count]
        for target, values in ((out, part[::-1] if upwards else part), (taken, np.True_)):
            item = target.itemsize
            np.lib.stride_tricks.as_strided(target[place:end], (count, own), (stride * item, item))[:] = values
        top += count
    if top != len(rows) or int(taken.sum()) != pixels.size:
        raise ValueError("the strips do not hold the rows")
    return out, taken

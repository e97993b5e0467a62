"""Image files of many kinds, made here, and what conversions make of a photograph."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

from vdvae_codec.images.chunks import SIGNATURE, chunks
from vdvae_codec.transforms.ycc import CONVERSIONS

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">gr\xc3\xb6\xc3\x9fer</x:xmpmeta>'


def natural(height: int, width: int, channels: int) -> np.ndarray:
    """Smooth waves with a little noise, (H, W, C) uint8."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(channels), indexing="ij")
    waves = 128 + 60 * np.sin(x / 7 + c) + 50 * np.cos(y / 5 - c / 2)
    return (waves + np.random.default_rng(0).normal(0, 3, waves.shape)).clip(0, 255).astype(np.uint8)


RGB, GREY = natural(37, 53, 3), natural(37, 53, 1)


def saved_image(image: Image.Image, format: str, **options: object) -> bytes:
    out = BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def saved(array: np.ndarray, format: str, **options: object) -> bytes:
    return saved_image(Image.fromarray(array), format, **options)


def converted(mode: str, format: str, **options: object) -> bytes:
    return saved_image(Image.fromarray(RGB).convert(mode), format, **options)


def exif(orientation: int = 1) -> bytes:
    tags = Image.Exif()
    tags[274] = orientation
    tags[271] = "a camera"
    tags[256] = 4000  # a width that is not this file's
    tags.get_ifd(0x8769)[36867] = "2020:01:02 03:04:05"
    return tags.tobytes()


def png(depth: int, colour: int, rows: np.ndarray) -> bytes:
    """A PNG by hand: ``rows`` (H, bytes of a row) uint8 with the width that they give."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    width = rows.shape[1] * 8 // (depth * {0: 1, 2: 3, 4: 2, 6: 4}[colour])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0))
    filtered = np.pad(rows, ((0, 0), (1, 0)))  # filter 0 in front of every row
    pixels = chunk(b"IDAT", zlib.compress(filtered.tobytes()))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def tiff(samples: np.ndarray, extra: dict[int, int] | None = None) -> bytes:
    """A TIFF by hand: samples (H, W, C) of any unsigned dtype; ``extra`` tags hold one number each."""
    height, width, channels = samples.shape
    body = samples.tobytes()
    depth = 8 * samples.itemsize
    tags = {256: (width,), 257: (height,), 258: (depth,) * channels, 259: (1,), 262: (2 if channels > 1 else 1,)}
    tags |= {273: (8,), 277: (channels,), 278: (height,), 279: (len(body),)}
    tags |= {tag: (value,) for tag, value in (extra or {}).items()}
    start = 8 + len(body)
    spill = start + 2 + 12 * len(tags) + 4
    entries, tail = b"", b""
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}I", *values)
        entries += struct.pack("<HHI", tag, 4, len(values))
        entries += packed if len(packed) == 4 else struct.pack("<I", spill + len(tail))
        tail += packed if len(packed) > 4 else b""
    return b"II*\0" + struct.pack("<I", start) + body + struct.pack("<H", len(tags)) + entries + bytes(4) + tail


WIDE = (RGB.astype(np.uint16) * 257 + 1).astype(">u2")
CODABLE = {
    "rgb.png": saved(RGB, "PNG"),
    "grey.png": saved(GREY[..., 0], "PNG"),
    "hand.png": png(8, 2, RGB.reshape(37, -1)),
    "rgb.bmp": saved(RGB, "BMP"),
    "grey.bmp": saved(GREY[..., 0], "BMP"),
    "rgb.ppm": saved(RGB, "PPM"),
    "grey.pgm": saved(GREY[..., 0], "PPM"),
    "comment.ppm": b"P6 # a\n# b\n53 \t37\n#c\n255\n" + RGB.tobytes(),
    "plain.pgm": b"P2\n53 37 255\n" + " ".join(map(str, GREY.ravel())).encode(),
    "rgb.tif": saved(RGB, "TIFF"),
    "grey.tiff": saved(GREY[..., 0], "TIFF"),
    "hand.tif": tiff(RGB),
    "deflate.tif": saved(RGB, "TIFF", compression="tiff_adobe_deflate"),
    "rgb.webp": saved(RGB, "WEBP", lossless=True),
    "rgb.tga": saved(RGB, "TGA"),
    "rgb.jpg": saved(RGB, "JPEG"),
    "grey.jpeg": saved(GREY[..., 0], "JPEG"),
}
INDEXED = {  # stored as their colours where that is smaller
    "grey4.png": png(4, 0, GREY[..., 0]),
    "grey2.png": png(2, 0, GREY[..., 0]),
    "bits.png": converted("1", "PNG"),
    "palette.png": converted("P", "PNG"),
    "palette4.png": saved_image(Image.fromarray(RGB).quantize(13), "PNG"),
    "palette_trns.png": saved_image(Image.fromarray(natural(37, 53, 4)).quantize(40), "PNG"),
}
TRANSPARENT = {  # coded, with alpha or a transparent colour
    "rgba.png": saved(natural(37, 53, 4), "PNG"),
    "la.png": saved(natural(37, 53, 2), "PNG"),
    "opaque.png": converted("RGBA", "PNG"),
    "noise.png": saved(np.dstack([RGB, np.random.default_rng(1).integers(0, 256, GREY.shape, np.uint8)]), "PNG"),
    "rgb_trns.png": saved(RGB, "PNG", transparency=(1, 2, 3)),
    "grey_trns.png": saved(GREY[..., 0], "PNG", transparency=7),
    "rgba.webp": saved(natural(37, 53, 4), "WEBP", lossless=True, exact=True),
    "rgba.tga": saved(natural(37, 53, 4), "TGA"),
    "rgba.tif": saved(natural(37, 53, 4), "TIFF"),
}
_noise = np.random.default_rng(2).integers(0, 256, (37, 53, 4), np.uint16)
NOISY = (natural(37, 53, 4).astype(np.uint16) << 8) + _noise  # of which a model can know the high bytes
DEEP = {  # coded with 16 bits a sample
    "rgb16.png": png(16, 2, WIDE.view(np.uint8).reshape(37, -1)),
    "grey16.png": png(16, 0, WIDE[..., 0].copy().view(np.uint8)),
    "rgba16.png": png(16, 6, np.dstack([WIDE, WIDE[..., :1]]).view(np.uint8).reshape(37, -1)),
    "la16.png": png(16, 4, WIDE[..., :2].copy().view(np.uint8).reshape(37, -1)),
    "noisy16.png": png(16, 2, NOISY[..., :3].astype(">u2").view(np.uint8).reshape(37, -1)),
    "noisy_rgba16.png": png(16, 6, NOISY.astype(">u2").view(np.uint8).reshape(37, -1)),
    "rgb16.tif": tiff(NOISY[..., :3].astype("<u2")),
    "grey16.tif": saved(NOISY[..., 0], "TIFF"),
    "deep.ppm": b"P6 53 37 65535\n" + NOISY[..., :3].astype(">u2").tobytes(),
    "deep.pgm": b"P5 53 37 4095\n" + (NOISY[..., 0] >> 4).astype(">u2").tobytes(),
}
INKS = {"cmyk.tif": saved_image(Image.fromarray(RGB).convert("CMYK"), "TIFF")}
FILES_ONLY = {
    "packed.tga": saved(natural(37, 53, 4), "TGA", compression="tga_rle"),
    "packed.tif": saved(natural(37, 53, 4), "TIFF", compression="tiff_lzw"),
    "animated.png": saved(RGB, "PNG", save_all=True, append_images=[Image.fromarray(RGB[::-1])]),
    "animated.webp": saved(RGB, "WEBP", save_all=True, append_images=[Image.fromarray(RGB[::-1])], lossless=True),
    "animated.gif": saved(RGB, "GIF", save_all=True, append_images=[Image.fromarray(RGB[::-1])]),
    "still.gif": saved(GREY[..., 0], "GIF"),
    "float.tif": saved(GREY[..., 0].astype(np.float32), "TIFF"),
    "padded.tif": tiff(natural(37, 53, 4), {338: 0}),
    "preview.tif": tiff(RGB, {330: 8}),
    "pages.tif": saved(RGB, "TIFF", save_all=True, append_images=[Image.fromarray(RGB)]),
    "packed16.tif": saved(NOISY[..., 0], "TIFF", compression="tiff_lzw"),
    "signed.tif": tiff(NOISY[..., :1].astype("<u2"), {339: 2}),
    "cmyk.jpg": converted("CMYK", "JPEG"),
    "dim.ppm": b"P6 53 37 15\n" + (RGB >> 4).tobytes(),
    "dim.pgm": b"P2 53 37 15\n" + " ".join(map(str, GREY.ravel() >> 4)).encode(),
    "two.ppm": saved(RGB, "PPM") * 2,
    "bits16.bmp": b"",  # filled in below
    "pixels.jp2": saved(RGB, "JPEG2000"),
}
_bmp = bytearray(saved(RGB[:, :26], "BMP"))  # rows of 26 * 3 + 2 = 80 bytes, declared to be 40 pixels of 16 bits
_bmp[18:22], _bmp[28:30] = struct.pack("<I", 40), struct.pack("<H", 16)
FILES_ONLY["bits16.bmp"] = bytes(_bmp)


def decoded(photo: np.ndarray, format: str, **options: int) -> np.ndarray:
    """(H, W, 3) uint8: a photograph through a lossy file."""
    with Image.open(BytesIO(saved(photo, format, **options))) as image:
        return np.asarray(image.convert("RGB"))


def scanned(photo: np.ndarray) -> np.ndarray:
    """As a PhotoCD would hold it: light, and colours at half the resolution, cut to whole numbers."""
    photocd = CONVERSIONS[2]
    ycc, _ = photocd.to_ycc(photo.reshape(-1, 3).astype(np.int32))
    ycc = ycc.reshape(photo.shape)
    kept = np.pad(ycc[::2, ::2, 1:], ((0, 1), (0, 1), (0, 0)), "edge")  # between them lie their means
    ycc[::2, 1::2, 1:] = kept[:-1, :-1] + kept[:-1, 1:] + 1 >> 1
    ycc[1::2, ::2, 1:] = kept[:-1, :-1] + kept[1:, :-1] + 1 >> 1
    ycc[1::2, 1::2, 1:] = kept[:-1, :-1] + kept[:-1, 1:] + kept[1:, :-1] + kept[1:, 1:] + 2 >> 2
    return photocd.to_rgb(ycc).astype(np.uint8)


def stretched(photo: np.ndarray) -> np.ndarray:
    """Of more contrast, so that levels are missing."""
    return ((photo.astype(float) - 20) * 1.3).round().clip(0, 255).astype(np.uint8)


AROUND = {
    "cICP": b"\x0c\x0d\0\1", "gAMA": struct.pack(">I", 100_000), "cHRM": bytes(32), "sBIT": b"\5\6\5",
    "pHYs": struct.pack(">IIB", 11811, 11811, 1), "tIME": b"\x07\xea\x0b\x1b\x0c\0\0", "bKGD": bytes(6),
    "tEXt": b"Title\0of a photograph", "zTXt": b"Comment\0\0" + zlib.compress(b"a comment"),
    "iTXt": "Author\0\0\0\0\0wer auch immer, \u00e4".encode(), "prVt": b"of some program",
}  # fmt: skip


def with_chunks(data: bytes, before: dict[str, bytes], after: dict[str, bytes], tail: bytes = b"") -> bytes:
    """A PNG with more chunks before and behind its pixels, and bytes behind its end."""

    def packed(kind: bytes, contents: bytes) -> bytes:
        return struct.pack(">I", len(contents)) + kind + contents + struct.pack(">I", zlib.crc32(kind + contents))

    parts = [SIGNATURE]
    first = True
    for kind, contents in chunks(data):
        if kind == b"IDAT" and first:
            parts += [packed(k.encode(), c) for k, c in before.items()]
            first = False
        parts.append(packed(kind, contents))
    return b"".join([*parts, *(packed(k.encode(), c) for k, c in after.items()), packed(b"IEND", b""), tail])

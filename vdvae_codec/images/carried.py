"""Whether an image file holds more than pixels, colour profile, EXIF and XMP: then it is kept as it is."""

from __future__ import annotations

import struct

_JPEG_CODING = {0xC0, 0xC1, 0xC2, 0xC3, 0xC4, 0xC9, 0xCA, 0xCC, 0xDA, 0xDB, 0xDD}  # segments that pixels need
_JPEG_CARRIED = {  # application segments that are carried, or say how colours are coded
    0xE1: (b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"), 0xE2: (b"ICC_PROFILE\0",), 0xEE: (b"Adobe",),
}  # fmt: skip
_JFIF, _NO_DENSITY = 0xE0, b"\0\0\1\0\1"  # whose pixels are square, of no size
_RIFF = {b"VP8 ", b"VP8L", b"VP8X", b"ICCP", b"EXIF", b"XMP "}


def holds_more(data: bytes, format: str) -> bool:
    """Whether the file ``data`` of Pillow's ``format`` holds anything that is neither pixels nor carried."""
    try:
        if format == "JPEG":
            return not _is_plain_jpeg(data)
        if format == "WEBP":
            return not _is_plain_webp(data)
        if format == "PPM":  # its numbers as text
            return b"#" in data
        if format == "TGA":  # a name, or an extension with a footer
            return data[0] > 0 or data.endswith(b"TRUEVISION-XFILE.\0")
        return format != "QOI"
    except (struct.error, IndexError):
        return True


def _is_plain_jpeg(data: bytes) -> bool:
    at = 2
    while data[at] == 0xFF:
        kind = data[at + 1]
        if kind == 0xD9:
            return at + 2 == len(data)
        (length,) = struct.unpack_from(">H", data, at + 2)
        contents = data[at + 4 : at + 2 + length]
        if kind == _JFIF:
            known = contents[:5] == b"JFIF\0" and contents[7:12] == _NO_DENSITY and contents[12:] == bytes(2)
        else:
            known = kind in _JPEG_CODING or contents.startswith(_JPEG_CARRIED.get(kind, ()))
        if not known:
            return False
        at += 2 + length
        if kind == 0xDA:  # behind it lie bytes in which FF is followed by 0, or by a restart's D0 to D7
            at = data.find(b"\xff", at)
            while at >= 0 and (data[at + 1] == 0 or 0xD0 <= data[at + 1] <= 0xD7):
                at = data.find(b"\xff", at + 2)
    return False


def _is_plain_webp(data: bytes) -> bool:
    at = 12
    while at < len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind not in _RIFF:
            return False
        at += 8 + length + length % 2
    return at == len(data)

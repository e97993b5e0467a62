"""Images to a segment and back: read -> transform -> tile -> code -> seal. A single image is a segment of one."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vdvae_codec import transforms
from vdvae_codec.codec import tiles
from vdvae_codec.codec.group import codes_first_pixels_first
from vdvae_codec.codec.helpers import ALONE, Helpers
from vdvae_codec.codec.store import Released, model_named
from vdvae_codec.errors import FormatError, VdvaeCodecError
from vdvae_codec.exact.arithmetic import plain
from vdvae_codec.format.vdz import Entry, Segment, depth_entry
from vdvae_codec.images import depth
from vdvae_codec.images.classical import (
    FORMATS,
    best_file,
    is_jpeg,
    metadata_bytes,
    plane_file,
    quick_size,
    rough_size,
)
from vdvae_codec.images.depth import Depth
from vdvae_codec.images.files import SUFFIXES, Picture, deep, file_pixels, is_image_suffix, opaque, with_channels
from vdvae_codec.images.frame import is_exact, is_indexed, suffix_of
from vdvae_codec.images.names import suffix_alone
from vdvae_codec.transforms import Coded

SMALL_PIXELS = 2**16  # images up to this size are tried by classical coders more readily ...
TRY_SMALL_WITHIN, TRY_WITHIN = 1.5, 1.1  # ... where a quick coding is this close to ours
ROUGH_PIXELS = 2**12  # and the smallest are judged by zlib first
PLAIN_ALPHA_BYTES, PLAIN_ALPHA_RATE = 256, 1e-3  # and bytes a pixel: smaller transparency is not worth a model's time
MOST_ALPHA_BYTES = 2**24  # of transparency in a table, but for what is not worth a model's time
OF_TABLE = ("side_info", "alpha", "channels", "suffix", "depth")  # entries that are no metadata of the picture
WORTH_CODING_AGAIN = 1e-3  # share of a segment that files must save, since its other images are then coded again


@dataclass(frozen=True)
class Encoded:
    """A segment, and what its words were spent on."""

    segment: Segment
    sizes: tuple[int, ...]  # bytes of each image: its share of the words and its side information, or its file
    initial_bits: float  # what the latents of the first groups cost because nothing could be borrowed yet


@plain()
def encode(
    pictures: Sequence[Picture], released: Released, *, fallback: bool = True, helpers: Helpers = ALONE
) -> Encoded:
    """Codes pictures together.

    What no model codes (palettes, animations) is stored as a file. With ``fallback`` so is an image for which WebP, PNG
    or the file itself is smaller than what the model needs for it. Raises ImageError.
    """
    pictures, depths = zip(*map(shallow, pictures))
    coded = {n: planes_of(p.pixels, released) for n, p in enumerate(pictures) if p.pixels is not None and by_model(p)}
    files = {n: best_file(p) for n, p in enumerate(pictures) if n not in coded}
    words = encode_words(list(coded.values()), released, helpers)
    better, smaller, saved_bytes = improved(pictures, depths, coded, words, fallback)
    if (smaller and len(smaller) == len(coded)) or saved_bytes > WORTH_CODING_AGAIN * len(words.payload):
        coded = {n: own for n, own in better.items() if n not in smaller}
        files |= smaller
        words = encode_words(list(coded.values()), released, helpers)
    entries = tuple(
        coded_entry(p, coded[n], own) if n in coded else file_entry(p, *files[n], own)
        for n, (p, own) in enumerate(zip(pictures, depths))
    )
    stored = [b"" if n in coded else files[n][0] for n in range(len(pictures))]
    lows = [own.file if "depth" in entry.metadata else b"" for entry, own in zip(entries, depths)]
    payload = b"".join([words.payload, *(part for parts in zip(stored, lows) for part in parts)])
    sizes = {n: entry.payload_bytes for n, entry in enumerate(entries)}
    for n, part_bytes in bytes_of(coded, words).items():
        sizes[n] += round(sum(part_bytes)) + coded[n].side_bytes
    name, digest = (released.name, released.digest) if coded else ("", bytes(len(released.digest)))
    crc = checksum([p.pixels for n, p in enumerate(pictures) if n in coded and p.pixels is not None])  # of 8 bits each
    segment = Segment(entries, name, digest, words.groups, words.direct, crc, len(words.payload), payload, words.stacks)
    return Encoded(segment, tuple(sizes[n] for n in range(len(pictures))), words.initial_bits)


def shallow(picture: Picture) -> tuple[Picture, Depth]:
    """A picture with the highest 8 bits of its pixels, and the bits below, if there are any."""
    if picture.pixels is None or not deep(picture.pixels):
        return picture, Depth()
    high, own = depth.split(picture.pixels)
    return replace(picture, pixels=high), own


def improved(
    pictures: Sequence[Picture], depths: Sequence[Depth], coded: dict[int, Planes], words: tiles.Words, fallback: bool
) -> tuple[dict[int, Planes], dict[int, tuple[bytes, str]], float]:
    """Planes whose transparency is a file where that is smaller, files that are smaller than what the model needs
    (with ``fallback``), and the bytes that both save."""
    better, smaller, saved_bytes, room = dict(coded), {}, 0.0, MOST_ALPHA_BYTES
    for n, part_bytes in bytes_of(coded, words).items():
        own, alpha_bytes, our_bytes = coded[n], sum(part_bytes[1:]), sum(part_bytes) + coded[n].side_bytes
        better[n] = own.cheaper(min(alpha_bytes, room))
        if better[n] is not own:
            saved_bytes += alpha_bytes - len(own.alpha_file)
            room -= len(own.alpha_file)
        file = smaller_file(pictures[n], our_bytes, depths[n]) if fallback else None
        if file is not None:
            smaller[n] = file
            saved_bytes += our_bytes + bytes_around(pictures[n], depths[n])
            saved_bytes -= size_beside(pictures[n], file[0], depths[n])
    return better, smaller, saved_bytes


def bytes_of(coded: dict[int, Planes], words: tiles.Words) -> dict[int, list[float]]:
    """Of the words, what each part of the images took."""
    bits = iter(words.image_bits)
    return {n: [next(bits) / 8 for _ in own.parts] for n, own in coded.items()}


def by_model(picture: Picture) -> bool:
    """Whether a model may be better than classical coders, which is never so for a palette."""
    return not is_indexed(picture.metadata.get("frame", b""))


@dataclass(frozen=True)
class Planes:
    """What stands for the pixels of an image: the model codes ``parts``, all else is in the table."""

    parts: list[Coded]  # the colours; then transparency, unless its file alone holds it
    alpha_file: bytes  # transparency as an image file; empty for none

    @property
    def side_bytes(self) -> int:
        return len(zlib.compress(self.parts[0].side_info)) + (len(self.alpha_file) if len(self.parts) == 1 else 0)

    def cheaper(self, alpha_bytes: float) -> Planes:
        """With the file alone if it has fewer bytes than the model needs."""
        return Planes(self.parts[:1], self.alpha_file) if 0 < len(self.alpha_file) < alpha_bytes else self

    @property
    def entries(self) -> dict[str, bytes]:
        """Of the table."""
        own = {"side_info": self.parts[0].side_info, "alpha": self.alpha_file if len(self.parts) == 1 else b""}
        return {key: value for key, value in own.items() if value}


def planes_of(pixels: np.ndarray, released: Released) -> Planes:
    """Of pixels (H, W, 1 to 4) uint8."""
    colours = opaque(pixels)
    alpha = pixels[..., colours.shape[2] :]
    coded = forward(colours, released)
    if not alpha.size:
        return Planes([coded], b"")
    planes = Planes([coded, Coded(alpha, b"", None)], plane_file(alpha))
    return planes.cheaper(PLAIN_ALPHA_BYTES + PLAIN_ALPHA_RATE * alpha.size)


def forward(pixels: np.ndarray, released: Released) -> Coded:
    """What the model codes in the place of pixels (H, W, 1 or 3) uint8."""
    return transforms.forward(pixels, masked=codes_first_pixels_first(released.model))


def encode_words(coded: Sequence[Planes], released: Released, helpers: Helpers) -> tiles.Words:
    parts = [part for own in coded for part in own.parts]
    return tiles.encode([part.pixels for part in parts], [part.chroma_mask for part in parts], released, helpers)


def smaller_file(picture: Picture, our_bytes: float, own: Depth) -> tuple[bytes, str] | None:
    """The smallest file of another format, and its suffix, if it has fewer bytes than ours; None if it has not.

    What is beside ours, metadata and depth, is beside a new file too; the input itself needs none of it.

    The thorough classical coders are tried where a quick one says that they may win. A JPEG's own bytes would always
    win, but storing them is no compression: its pixels are coded like any others.
    """
    pixels = picture.pixels
    if pixels is None or is_jpeg(picture.data):
        return None
    count = picture.width * picture.height
    limit = our_bytes * (TRY_SMALL_WITHIN if count <= SMALL_PIXELS else TRY_WITHIN)
    quick = rough_size if count <= ROUGH_PIXELS else quick_size
    around = bytes_around(picture, own)
    if (not picture.data or len(picture.data) >= limit + around) and quick(pixels) >= limit:
        return None
    data, suffix = best_file(picture, own.size)
    return (data, suffix) if size_beside(picture, data, own) < our_bytes + around else None


def bytes_around(picture: Picture, own: Depth) -> int:
    """Of metadata and depth, which the input itself needs not."""
    return own.size + metadata_bytes(picture)


def size_beside(picture: Picture, data: bytes, own: Depth) -> int:
    """Bytes of a stored file and of what is beside it."""
    return len(data) + (0 if data is picture.data else bytes_around(picture, own))


def coded_entry(picture: Picture, planes: Planes, own: Depth) -> Entry:
    assert picture.pixels is not None
    height, width, channels = picture.pixels.shape
    metadata = picture.metadata | planes.entries | suffix_entry(picture) | depth_entry(own.how, len(own.file))
    return Entry(picture.name, picture.modified, height, width, channels, metadata=metadata)


def file_entry(picture: Picture, data: bytes, suffix: str, own: Depth) -> Entry:
    """Metadata is in the input itself; of any other file it is the table's."""
    original = data is picture.data
    metadata = {}
    if not original:
        metadata = picture.metadata | channels_of(picture) | suffix_entry(picture) | depth_entry(own.how, len(own.file))
    return Entry(
        picture.name, picture.modified, picture.height, picture.width, 0, len(data), suffix, original, metadata
    )


def channels_of(picture: Picture) -> dict[str, bytes]:
    """What the table says of a picture whose pixels a WebP or PNG holds: RGB goes without saying."""
    count = 3 if picture.pixels is None else picture.pixels.shape[2]
    return {} if count == 3 else {"channels": bytes([count])}


def suffix_entry(picture: Picture) -> dict[str, bytes]:
    """What the table says of the suffix of a picture without a name, if it can be written and does not go without
    saying."""
    own = picture.suffix
    said = picture.name or own == suffix_of(picture.metadata.get("frame", b"")) or own.lower() not in SUFFIXES
    return {} if said else {"suffix": own.encode()}


def checksum(images: Sequence[np.ndarray]) -> int:
    """CRC-32 of the pixels, image after image."""
    crc = 0
    for image in images:
        crc = zlib.crc32(image.tobytes(), crc)
    return crc


def decode(
    segment: Segment, model: str | Released | None = None, device: str = "auto", helpers: Helpers = ALONE
) -> list[Picture]:
    """The images of a segment, checked against their CRC; stored originals come back as the files that they were.

    ``model`` is tried where the model that the segment names is not a shipped one. Raises FormatError or ModelError.
    """
    pixels = iter(decode_pixels(segment, model, device, helpers))
    return [
        decoded_picture(entry, next(pixels) if file is None else None, file, low)
        for entry, file, low in zip(segment.entries, segment.files(), segment.lows())
    ]


def pixels_of(entry: Entry, file: bytes) -> np.ndarray:
    """Of a stored PNG or WebP: other formats may run programs (EPS), and are never written. Raises ImageError."""
    return file_pixels(file, FORMATS, (entry.height, entry.width))


def decoded_picture(entry: Entry, pixels: np.ndarray | None, file: bytes | None, low: bytes) -> Picture:
    metadata = {key: value for key, value in entry.metadata.items() if key not in OF_TABLE}
    if entry.original and not is_image_suffix(entry.suffix):
        raise FormatError(f"a stored file of the suffix {entry.suffix}, which no image has")
    if file is not None and not entry.original:
        pixels = pixels_of(entry, file)
        if "channels" in entry.metadata:
            pixels = with_channels(pixels, entry.metadata["channels"][0])
    if pixels is not None and entry.depth:
        pixels = depth.joined(pixels, Depth(entry.depth, low))
    data = file if file is not None and entry.original else b""
    suffix = entry.suffix if data else ".png" if entry.name else suffix_alone(entry)
    return Picture(entry.name, pixels, data, suffix, entry.width, entry.height, metadata, entry.modified)


@plain()
def decode_pixels(
    segment: Segment, model: str | Released | None = None, device: str = "auto", helpers: Helpers = ALONE
) -> list[np.ndarray]:
    """The pixels (H, W, 1 to 4) uint8 of the images that the model coded. Raises FormatError or ModelError."""
    entries = [entry for entry in segment.entries if entry.coded]
    if not entries:
        return []
    released = model_named(segment.model, segment.digest, model, device)
    coded = iter(decode_coded(segment, released, helpers))
    images = [merged(entry, [next(coded) for _ in entry.parts]) for entry in entries]
    if checksum(images) != segment.pixels_crc:
        raise FormatError("the decoded pixels do not match their checksum")
    return images


def merged(entry: Entry, parts: Sequence[np.ndarray]) -> np.ndarray:
    """The pixels of an image of which the model coded ``parts``. Raises FormatError."""
    planes = [transforms.inverse(parts[0], entry.side_info), *parts[1:]]
    if "alpha" in entry.metadata:
        planes.append(pixels_of(entry, entry.metadata["alpha"])[..., :1])
    return np.concatenate(planes, 2) if len(planes) > 1 else planes[0]


def decode_coded(segment: Segment, released: Released, helpers: Helpers = ALONE) -> list[np.ndarray]:
    """What the model codes in the place of pixels (H, W, 1 or 3) uint8. Raises FormatError."""
    direct, stacks = None if segment.stacks else segment.direct, list(segment.words())
    shapes, masks = shapes_of(segment), masks_of(segment, released)
    return tiles.decode(shapes, masks, segment.groups, direct, stacks, released, helpers)


def shapes_of(segment: Segment) -> list[tiles.Shape]:
    """Of all that the model codes."""
    return [part for entry in segment.entries for part in entry.parts]


def masks_of(segment: Segment, released: Released) -> list[np.ndarray | None]:
    """The chroma masks of all that the model codes. Raises FormatError."""
    return [
        chroma_mask(entry, released) if n == 0 else None
        for entry in segment.entries for n in range(len(entry.parts))
    ]


def chroma_mask(entry: Entry, released: Released) -> np.ndarray | None:
    mask = transforms.chroma_mask(entry.side_info, entry.height, entry.width)
    if mask is not None and (entry.channels < 3 or not codes_first_pixels_first(released.model)):
        raise FormatError(f"chroma_mask: model {released.name!r} has none in such an image")
    return mask


def verify(
    pictures: Sequence[Picture], segment: Segment, released: Released, helpers: Helpers = ALONE
) -> None:
    """Raises VdvaeCodecError if a segment does not decode to what it was made of."""
    for picture, decoded in zip(pictures, decode(segment, released, helpers=helpers)):
        if not is_same(picture, decoded):
            name = picture.name or "the image"
            raise VdvaeCodecError(f"{name}: does not decode to the same pixels; nothing was written")


def is_same(picture: Picture, decoded: Picture) -> bool:
    """Whether a decoded picture is what was coded: the same file, or the same pixels where no file is promised."""
    if decoded.data:
        return decoded.data == picture.data
    if picture.data and is_exact(picture.metadata.get("frame", b"")):
        return decoded.to_bytes()[0] == picture.data
    pixels = file_pixels(picture.data) if picture.pixels is None else picture.pixels
    return decoded.pixels is not None and np.array_equal(decoded.pixels, pixels)

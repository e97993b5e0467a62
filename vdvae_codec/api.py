"""Compress and decompress, for Python users: bytes in, bytes out. The command line is a thin layer over this."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vdvae_codec import colours, tiles
from vdvae_codec.coding.stack import Stack
from vdvae_codec.config import DEFAULT_MODEL
from vdvae_codec.container import Container, Kind
from vdvae_codec.errors import FormatError, ImageError, VdvaeCodecError
from vdvae_codec.hierarchy import exact_elbo, has_cells, push_group
from vdvae_codec.images import (
    Picture,
    best_file,
    decode_file,
    quick_size,
    read_picture,
    tile_boxes,
    tile_grid,
    write_image,
)
from vdvae_codec.model.vdvae import VDVAE
from vdvae_codec.pictures import reconstructions, sheet, strides
from vdvae_codec.released import Released, load_released, model_named
from vdvae_codec.tiles import Run, runs_of, tensor_of, tile_of

TRY_FILE_WITHIN = 1.1  # a quick classical coding this close to ours makes the thorough one worth its time
SMALL_PIXELS = 2**16  # images up to this size are always tried
RECONSTRUCTED_SIDE = 256  # pixels of the part of an image that is reconstructed


@dataclass(frozen=True)
class Report:
    """What a compression did; sizes in bytes unless the name says bits."""

    kind: str  # "model" or "file"
    model: str
    width: int
    height: int
    channels: int
    input_format: str  # Pillow's name
    colours: str  # the conversion to RGB that was undone, such as "JPEG"; empty: none
    input_bytes: int
    output_bytes: int
    header_bytes: int
    metadata_bytes: int
    payload_bytes: int
    initial_bits: float  # of the payload: what the first group's latents cost because nothing could be borrowed yet
    groups: tuple[int, ...]

    @property
    def bpd(self) -> float:
        """Bits of the file per sub-pixel."""
        return 8 * self.output_bytes / (self.width * self.height * max(self.channels, 1))


def runs_in(container: Container) -> list[Run]:
    """The one run of tiles of a single image."""
    return runs_of([(container.height, container.width, container.channels)], [container.tile])


def decode_coded(container: Container, released: Released) -> np.ndarray:
    """What the model coded, (H, W, 1 or 3) uint8; raises FormatError if it cannot have written this container."""
    shape, cells = (container.height, container.width, container.channels), cells_in(container)
    tiles.check_groups(container.groups, container.tile)
    if cells is not None and (container.channels != 3 or not has_cells(released.model)):
        raise FormatError(f"cells: model {released.name!r} has none in such an image")
    coded = tiles.decode([shape], runs_in(container), container.groups, 1, container.payload, released, cells=cells)
    return coded[0]


def cells_in(container: Container) -> np.ndarray | None:
    """The marked 2x2 pixels (H/2, W/2) bool, rounded up, if any. Raises FormatError."""
    packed = container.metadata.get("cells")
    if packed is None:
        return None
    height, width = -(-container.height // 2), -(-container.width // 2)
    if len(packed) != -(-height * width // 8):
        raise FormatError("cells: not as many as the image has")
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=height * width).astype(bool).reshape(height, width)


def compress(
    data: bytes, name: str = "image", model: str = DEFAULT_MODEL, device: str = "auto", *,
    verify: bool = True, fallback: bool = True,
) -> tuple[bytes, Report]:
    """Compresses an image file's bytes to a .vdz's bytes.

    ``fallback`` stores a WebP, a PNG or the file itself where that is smaller than what the model gives, and where the
    model cannot code the image (16 bits, transparency, palettes, animations). ``verify`` decodes the result and
    compares every pixel. Raises ImageError, ModelError, or VdvaeCodecError if the comparison fails.
    """
    picture = read_picture(data, name)
    container, initial_bits = None, 0.0
    if picture.pixels is not None:
        container, initial_bits = model_container(picture, picture.pixels, load_released(model, device))
    if container is None or (fallback and file_may_win(picture, len(container.payload))):
        file = file_container(picture)
        if container is None or len(file.payload) < len(container.payload):
            container, initial_bits = file, 0.0
    out, pixels = container.to_bytes(), original_pixels(picture)
    if verify and not np.array_equal(decode(Container.from_bytes(out), model, device), pixels):
        raise VdvaeCodecError(f"{name}: the compressed file does not decode to the same pixels; nothing was written")
    sizes = container.sizes()
    return out, Report(
        kind=container.kind.name.lower(), model=container.model, width=picture.width,
        height=picture.height, channels=pixels.shape[2], input_format=picture.format,
        colours=colours.name(container.metadata.get("colours", b"")),
        input_bytes=len(data), output_bytes=len(out), header_bytes=sizes["header"], metadata_bytes=sizes["metadata"],
        payload_bytes=sizes["payload"], initial_bits=initial_bits, groups=container.groups,
    )


def original_pixels(picture: Picture) -> np.ndarray:
    """What a .vdz of this picture must decode to."""
    return file_pixels(picture.data) if picture.pixels is None else picture.pixels


def file_pixels(data: bytes) -> np.ndarray:
    """Pixels (H, W, C) of an image file in its own mode; raises ImageError."""
    pixels = decode_file(data)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def model_container(picture: Picture, pixels: np.ndarray, released: Released) -> tuple[Container, float]:
    height, width, channels = pixels.shape
    tile = tile_of((height, width, channels), released.config)
    steps, how = colours.undo(pixels)
    cells = tiles.image_cells(steps, tile, released)
    coded = tiles.encode([steps], runs_of([(height, width, channels)], [tile]), released, cells=cells)
    extra = {"colours": how} if how else {}
    if cells is not None:
        extra["cells"] = np.packbits(cells).tobytes()
    return Container(
        kind=Kind.MODEL, channels=channels, width=width, height=height, tile=tile, groups=coded.groups,
        model=released.name, digest=released.digest,
        metadata=picture.metadata | extra, payload=coded.payload,
        pixels_crc=zlib.crc32(pixels.tobytes()),
    ), coded.initial_bits


def file_container(picture: Picture) -> Container:
    """The smallest image file of another format that holds the picture: its own bytes, a WebP or a PNG.

    Its own bytes are marked by their suffix, and come back as they are. Metadata is in such a file itself, and in one
    with transparency; in the others it is the container's.
    """
    payload, suffix = best_file(picture)
    metadata = {} if picture.pixels is None else picture.metadata
    if payload is picture.data:
        metadata = {"suffix": suffix.encode()}
    return Container(
        kind=Kind.FILE, channels=0, width=picture.width, height=picture.height, tile=(0, 0), groups=(), model="",
        digest=bytes(16), metadata=metadata, payload=payload, pixels_crc=0,
    )


def file_may_win(picture: Picture, payload_bytes: int) -> bool:
    """Whether the thorough classical coders are worth their time, judged by the size of a quick one.

    A JPEG's own bytes would always win, but storing them is no compression: its pixels are coded like any others.
    """
    if picture.format == "JPEG" or picture.pixels is None:
        return False
    if picture.width * picture.height <= SMALL_PIXELS:
        return True
    return min(len(picture.data), quick_size(picture.pixels)) < TRY_FILE_WITHIN * payload_bytes


def decode(container: Container, model: str | None = None, device: str = "auto") -> np.ndarray:
    """The pixels of a .vdz: (H, W, 1 or 3) uint8, checked against their CRC, or a stored file's own (H, W, C).

    ``model`` is tried where the model that the file names is not a shipped one. Raises FormatError or ModelError.
    """
    if container.kind == Kind.FILE:  # guarded by the payload's CRC; other decoders' pixels are theirs to promise
        return file_pixels(container.payload)
    coded = decode_coded(container, model_of(container, model, device))
    pixels = colours.redo(coded, container.metadata.get("colours", b""))
    if zlib.crc32(pixels.tobytes()) != container.pixels_crc:
        raise FormatError("the decoded pixels do not match their checksum")
    return pixels


def model_of(container: Container, model: str | None, device: str) -> Released:
    return model_named(container.model, container.digest, model, device)


def decompress(
    data: bytes, suffix: str | None = None, model: str | None = None, device: str = "auto"
) -> tuple[bytes, str]:
    """Decodes a .vdz's bytes to an image file's bytes and suffix: ``suffix``, by default .png.

    A file that was stored as it was comes back as it was, with its own suffix. Raises FormatError, ModelError or
    ImageError.
    """
    container = Container.from_bytes(data)
    metadata = dict(container.metadata)
    own = metadata.pop("suffix", b"").decode()
    if own:
        if suffix not in (None, own):
            raise ImageError(f"this .vdz holds a {own} file as it was; it can only be written as {own}")
        return container.payload, own
    pixels = decode(container, model, device)
    if container.kind == Kind.FILE and not metadata:
        metadata = read_picture(container.payload, "payload").metadata
    return write_image(pixels, metadata, suffix or ".png"), suffix or ".png"


def info(data: bytes) -> dict[str, Any]:
    """What a .vdz's header says, without decoding it; sizes in bytes. Raises FormatError."""
    c = Container.from_bytes(data)
    return {
        "version": c.version, "kind": c.kind.name.lower(), "width": c.width, "height": c.height,
        "channels": c.channels, "model": c.model, "digest": c.digest.hex(), "tile": list(c.tile),
        "groups": list(c.groups), "metadata": {k: len(v) for k, v in c.metadata.items()},
        "colours": colours.name(c.metadata.get("colours", b"")),
        **{f"{k}_bytes": v for k, v in c.sizes().items()}, "file_bytes": len(data),
    }


def rates(data: bytes, model: str | None = None, device: str = "auto") -> dict[str, Any]:
    """Decodes a .vdz and measures what its bits were spent on: ELBO, net bits and file, in bits per dim.

    elbo_bpd: the exact model's negative ELBO of what it codes, with fresh latents; net_bpd: the payload less the
    initial bits; file_bpd: every byte of the file. kl_bpd and pixel_bpd itemise the ELBO by layer. Raises as
    ``decode``.
    """
    container = Container.from_bytes(data)
    if container.kind == Kind.FILE:
        raise FormatError("this .vdz stores a file of another format; only model payloads have itemised rates")
    released = model_of(container, model, device)
    pixels = decode_coded(container, released)
    places = runs_in(container)[0].places[: container.groups[0]]
    cells = cells_in(container)
    x, group = tensor_of([pixels], places, container.tile, released.device, cells)
    initial = push_group(released.model, released.tables, group, x, Stack(), direct=True) or 0.0
    kl, pixel = elbo_bits(pixels, released, container.tile, cells)
    dims = pixels.size
    return {
        "elbo_bpd": (sum(kl) + sum(pixel)) / dims, "net_bpd": (8 * len(container.payload) - initial) / dims,
        "file_bpd": 8 * len(data) / dims, "initial_bpd": initial / dims,
        "kl_bpd": [v / dims for v in kl], "pixel_bpd": [v / dims for v in pixel],
    }


def elbo_bits(
    pixels: np.ndarray, released: Released, tile: tuple[int, int], cells: np.ndarray | None = None
) -> tuple[list[float], list[float]]:
    """Negative ELBO of pixels (H, W, 1 or 3) uint8 in bits: the KL of each latent layer, and each pixel layer."""
    kl: list[float] = []
    pixel: list[float] = []
    for box in tile_boxes(pixels.shape[0], pixels.shape[1], tile):
        x, group = tensor_of([pixels], [(0, box)], tile, released.device, cells)
        terms = exact_elbo(released.model, released.tables, group, x)
        kl = [a + b for a, b in zip(kl or [0.0] * len(terms.kl_bits), terms.kl_bits)]
        pixel = [a + b for a, b in zip(pixel or [0.0] * len(terms.pixel_bits), terms.pixel_bits)]
    return kl, pixel


def reconstruct(
    data: bytes, name: str = "image", model: str = DEFAULT_MODEL, device: str = "auto", temperature: float = 0.0
) -> tuple[np.ndarray, dict[str, Any]]:
    """What each resolution knows of an image, or of the 256x256 pixels at its centre: a picture and the bits.

    The picture (H, W, 3) uint8 has a column for each resolution: what is known down to it is kept, the rest is drawn at
    ``temperature``; on top latents alone, below latents and pixels (see ``pictures.reconstructions``). The report has
    the ELBO in bits per dim and, in ``resolutions``, stride, bits, kl_bpd and pixel_bpd. Raises ImageError or
    ModelError.
    """
    picture = read_picture(data, name)
    if picture.pixels is None:
        raise ImageError(f"{name}: no 8-bit grey or RGB image without transparency, which is all that a model codes")
    released = load_released(model, device)
    y0, x0 = (max(0, side - RECONSTRUCTED_SIDE) // 2 for side in picture.pixels.shape[:2])
    pixels = picture.pixels[y0 : y0 + RECONSTRUCTED_SIDE, x0 : x0 + RECONSTRUCTED_SIDE]
    height, width, channels = pixels.shape
    multiple = released.config.max_stride

    box = (0, 0, height, width)
    x, _ = tensor_of([pixels], [(0, box)], tile_grid(height, width, RECONSTRUCTED_SIDE, multiple), released.device)
    torch.manual_seed(0)
    rows = [
        torch.cat([*reconstructions(released.model, x, keep_pixels, temperature), x])[:, :, :height, :width]
        for keep_pixels in (False, True)
    ]
    if channels == 1:  # the others copy the first
        rows = [row[:, [0, 0, 0]] for row in rows]
    labels = [*(f"1/{stride}" for stride in strides(released.model)), "image"]

    kl, pixel = elbo_bits(pixels, released, tile_grid(height, width, released.config.tile, multiple))
    report = {
        "model": released.name, "width": width, "height": height, "channels": channels,
        "elbo_bpd": (sum(kl) + sum(pixel)) / pixels.size,
        "resolutions": by_stride(released.model, kl, pixel, pixels.size),
    }
    return sheet(rows, ["latents", "+ pixels"], labels), report


def by_stride(model: VDVAE, kl: list[float], pixel: list[float], dims: int) -> list[dict[str, Any]]:
    """Bits of each latent and each pixel layer, summed over the layers of a stride, from coarse to fine."""
    return [
        {"stride": s, "bits": kl_bits + pixel_bits, "kl_bpd": kl_bits / dims, "pixel_bpd": pixel_bits / dims}
        for s, (kl_bits, pixel_bits) in model.config.by_stride(kl, pixel).items()
    ]

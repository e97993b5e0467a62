"""What a .vdz's bits were spent on, and what a model knows of an image."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
import torch

from vdvae_codec import DEFAULT_MODEL, transforms
from vdvae_codec.codec import pipeline, tiles
from vdvae_codec.codec.archive import Archive
from vdvae_codec.codec.store import Released, load_released, model_named
from vdvae_codec.codec.visitors import exact_elbo, push_group
from vdvae_codec.entropy.ans import Stack
from vdvae_codec.errors import FormatError, ImageError
from vdvae_codec.exact.arithmetic import plain
from vdvae_codec.format.vdz import VERSION, Segment
from vdvae_codec.images.files import read_picture
from vdvae_codec.images.frame import exactness, is_exact
from vdvae_codec.model.sampling import reconstructions, sheet

RECONSTRUCTED_SIDE = 256  # pixels of the part of an image that is reconstructed


def info(file: BinaryIO) -> dict[str, Any]:
    """What the tables of a .vdz say, without decoding an image; sizes in bytes. Raises FormatError."""
    archive = Archive(file)
    models, names = set[str](), dict[str, None]()
    images = stored = exact = segments = word_bytes = stored_bytes = 0
    for segment in archive.segments():  # one at a time: together they may be far larger than the file
        images, segments, word_bytes = images + len(segment.entries), segments + 1, word_bytes + segment.word_bytes
        models |= {f"{segment.model} {segment.digest.hex()}"} if segment.model else set()
        for entry in segment.entries:
            names |= dict.fromkeys(transforms.names(entry.side_info))
            stored, stored_bytes = stored + (not entry.coded), stored_bytes + entry.payload_bytes
            exact += entry.original or is_exact(entry.metadata.get("frame", b""))
    row: dict[str, Any] = {
        "version": VERSION, "images": images, "segments": segments, "models": sorted(models),
        "transforms": list(names), "stored": stored, "exact_files": exact,
        "word_bytes": word_bytes, "stored_bytes": stored_bytes,
        "table_bytes": archive.reader.size - word_bytes - stored_bytes, "file_bytes": archive.reader.size,
    }
    if images == 1:
        frame = b"" if entry.original else entry.metadata.get("frame", b"")
        row |= {
            "width": entry.width, "height": entry.height, "channels": entry.channels,
            "bits": 16 if entry.depth else 8, "groups": list(segment.groups),
            "metadata": {k: len(v) for k, v in entry.metadata.items()},
        } | ({"file_from": exactness(frame)} if is_exact(frame) else {})
    return row


@plain()
def rates(file: BinaryIO, model: str | Released | None = None, device: str = "auto") -> dict[str, Any]:
    """Decodes a .vdz and measures what its bits were spent on: ELBO, net bits and file, in bits per dim.

    elbo_bpd: the exact model's negative ELBO of what it codes, with fresh latents; net_bpd: the coder's words less the
    initial bits; file_bpd: every byte of the file. kl_bpd and pixel_bpd itemise the ELBO by layer. Raises FormatError
    for a file that holds anything but coded images, and as ``decode``.
    """
    archive = Archive(file)
    kl: list[float] = []
    pixel: list[float] = []
    dims, word_bytes, initial_bits = 0, 0, 0.0
    for segment in archive.segments():
        if not all(entry.coded for entry in segment.entries):
            raise FormatError("this .vdz stores files of other formats; only coded images have itemised rates")
        released = model_named(segment.model, segment.digest, model, device)
        coded = pipeline.decode_coded(segment, released)
        masks = pipeline.masks_of(segment, released)
        added = elbo_bits(coded, masks, released)
        kl, pixel = (sums(old, new) for old, new in zip((kl, pixel), added))
        initial_bits += direct_bits(segment, coded, masks, released)
        dims += sum(image.size for image in coded)
        word_bytes += segment.word_bytes
    return {
        "elbo_bpd": (sum(kl) + sum(pixel)) / dims, "net_bpd": (8 * word_bytes - initial_bits) / dims,
        "file_bpd": 8 * archive.reader.size / dims, "initial_bpd": initial_bits / dims,
        "kl_bpd": [v / dims for v in kl], "pixel_bpd": [v / dims for v in pixel],
    }


def sums(left: Sequence[float], right: Sequence[float]) -> list[float]:
    return [a + b for a, b in zip(left, right)] if left else list(right)


def elbo_bits(
    images: Sequence[np.ndarray], masks: Sequence[tiles.Mask], released: Released
) -> tuple[list[float], list[float]]:
    """Negative ELBO of coded images in bits: the KL of each latent layer, and each pixel layer."""
    kl: list[float] = []
    pixel: list[float] = []
    for run in tiles.runs_of([tiles.shape_of(image) for image in images], released.config):
        for places in tiles.groups_of(run, released.config):
            x, group = tiles.tensor_of(images, places, run, masks, released.device)
            terms = exact_elbo(released.model, released.tables, group, x)
            kl, pixel = sums(kl, terms.kl_bits), sums(pixel, terms.pixel_bits)
    return kl, pixel


def direct_bits(
    segment: Segment, images: Sequence[np.ndarray], masks: Sequence[tiles.Mask], released: Released
) -> float:
    """The initial bits of a segment: what the latents of its direct groups cost beyond their share of the ELBO."""
    runs, bits = tiles.runs_of(pipeline.shapes_of(segment), released.config), 0.0
    for run, places in itertools.islice(tiles.placed(runs, segment.groups), segment.direct):
        x, group = tiles.tensor_of(images, places, run, masks, released.device)
        pushed = push_group(released.model, released.tables, group, x, Stack(), direct=True)
        bits += pushed.initial_bits if pushed else 0.0
    return bits


@plain()
def reconstruct(
    data: bytes, name: str = "image", model: str | Released = DEFAULT_MODEL, device: str = "auto",
    temperature: float = 0.0,
) -> tuple[np.ndarray, dict[str, Any]]:
    """What each resolution knows of an image, or of the 256x256 pixels at its centre: a picture and the bits.

    The picture (H, W, 3) uint8 has a column for each resolution: what is known down to it is kept, the rest is drawn at
    ``temperature``; on top latents alone, below latents and pixels (see ``sampling.reconstructions``). The report has
    the ELBO in bits per dim and, in ``resolutions``, stride, bits, kl_bpd and pixel_bpd. Raises ImageError or
    ModelError.
    """
    picture = read_picture(data, name)
    if picture.pixels is None or picture.pixels.dtype != np.uint8 or picture.pixels.shape[2] not in (1, 3):
        raise ImageError(f"{name}: no 8-bit grey or RGB image without transparency")
    released = load_released(model, device)
    y0, x0 = (max(0, side - RECONSTRUCTED_SIDE) // 2 for side in picture.pixels.shape[:2])
    pixels = picture.pixels[y0 : y0 + RECONSTRUCTED_SIDE, x0 : x0 + RECONSTRUCTED_SIDE]
    height, width, channels = pixels.shape
    multiple = released.config.multiple
    tile = (-(-height // multiple) * multiple, -(-width // multiple) * multiple)
    run = tiles.Run(tile, channels, [(0, (0, 0, height, width))])
    x, _ = tiles.tensor_of([pixels], run.places, run, [None], released.device)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rows = [
            torch.cat([*reconstructions(released.model, x, keep_pixels, temperature), x])[:, :, :height, :width]
            for keep_pixels in (False, True)
        ]
    if channels == 1:  # the others copy the first
        rows = [row[:, [0, 0, 0]] for row in rows]
    labels = [*(f"1/{stride}" for stride in released.config.strides), "image"]
    kl, pixel = elbo_bits([pixels], [None], released)
    report = {
        "model": released.name, "width": width, "height": height, "channels": channels,
        "elbo_bpd": (sum(kl) + sum(pixel)) / pixels.size,
        "resolutions": [
            {"stride": s, "bits": kl_bits + bits, "kl_bpd": kl_bits / pixels.size, "pixel_bpd": bits / pixels.size}
            for s, (kl_bits, bits) in released.config.by_stride(kl, pixel).items()
        ],
    }
    return sheet(rows, ["latents", "+ pixels"], labels), report

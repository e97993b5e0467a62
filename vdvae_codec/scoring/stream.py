"""Image files in, scored images out: in batches of several images, in bounded memory, unreadable ones named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from vdvae_codec.errors import ImageError
from vdvae_codec.images import quick_size, read_picture, read_rgb
from vdvae_codec.model.vdvae import VDVAE
from vdvae_codec.scoring.scores import Scored
from vdvae_codec.scoring.terms import BATCH_PIXELS, image_terms

MOST_PIXELS = 2**28  # of an image


def read_pixels(path: Path) -> np.ndarray:
    """(H, W, 1 or 3) uint8: 8-bit grey and RGB as they are, all else as RGB. Raises ImageError."""
    try:
        picture = read_picture(path.read_bytes(), str(path))
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from error
    pixels = read_rgb(path) if picture.pixels is None else picture.pixels
    if pixels.shape[0] * pixels.shape[1] > MOST_PIXELS:
        raise ImageError(f"{path}: more than {MOST_PIXELS} pixels")
    return pixels


def score_arrays(
    model: VDVAE, names: Sequence[str], images: Sequence[np.ndarray], samples: int = 1
) -> list[Scored]:
    """Scores images (H, W, 1 or 3) uint8."""
    terms, _ = image_terms(model, images, samples)
    return [
        Scored(name, image.shape[1], image.shape[0], image.shape[2], term, 8.0 * quick_size(image))
        for name, image, term in zip(names, images, terms)
    ]


def score_files(
    model: VDVAE, paths: Sequence[tuple[str, Path]], failed: Callable[[str], None], samples: int = 1
) -> Iterator[Scored]:
    """Scores the images at ``paths`` (name, file) in their order; ``failed`` takes a line for each unreadable one."""
    device = next(model.buffers()).device.type
    names: list[str] = []
    images: list[np.ndarray] = []
    with tqdm(paths, desc="scoring", unit="image", disable=None) as bar:
        for name, path in paths:
            try:
                images.append(read_pixels(path))
                names.append(name)
            except ImageError as error:
                failed(str(error))
                bar.update()
            if sum(image.size for image in images) >= 3 * BATCH_PIXELS[device]:
                yield from score_arrays(model, names, images, samples)
                bar.update(len(images))
                names, images = [], []
        if images:
            yield from score_arrays(model, names, images, samples)
            bar.update(len(images))


def heat_picture(bits: np.ndarray) -> Image.Image:
    """Bits of each pixel (H, W) as a picture: dark blue for few, white for the 99th percentile and more."""
    level = (bits / max(float(np.quantile(bits, 0.99)), 1e-6)).clip(0, 1)
    stops = np.array([[8, 10, 50], [90, 20, 120], [220, 60, 60], [250, 180, 50], [255, 255, 255]], np.float32)
    place = np.linspace(0, 1, len(stops))
    rgb = np.stack([np.interp(level, place, stops[:, c]) for c in range(3)], -1)
    return Image.fromarray(rgb.round().astype(np.uint8))

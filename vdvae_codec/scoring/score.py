"""Images in, scores out: files and arrays in their order, in batches of several images, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from vdvae_codec import DEFAULT_MODEL
from vdvae_codec.codec.store import Released, load_released
from vdvae_codec.errors import ImageError
from vdvae_codec.exact.arithmetic import eager
from vdvae_codec.images.classical import quick_size
from vdvae_codec.images.files import deep, highest, image_files, opaque, picture_of, read_picture, read_rgb
from vdvae_codec.images.frame import is_inks
from vdvae_codec.model.vdvae import VDVAE
from vdvae_codec.scoring.calibration import FILE, Calibration
from vdvae_codec.scoring.scores import Row, Scored, row
from vdvae_codec.scoring.terms import BATCH_PIXELS, image_terms

Source = str | Path | bytes | np.ndarray  # an image: a file, a file's bytes, or its pixels (H, W[, 1 to 4]) uint8
Images = Source | Iterable[Source | tuple[str, Source]]


@eager
def score(
    images: Images, *, model: str | Released = DEFAULT_MODEL, device: str = "auto", samples: int = 1,
    llr: bool = False,
) -> list[Row]:
    """Scores images: what each costs under a model, and how surprising that is.

    images: a folder, a file, or an iterable of folders, files, bytes of files and arrays (H, W[, 1 to 4]) uint8, each
    alone or as (name, image); samples: K of the importance weighted bound (Burda 2016, arXiv 1509.00519, eq. 8);
    llr: also LLR^{>k}, for which each image is walked once more for every latent layer.
    Returns a row (``scores.row``) for each image in their order; it has ood and p where the model has a calibration.
    Files are named by their paths, what has no name by its number. Raises ImageError for the first image that cannot be
    read, and ModelError.
    """
    if samples < 1:
        raise ValueError(f"samples: expected at least 1, got {samples}")
    released = load_released(model, device)
    calibration = find_calibration(released, samples)
    found = score_images(released.model, named(images), samples, llr=llr)
    return [row(scored, released.config, calibration) for scored in found]


def find_calibration(released: Released, samples: int) -> Calibration | None:
    """The calibration in the folder of a model; None for none.

    Raises ModelError if it is damaged, of another model, or of another number of samples.
    """
    file = released.folder / FILE
    return Calibration.load(file, released.digest.hex(), samples) if file.exists() else None


def named(images: Images, failed: Callable[[str], None] | None = None) -> Iterator[tuple[str, Source]]:
    """Images with their names, the images of folders sorted by path; an array of four dimensions is many images.

    ``failed`` as in ``images.files.all_files``.
    """
    if isinstance(images, str | Path | bytes) or (isinstance(images, np.ndarray) and images.ndim < 4):
        images = [images]
    for n, image in enumerate(images):
        if isinstance(image, tuple):
            yield image
        elif isinstance(image, bytes | np.ndarray):
            yield str(n), image
        else:
            path = Path(image)
            yield from ((str(file), file) for file in (image_files(path, failed) if path.is_dir() else [path]))


def read_pixels(source: Source, name: str) -> np.ndarray:
    """(H, W, 1 or 3) uint8 without transparency: grey and RGB as they are, of 16 bits the highest 8, all else as
    RGB. Raises ImageError."""
    if isinstance(source, np.ndarray):
        picture = picture_of(source, name)
    else:
        try:
            picture = read_picture(source if isinstance(source, bytes) else Path(source).read_bytes(), name)
        except OSError as error:
            raise ImageError(f"{name}: {error.strerror}") from error
    if picture.pixels is None or is_inks(picture.metadata.get("frame", b"")):
        return read_rgb(picture.data, name)
    pixels = opaque(picture.pixels)
    return highest(pixels)[0] if deep(pixels) else pixels


def score_images(
    model: VDVAE, images: Iterable[tuple[str, Source]], samples: int = 1, failed: Callable[[str], None] | None = None,
    llr: bool = False,
) -> Iterator[Scored]:
    """Scores named images in their order, as they come; ``failed`` takes a line for each one that cannot be read.

    Without ``failed`` the first of these raises ImageError. A few images are held at a time, or a single large one.
    """
    most = 3 * BATCH_PIXELS[model.bias.device.type]
    names: list[str] = []
    pixels: list[np.ndarray] = []
    for name, image in readable(images, failed):
        names.append(name)
        pixels.append(image)
        if sum(p.size for p in pixels) >= most:
            yield from score_arrays(model, names, pixels, samples, llr)
            names, pixels = [], []
    yield from score_arrays(model, names, pixels, samples, llr)


def readable(
    images: Iterable[tuple[str, Source]], failed: Callable[[str], None] | None
) -> Iterator[tuple[str, np.ndarray]]:
    """The pixels (H, W, 1 or 3) uint8 of named images that can be read."""
    for name, source in images:
        try:
            pixels = read_pixels(source, name)
        except ImageError as error:
            if failed is None:
                raise
            failed(str(error))
        else:
            yield name, pixels


def score_arrays(
    model: VDVAE, names: Sequence[str], images: Sequence[np.ndarray], samples: int = 1, llr: bool = False
) -> list[Scored]:
    """Scores images (H, W, 1 or 3) uint8, all of them at a time."""
    terms, _ = image_terms(model, images, samples, llr)
    return [
        Scored(name, image.shape[1], image.shape[0], image.shape[2], term, 8.0 * quick_size(image))
        for name, image, term in zip(names, images, terms)
    ]

"""Whatever holds images for training as a set of images: folders, CIFAR, ImageNet32/64, arrays, shards of tar.

What is compact once decoded is decoded once into a flat file (``decoded``); tar shards are only indexed (``shards``).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vdvae_codec.training.data import Images, split_by_image
from vdvae_codec.training.parallel import ALONE, Processes
from vdvae_codec.training.recipe import Recipe
from vdvae_codec.training.sources.cache import digest, load_index, new_file
from vdvae_codec.training.sources.choice import Choice
from vdvae_codec.training.sources.decoded import Decoded, decode
from vdvae_codec.training.sources.files import files_of, is_tar, naming, split_key
from vdvae_codec.training.sources.shards import Shards, index_shards

_VERSION = 1  # of the files in the cache
HELD_OUT = 0.05  # share of the images, where none are given for validation


def open_images(path: Path, smallest_side: int, cache: Path) -> Images:
    """Opens the images at ``path`` whose sides have at least ``smallest_side`` pixels.

    ``path`` is one of: a folder of image files, searched recursively; the folder of CIFAR-10's or downsampled
    ImageNet's batches, of which only those for training are taken, or one batch (pickle, binary or .npz); an array of
    uint8 (N, H, W, 3), (N, 3, H, W), (N, H, W) or (N, 3 H H) as .npy, .npz or FILE.npz:KEY; an uncompressed .tar of
    image files, or a folder of them. In folders, unreadable and too small images are skipped and named in a warning.

    ``cache`` keeps the decoded pixels, or the index of the shards, and is used again while the files at ``path`` have
    the sizes and times that they had; files of their earlier states are deleted. Raises TrainingError if there is
    nothing to use, a file is damaged, or the cache cannot be written.
    """
    source, key = split_key(path)
    with naming(source):
        files = files_of(source)
        stats = [(str(file.relative_to(source)), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    place = digest(_VERSION, source.resolve(), key, smallest_side)
    file = cache / f"{place}-{digest(stats)}.npz"
    pixels, sharded = file.with_suffix(".pixels"), any(is_tar(file) for file in files)
    index = load_index(file) if sharded or pixels.exists() else None
    if index is None:
        total = sum(size for _, size, _ in stats)
        with tqdm(total=total, desc=f"reading {path}", unit="B", unit_scale=True, disable=None) as bar:
            choice = Choice(source, smallest_side, bar)
            if sharded:
                index = index_shards(files, choice)
            else:
                with new_file(pixels) as out:
                    index = decode(files, key, choice, out)
        with new_file(file) as out:
            np.savez(out, **index)  # type: ignore[arg-type]
        for old in [*cache.glob(f"{place}-*.npz"), *cache.glob(f"{place}-*.pixels")]:
            if old.stem != file.stem:
                with suppress(OSError):
                    old.unlink()
    return Shards(files, index) if sharded else Decoded(pixels, index)


def training_sets(
    data: Path, val: Path | None, recipe: Recipe, multiple: int, cache: Path, processes: Processes = ALONE
) -> tuple[Images, Images]:
    """What a training sees, and what it is validated on: images at ``val``, or else a held-out part of ``data``.

    Validation images have at least ``multiple`` pixels a side. The first process decodes what is not yet in the cache,
    and the others wait for it. Raises TrainingError as ``open_images``.
    """
    if not processes.first:
        processes.wait()
    images = open_images(data, recipe.crop, cache)
    held_out = None if val is None else open_images(val, multiple, cache)
    if processes.first:
        processes.wait()
    return (images, held_out) if held_out is not None else split_by_image(images, HELD_OUT, recipe.seed)

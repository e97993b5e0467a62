"""Images that are decoded once, into a flat file that all processes of a machine map."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from vdvae_codec.errors import ImageError
from vdvae_codec.images.files import read_rgb
from vdvae_codec.training.sources.arrays import Blocks, as_rgb, npy, npz
from vdvae_codec.training.sources.batches import cifar_binary, pickled
from vdvae_codec.training.sources.choice import Choice, Index, unpack
from vdvae_codec.training.sources.files import is_image, naming

_READERS: dict[str, Callable[[Path, str | None], Blocks]] = {".npy": npy, ".npz": npz, ".bin": cifar_binary}


class Decoded:
    """Images that lie one after the other in a mapped file; see ``data.Images``."""

    def __init__(self, pixels: Path, index: Index):
        self.names, self.sizes = unpack(index["names"]), index["sizes"]
        self._starts = np.append(0, np.cumsum(self.sizes.prod(1) * 3))
        with naming(pixels):
            self._pixels = np.asarray(np.memmap(pixels, np.uint8, "r", shape=(int(self._starts[-1]),)))

    def __getitem__(self, n: int) -> np.ndarray:
        height, width = self.sizes[n]
        return self._pixels[self._starts[n] : self._starts[n + 1]].reshape(height, width, 3)


def decode(files: Sequence[Path], key: str | None, choice: Choice, out: IO[bytes]) -> Index:
    """Appends the pixels of all images to ``out``."""
    root, start = choice.source if choice.source.is_dir() else choice.source.parent, 0
    for file in files:
        name, done = file.relative_to(root).as_posix(), 0
        with naming(file):
            size = file.stat().st_size
        try:
            for total, pixels in _blocks(file, key):
                height, width = pixels.shape[1:3]
                if not choice.fits(file, height, width):
                    break  # all images of a file have one size
                out.write(np.ascontiguousarray(pixels).data)
                digits = len(str(total - 1))
                numbers = range(done, done + len(pixels))
                choice.names += [name] if is_image(name) else [f"{name}/{n:0{digits}d}" for n in numbers]
                choice.sizes += [(height, width)] * len(pixels)
                done += len(pixels)
                choice.reach(start + size * done / total)
        except ImageError as error:
            choice.skip(str(error))
        start += size
        choice.reach(start)
    return choice.index()


def _blocks(file: Path, key: str | None) -> Iterator[tuple[int, np.ndarray]]:
    """Pairs of the number of images in a file and (n, H, W, 3) uint8, the next of them.

    Raises ImageError for an image file that cannot be read, TrainingError for others.
    """
    if is_image(file.name):
        yield 1, read_rgb(file)[None]
        return
    with naming(file):
        for total, rows in _READERS.get(file.suffix.lower(), pickled)(file, key):
            pixels = as_rgb(rows)
            assert pixels is not None
            yield total, pixels

"""The images of archives for torch: ``VdzDataset`` in any order, ``SegmentStream`` in the order that decodes least."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from vdvae_codec.codec.archive import Archive, open_archive
from vdvae_codec.codec.store import Released
from vdvae_codec.format.vdz import Found
from vdvae_codec.images.files import Picture

CACHE_BYTES = 2**28


class VdzDataset(Dataset[Any]):
    """The images of one or several archives, one behind the other: paths or URLs, as ``open_archive`` takes them.

    ``dataset[i]`` is a tensor (C, H, W) of ``Picture.to_array``'s pixels, uint8 for all that a model coded, or what
    ``transform`` makes of the array (H, W, C). An image costs the decoding of its segment, unless that is among the
    last ones, of which ``cache_bytes`` are kept in each process: random order over more than that is right, and slow
    (``SegmentStream`` is not). Files are open only while a segment is read, so that workers may be forked or spawned.
    Raises as ``open_archive``, and FormatError, ImageError or ModelError where an image cannot be had.
    """

    def __init__(
        self, paths: str | Path | Sequence[str | Path], transform: Callable[[np.ndarray], Any] | None = None,
        model: str | Released | None = None, device: str = "cpu", cache_bytes: int = CACHE_BYTES,
    ):
        self._paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
        self._transform, self._model, self._device, self._cache_bytes = transform, model, device, cache_bytes
        self._places: list[tuple[str | Path, Found]] = []  # of the segments
        self._starts = [0]  # images before each segment, and in all
        self._cache: OrderedDict[int, list[Picture]] = OrderedDict()
        for path in self._paths:
            with self._archive(path) as archive:
                self._starts += [self._starts[-1] + start for start in archive.reader.starts[1:]]
                self._places += [(path, found) for found in archive.reader.segments]

    def _archive(self, path: str | Path) -> Archive:
        return open_archive(path, model=self._model, device=self._device)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": OrderedDict()}  # decoded images stay where they are

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def names(self) -> list[str]:
        """Of all images, by the archives' tables."""
        names: list[str] = []
        for path in self._paths:
            with self._archive(path) as archive:
                names += archive.names
        return names

    @property
    def segments(self) -> list[range]:
        """The indices of the images of each segment."""
        return [range(*pair) for pair in zip(self._starts, self._starts[1:])]

    def __getitem__(self, index: int) -> Any:
        index = range(len(self))[index]
        segment = bisect_right(self._starts, index) - 1
        pixels = self._pictures(segment)[index - self._starts[segment]].to_array().copy()  # not the cache's own
        return torch.from_numpy(pixels).permute(2, 0, 1) if self._transform is None else self._transform(pixels)

    def _pictures(self, segment: int) -> list[Picture]:
        """Of a segment, which is then the last that the cache forgets."""
        if segment not in self._cache:
            path, found = self._places[segment]
            with self._archive(path) as archive:
                self._cache[segment] = archive.decode(found)
        self._cache.move_to_end(segment)
        while len(self._cache) > 1 and sum(map(_size, self._cache.values())) > self._cache_bytes:
            self._cache.popitem(last=False)
        return self._cache[segment]


def _size(pictures: list[Picture]) -> int:
    """Bytes in memory."""
    return sum(len(p.data) if p.pixels is None else p.pixels.nbytes for p in pictures)


class SegmentStream(IterableDataset[Any]):
    """The images of a ``VdzDataset``, segment by segment, each of which is decoded once an epoch, by one worker.

    ``shuffle`` shuffles the segments, and the images within each, anew at every iteration; ``seed``, and with workers
    the DataLoader's generator, say how. This is no sampler because a DataLoader hands a sampler's batches to its
    workers in turn: each of them would decode every segment. Here each worker takes segments of its own.
    """

    def __init__(self, dataset: VdzDataset, shuffle: bool = True, seed: int = 0):
        self._dataset, self._shuffle, self._seed, self._epoch = dataset, shuffle, seed, 0

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        number, workers, drawn = 0, 1, 0
        if worker is not None:
            number, workers, drawn = worker.id, worker.num_workers, worker.seed - worker.id
        rng = np.random.default_rng((self._seed, drawn, self._epoch))  # the same in all workers
        self._epoch += 1
        segments = self._dataset.segments
        for n in self._order(range(len(segments)), rng)[number::workers]:
            for index in self._order(segments[n], rng):
                yield self._dataset[index]

    def _order(self, indices: range, rng: np.random.Generator) -> list[int]:
        return rng.permutation(indices).tolist() if self._shuffle else list(indices)

"""Archives as torch's data sets: any order, workers, and the order that decodes each segment once."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_samples import DEEP, INDEXED, RGB, TRANSPARENT
from torch.utils.data import DataLoader

import vdvae_codec
from vdvae_codec.errors import FormatError, ModelError
from vdvae_codec.plugins.dataset import SegmentStream, VdzDataset

COUNT, SIDE = 1000, 16
FEW, SEGMENT = 60, 10  # of another archive
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(scope="module")
def images(photo: np.ndarray) -> np.ndarray:
    """(COUNT, SIDE, SIDE, 1) uint8: crops, no two alike, for each begins with its number."""
    corners = np.random.default_rng(0).integers(0, (120 - SIDE, 160 - SIDE), (COUNT, 2))
    crops = np.stack([photo[y : y + SIDE, x : x + SIDE, :1] for y, x in corners])
    crops[:, 0, :2, 0] = np.stack([np.arange(COUNT) >> 8, np.arange(COUNT) & 255], 1)
    return crops


@pytest.fixture(scope="module")
def folder(images: np.ndarray, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all images in ten segments (all.vdz), and of a FEW in six."""
    folder = tmp_path_factory.mktemp("dataset")
    for name, own, segment in (("all", images, COUNT // 10), ("few", images[:FEW], SEGMENT)):
        named = ((f"{n:04}.png", image) for n, image in enumerate(own))
        report = vdvae_codec.write_archive(
            named, folder / f"{name}.vdz", model=str(tiny_folder), segment=segment, fallback=False, verify=False
        )
        assert report.images == len(own) == segment * report.segments and report.stored == 0
    return folder


@pytest.fixture
def few(folder: Path) -> Path:
    return folder / "few.vdz"


def number_of(image: torch.Tensor | np.ndarray) -> int:
    """Which one of ``images`` it is."""
    first, second = (int(value) for value in image.ravel()[:2])
    return 256 * first + second


def with_process(pixels: np.ndarray) -> tuple[int, int]:
    return number_of(pixels), os.getpid()


def as_list(batch: list[Any]) -> list[Any]:
    return batch


def test_random_order_with_two_workers(folder: Path, images: np.ndarray, tiny_folder: Path) -> None:
    dataset = VdzDataset(folder / "all.vdz", model=str(tiny_folder))
    assert len(dataset) == COUNT
    generator = torch.Generator().manual_seed(0)
    seen = []
    for batch in DataLoader(dataset, 50, shuffle=True, num_workers=2, generator=generator):
        assert batch.shape == (50, 1, SIDE, SIDE) and batch.dtype == torch.uint8
        for image in batch:
            seen.append(number_of(image))
            assert np.array_equal(image.numpy()[0], images[seen[-1], ..., 0])
    assert sorted(seen) == list(range(COUNT)) != seen


@pytest.mark.parametrize("persistent", [False, True])
def test_a_segment_stays_with_one_worker(few: Path, tiny_folder: Path, persistent: bool) -> None:
    stream = SegmentStream(VdzDataset(few, with_process, str(tiny_folder), cache_bytes=0))
    loader: Iterable[list[tuple[int, int]]] = DataLoader(
        stream, 4, num_workers=2, collate_fn=as_list, persistent_workers=persistent,
        generator=torch.Generator().manual_seed(0),
    )
    epochs = [[row for batch in loader for row in batch] for _ in range(2)]
    assert epochs[0] != epochs[1]
    for epoch in epochs:
        assert sorted(number for number, _ in epoch) == list(range(FEW)) != [number for number, _ in epoch]
        workers = {process: [n // SEGMENT for n, own in epoch if own == process] for _, process in epoch}
        assert len(workers) == 2
        decoded = [segment for order in workers.values() for segment, _ in groupby(order)]
        assert sorted(decoded) == list(range(FEW // SEGMENT))  # each once, by one of them


def test_streams_without_workers(few: Path, tiny_folder: Path) -> None:
    dataset = VdzDataset(few, number_of, str(tiny_folder))
    assert list(SegmentStream(dataset, shuffle=False)) == list(range(FEW))
    stream, same, other = SegmentStream(dataset, seed=1), SegmentStream(dataset, seed=1), SegmentStream(dataset, seed=2)
    first, second = list(stream), list(stream)
    assert first != second and [list(same), list(same)] == [first, second] and list(other) not in (first, second)
    assert sorted(first) == list(range(FEW))


def test_spawned_workers(few: Path, images: np.ndarray, tiny_folder: Path) -> None:
    dataset = VdzDataset(few, model=str(tiny_folder))
    expected = dataset[7]
    assert len(pickle.dumps(dataset)) < 10_000  # no decoded images go with it
    loader = DataLoader(dataset, sampler=[7], num_workers=1, multiprocessing_context="spawn")
    assert [torch.equal(batch[0], expected) for batch in loader] == [True]
    assert np.array_equal(expected.numpy()[0], images[7, ..., 0])


def test_several_archives(few: Path, tiny_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "b.vdz"
    kept = ("palette.png", "rgba.png", "grey16.png", "bits.png", "rgb_trns.png")
    stored = [(name, (DEEP | INDEXED | TRANSPARENT)[name]) for name in kept]
    vdvae_codec.write_archive([("x", RGB), *stored], other, model=str(tiny_folder), fallback=False)
    dataset = VdzDataset([other, str(few), other], model=str(tiny_folder))
    assert len(dataset) == 6 + FEW + 6 and len(dataset.segments) == 8
    assert dataset.names == [*["x", *(name for name, _ in stored)], *(f"{n:04}.png" for n in range(FEW)),
                             *["x", *(name for name, _ in stored)]]  # fmt: skip
    assert number_of(dataset[6 + 25]) == 25 and torch.equal(dataset[-6], dataset[0])
    assert np.array_equal(dataset[0].permute(1, 2, 0).numpy(), RGB)
    kinds = [(tuple(dataset[n].shape), dataset[n].dtype) for n in range(1, 6)]
    assert kinds == [((3, 37, 53), torch.uint8), ((4, 37, 53), torch.uint8), ((1, 37, 53), torch.uint16),
                     ((1, 37, 53), torch.uint8), ((3, 37, 53), torch.uint8)]  # fmt: skip
    for index in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError):
            dataset[index]


def test_what_a_transform_does_stays_its_own(few: Path, images: np.ndarray, tiny_folder: Path) -> None:
    def spoil(pixels: np.ndarray) -> int:
        pixels += 1
        return number_of(pixels)

    assert [VdzDataset(few, spoil, str(tiny_folder))[3] for _ in range(2)] == [256 + 4] * 2
    dataset = VdzDataset(few, spoil, str(tiny_folder))
    assert [dataset[3], dataset[3]] == [256 + 4] * 2


def test_what_cannot_be_had(few: Path, tmp_path: Path) -> None:
    (tmp_path / "no.vdz").write_bytes(b"no archive")
    with pytest.raises(FormatError, match=r"not a \.vdz"):
        VdzDataset(tmp_path / "no.vdz")
    (tmp_path / "cut.vdz").write_bytes(few.read_bytes()[:-9])
    with pytest.raises(FormatError, match="index"):
        VdzDataset(tmp_path / "cut.vdz")
    with pytest.raises(ModelError, match=r"'tiny'.*is needed"):
        VdzDataset(few)[0]

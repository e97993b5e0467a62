"""Colours between others, marked and filled in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from image_samples import scanned

from vdvae_codec.errors import FormatError
from vdvae_codec.transforms.chroma import OTHERS, Chroma, between, blocks_between, mirrored
from vdvae_codec.transforms.ycc import CONVERSIONS

CHROMA, PHOTOCD = Chroma(), CONVERSIONS[2]


def in_ycc(scan: np.ndarray) -> np.ndarray:
    done = PHOTOCD.forward(scan)
    assert done is not None
    return done[0]


def means(first: np.ndarray, offset: tuple[int, int]) -> np.ndarray:
    """``between``, pixel by pixel: floor(mean + 1/2)."""
    height, width = first.shape[-2:]
    out = np.zeros_like(first)
    for y in range(height):
        for x in range(width):
            rows = {y, min(y + 1, height - 1)} if offset[0] else {y}
            columns = {x, min(x + 1, width - 1)} if offset[1] else {x}
            values = np.stack([first[..., r, c] for r in rows for c in columns])
            out[..., y, x] = np.floor(values.mean(0) + 0.5)
    return out


@pytest.mark.parametrize("offset", OTHERS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 5, 6), (3, 2, 8, 4)])
def test_between_is_the_mean_in_numpy_and_torch(shape: tuple[int, ...], offset: tuple[int, int]) -> None:
    first = np.random.default_rng(0).integers(-255, 256, shape)
    expected = means(first, offset)
    for dtype in (np.int16, np.int64):
        got = between(first.astype(dtype), offset)
        assert got.dtype == dtype and np.array_equal(got, expected)
    tensor = between(torch.from_numpy(first).float(), offset)
    assert tensor.dtype == torch.float32 and torch.equal(tensor, torch.from_numpy(expected).float())


@pytest.mark.parametrize("flips", range(4))
def test_colours_between_others_are_not_coded(photo: np.ndarray, flips: int) -> None:
    """Whichever pixels of 2x2 hold the colours that were kept."""
    pixels = np.ascontiguousarray(mirrored(in_ycc(scanned(photo)), flips))
    done = CHROMA.forward(pixels)
    assert done is not None
    coded, side_info = done
    assert side_info[0] == flips and np.array_equal(mirrored(coded, flips), pixels)
    assert coded.flags.c_contiguous
    mask = CHROMA.mask(side_info, *pixels.shape[:2])
    assert mask.shape == (60, 80) and mask.dtype == bool and mask.mean() > 0.7
    assert np.array_equal(mask, blocks_between(coded))


@pytest.mark.parametrize("height, width", [(120, 160), (91, 117), (100, 151), (119, 100)])
def test_colours_that_are_not_coded_come_back(photo: np.ndarray, height: int, width: int) -> None:
    pixels = np.ascontiguousarray(in_ycc(scanned(photo))[:height, :width])
    done = CHROMA.forward(pixels)
    assert done is not None
    coded, side_info = done
    mask = CHROMA.mask(side_info, height, width)
    rubbish = coded.copy()
    noise = np.random.default_rng(0).integers(0, 256, coded.shape).astype(np.uint8)
    for dy, dx in OTHERS:
        part = rubbish[dy::2, dx::2]
        here = mask[: part.shape[0], : part.shape[1]]
        part[here, 0], part[here, 2] = noise[dy::2, dx::2][here, 0], noise[dy::2, dx::2][here, 2]
    assert (rubbish != coded).mean() > 0.1
    before = rubbish.copy()
    assert np.array_equal(CHROMA.inverse(rubbish, side_info), pixels)
    assert np.array_equal(CHROMA.inverse(coded, side_info), pixels)
    assert np.array_equal(rubbish, before)


def test_grey_images_in_three_colours_code_one(photo: np.ndarray) -> None:
    done = CHROMA.forward(photo[..., :1].repeat(3, 2))
    assert done is not None
    assert CHROMA.mask(done[1], 120, 160).all() and done[1][0] == 0


@pytest.mark.parametrize("shape", [(1, -1, 3), (-1, 1, 3)])
def test_images_of_one_row_or_column(photo: np.ndarray, shape: tuple[int, ...]) -> None:
    pixels = photo[..., :1].repeat(3, 2).reshape(shape)
    done = CHROMA.forward(pixels)
    assert done is not None and np.array_equal(CHROMA.inverse(*done), pixels)


def test_masks_that_do_not_pay_are_left_out(photo: np.ndarray) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3)).astype(np.uint8)
    some = photo.copy()
    some[:6, :6] = 128  # nine blocks do not pay for a mask
    assert blocks_between(some).sum() >= 9
    for pixels in (photo, noise, some, photo[..., :1]):
        assert CHROMA.forward(pixels) is None


def test_damage_is_named(photo: np.ndarray) -> None:
    done = CHROMA.forward(in_ycc(scanned(photo)))
    assert done is not None
    coded, side_info = done
    for bad in (b"", side_info[:-1], side_info + b"x", b"\4" + side_info[1:]):
        with pytest.raises(FormatError, match="side_info: chroma"):
            CHROMA.inverse(coded, bad)
        with pytest.raises(FormatError, match="side_info: chroma"):
            CHROMA.mask(bad, 120, 160)
    with pytest.raises(FormatError, match="grey"):
        CHROMA.inverse(coded[..., :1], side_info)
    with pytest.raises(FormatError):
        CHROMA.mask(side_info, 1 << 31, 1 << 31)  # before memory is asked for
    assert CHROMA.inverse(coded, side_info[:7] + bytes([side_info[7] ^ 255]) + side_info[8:]).shape == coded.shape

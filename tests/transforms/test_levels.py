"""Missing levels, left out and put back."""

from __future__ import annotations

import numpy as np
import pytest
from image_samples import stretched

from vdvae_codec.errors import FormatError
from vdvae_codec.transforms.levels import Levels, first_number, promised_bits

LEVELS = Levels()


@pytest.mark.parametrize("channels", [1, 3])
def test_missing_levels_are_left_out(photo: np.ndarray, channels: int) -> None:
    pixels = stretched(photo[..., :channels])
    done = LEVELS.forward(pixels)
    assert done is not None
    coded, side_info = done
    assert coded.shape == pixels.shape and coded.dtype == np.uint8 and len(side_info) == 33 * channels
    assert np.array_equal(LEVELS.inverse(coded, side_info), pixels)
    assert all(len(np.unique(coded[..., c])) == np.ptp(coded[..., c]) + 1 for c in range(channels))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_with_all_levels_stay_as_they_are(photo: np.ndarray, channels: int) -> None:
    flat = np.full((64, 64, channels), 255, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, channels)).astype(np.uint8)
    assert all(LEVELS.forward(pixels) is None for pixels in (photo[..., :channels], flat, noise))


def test_levels_keep_their_proportions() -> None:
    present = np.zeros(256, bool)
    present[100:201:2] = True
    assert first_number(present) == 50
    present[:] = True
    assert first_number(present) == 0


def test_what_missing_levels_promise() -> None:
    counts = np.zeros(256, int)
    counts[50:200] = 7
    assert promised_bits(counts) == 0
    counts[50:200:2] = 0  # every second one: a bit for each pixel
    assert promised_bits(counts) == pytest.approx(counts.sum(), rel=0.1)


def test_damaged_levels_are_named(photo: np.ndarray) -> None:
    done = LEVELS.forward((photo // 2 * 2 + 1).astype(np.uint8))
    assert done is not None
    coded, side_info = done
    for bad in (
        b"",
        side_info[:-1],
        side_info + b"x",
        b"\xff" + side_info[1:],
        side_info[:1] + bytes(32) + side_info[33:],
    ):
        with pytest.raises(FormatError, match="side_info"):
            LEVELS.inverse(coded, bad)


def test_numbers_beyond_255_are_no_levels() -> None:
    """A first number that leaves no room for all levels that are said to be there."""
    side_info = b"\xf0" + b"\xff" * 32
    assert LEVELS.inverse(np.full((2, 2, 1), 255, np.uint8), side_info).max() == 15
    with pytest.raises(FormatError):
        LEVELS.inverse(np.full((2, 2, 1), 239, np.uint8), side_info)

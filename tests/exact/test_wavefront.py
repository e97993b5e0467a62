"""Wavefronts and strips: every pixel once, in an order in which what a causal network sees comes first."""

import numpy as np
import pytest
import torch

from vdvae_codec.exact.conv import TAPS, causal_mask
from vdvae_codec.exact.wavefront import Pixels, Rings, Strip, count_waves, wave_order, waves

SIZES = [(1, 1), (1, 9), (9, 1), (2, 3), (7, 5), (5, 7), (12, 12)]


@pytest.mark.parametrize("height, width", SIZES)
def test_every_pixel_lies_on_one_wavefront(height: int, width: int) -> None:
    seen = [(y, wave.t - 2 * y) for wave in waves(height, width) for y in range(wave.low, wave.high)]
    assert sorted(seen) == [(y, x) for y in range(height) for x in range(width)]
    assert all(0 <= wave.t < count_waves(height, width) for wave in waves(height, width))


@pytest.mark.parametrize("height, width", SIZES)
def test_the_order_is_that_of_the_wavefronts(height: int, width: int) -> None:
    order, t = wave_order(3, height, width)
    expected = [
        (n * height + y) * width + wave.t - 2 * y
        for wave in waves(height, width) for n in range(3) for y in range(wave.low, wave.high)
    ]
    assert order.tolist() == expected
    assert np.all(np.diff(t) >= 0) and t.tolist() == [(o // width % height) * 2 + o % width for o in order]


def test_what_a_causal_convolution_sees_comes_first() -> None:
    assert all(dx + 2 * dy < 0 or (dy, dx) == (0, 0) for dy, dx in TAPS)
    assert causal_mask().sum() == len(TAPS) and causal_mask()[1, 2] == 0


@pytest.mark.parametrize("height, width", SIZES)
def test_pixels_are_read_where_they_were_put(height: int, width: int) -> None:
    """The neighbours of a wavefront, while later ones still hold rubbish."""
    x = torch.arange(2.0 * 3 * height * width).view(2, 3, height, width)
    taps = [(-2, -1), (-1, 0), (-1, 1), (0, -2), (0, -1)]
    padded = torch.nn.functional.pad(x, (2, 2, 2, 0), value=-1.0)
    pixels, known = Pixels(x, 2, -1), Pixels(x, 2, -1)
    known.fill(x)
    assert torch.equal(known.images(), x)
    for wave in waves(height, width):
        seen = pixels.known(wave, taps).view(2, wave.high - wave.low, len(taps), 3)
        for n, y in enumerate(range(wave.low, wave.high)):
            for k, (dy, dx) in enumerate(taps):
                assert torch.equal(seen[:, n, k], padded[:, :, y + 2 + dy, wave.t - 2 * y + 2 + dx])
        ys = torch.arange(wave.low, wave.high)
        pixels.put(wave, x[:, :, ys, wave.t - 2 * ys].permute(0, 2, 1).flatten(0, 1))
    assert torch.equal(pixels.images(), x)
    strip = known.strip(0, height, taps).view(2, height, width, len(taps), 3)
    for k, (dy, dx) in enumerate(taps):
        expected = padded[:, :, 2 + dy : 2 + dy + height, 2 + dx : 2 + dx + width]
        assert torch.equal(strip[..., k, :].permute(0, 3, 1, 2), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("height, width", SIZES)
def test_rings_and_strips_give_the_neighbours(height: int, width: int, rows: int, dtype: torch.dtype) -> None:
    a = torch.randint(1, 256, (2, 4, height, width)).float()
    padded = torch.nn.functional.pad(a, (1, 1, 1, 0))
    expected = torch.stack([padded[:, :, 1 + dy :, 1 + dx :][:, :, :height, :width] for dy, dx in TAPS], 1)
    cpu = torch.device("cpu")
    rings = Rings(2, 2, height, 4, dtype, cpu)
    for wave in waves(height, width):
        ys = torch.arange(wave.low, wave.high)
        own = a[:, :, ys, wave.t - 2 * ys].permute(0, 2, 1).flatten(0, 1)
        want = expected[..., ys, wave.t - 2 * ys].permute(0, 3, 1, 2)
        for n, neighbours in enumerate(rings.neighbours(wave)):
            found = neighbours((own + n) % 256).view(2, len(ys), len(TAPS), 4)
            assert found.dtype == dtype
            assert torch.equal(found.float(), torch.where(want > 0, (want + n) % 256, 0))
    rows = min(rows, height)
    strip = Strip(2, rows, width, 4, dtype, cpu)
    for y in range(0, height, rows):
        here = min(rows, height - y)
        found = strip.neighbours(here, a[:, :, y : y + here].permute(0, 2, 3, 1).flatten(0, 2))
        want = expected[:, :, :, y : y + here].permute(0, 3, 4, 1, 2)
        assert torch.equal(found.float().view(want.shape), want)

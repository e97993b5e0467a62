"""Grids of what convolutions take in, and of their weights."""

import pytest
import torch
from torch import Tensor

from vdvae_codec.exact.conv import LIMIT, ExactConv, partial_sum_bound
from vdvae_codec.exact.quantise import ENOUGH_LEVELS, INPUT_LEVELS, Grid, byte_grid, quantise_conv, signed_grid


def rounded(x: Tensor, grid: Grid) -> Tensor:
    exponent, low, high = grid
    return (x * 2.0**exponent).round().clamp(low, high) * 2.0**-exponent


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_bytes_span_256_steps_and_clip_little(scale: float) -> None:
    torch.manual_seed(0)
    x = torch.nn.functional.hardswish(torch.randn(10_000)) * scale
    exponent, low, high = byte_grid(x, float(x.min()), float(x.max()))
    assert high - low == 255 and -255 <= low <= 0
    error = float((rounded(x, (exponent, low, high)) - x).square().mean())
    assert error < 4e-4 * float(x.square().mean())
    for other in (exponent - 1, exponent + 1):
        bottom = max(round(float(x.min()) * 2.0**other), -255)
        assert error <= float((rounded(x, (other, bottom, bottom + 255)) - x).square().mean())


def test_outliers_are_clipped_where_that_is_closer() -> None:
    torch.manual_seed(0)
    x = torch.randn(100_000)
    x[0] = 40.0
    for grid, levels in ((byte_grid, 255), (signed_grid, INPUT_LEVELS)):
        low, high = float(x.min()), float(x.max())
        exponent, lowest, highest = grid(x, low, high)
        assert lowest >= -levels and highest <= levels
        clips = highest * 2.0**-exponent < 39
        assert clips == (grid is byte_grid)  # 2047 steps are enough for both, 256 are not


def test_values_of_one_size_or_none_have_a_grid() -> None:
    for x in (torch.zeros(10), torch.full((10,), 3.0), torch.full((10,), -1e-9)):
        for grid in (byte_grid, signed_grid):
            found = grid(x, min(0.0, float(x.min())), max(0.0, float(x.max())))
            assert float((rounded(x, found) - x).abs().max()) < 0.02


@pytest.mark.parametrize("channels, size", [(8, 1.0), (64, 1.0), (64, 1e-6), (256, 30.0)])
def test_weights_are_as_fine_as_the_bound_allows(channels: int, size: float) -> None:
    torch.manual_seed(0)
    weight, bias, grid = torch.randn(12, channels, 3, 3) * size, torch.randn(12), (6, -1000, 1000)
    weight[5] = 0
    exact = ExactConv(channels, 12, 3, "")
    quantise_conv(exact, weight, bias, grid)
    parts = int(exact.grid[3])
    assert exact.grid.tolist() == [*grid, parts] and channels % parts == 0
    bound = partial_sum_bound(exact.weight, exact.bias, -1000, 1000, parts)
    assert bool((bound < LIMIT).all())
    peaks = exact.weight.abs().amax((1, 2, 3))
    assert peaks[5] == 0 and int(peaks.max()) <= 2**15 - 1
    if parts == 1:
        assert int(peaks[peaks > 0].min()) >= ENOUGH_LEVELS
    steps = 2.0 ** -exact.weight_exponent[:, None, None, None]
    assert bool(((exact.weight * steps - weight).abs() <= steps / 2).all())

"""Grids of what convolutions take in, and of their weights."""


import pytest
import torch
from torch import Tensor

from vdvae_codec.exact.conv import LIMIT, ExactConv, partial_sum_bound
from vdvae_codec.exact.quantise import ENOUGH_LEVELS, INPUT_LEVELS, Grid, input_grid, quantise_conv


def rounded(x: Tensor, grid: Grid) -> Tensor:
    exponent, low, high = grid
    return (x * 2.0**exponent).round().clamp(low, high) * 2.0**-exponent


@pytest.mark.parametrize("scale", [1e-9, 1.0, 50.0])
@pytest.mark.parametrize("low, high", [(-0.4, 3.1), (-2.0, 2.0), (-3.0, 0.0)])
def test_a_grid_clips_nothing_and_no_finer_one_would_do(low: float, high: float, scale: float) -> None:
    x = torch.linspace(low * scale, high * scale, 10_001)
    exponent, lowest, highest = input_grid(low * scale, high * scale, max(high, -low) * scale / 2)
    assert -INPUT_LEVELS <= lowest <= 0 <= highest <= INPUT_LEVELS
    assert float((rounded(x, (exponent, lowest, highest)) - x).abs().max()) <= 0.5 * 2.0**-exponent
    assert max(high, -low) * scale * 2.0 ** (exponent + 1) > INPUT_LEVELS or scale == 1e-9


def test_values_that_are_small_beside_their_range_have_a_finer_grid() -> None:
    ends = [input_grid(-0.4, 20.0, rms) for rms in (1.1, 0.9)]
    assert [exponent for exponent, _, _ in ends] == [7, 8] and [high for _, _, high in ends] == [2560, 5120]


def test_nothing_but_zeros_has_a_grid() -> None:
    assert input_grid(0.0, 0.0, 0.0)[1:] == (0, 0)


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

"""The integers of one convolution: grids of its inputs, found on data, and weights as fine as the bound allows."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vdvae_codec.exact.conv import LIMIT, ExactConv, partial_sum_bound

INPUT_LEVELS = 2047  # activations are rounded to at most this many steps above and below zero
WEIGHT_LEVELS = 2**15 - 1
BYTE_LEVELS = 127
ENOUGH_LEVELS = 60  # the largest weight of an output channel should span this many steps, or the sums are split
MOST_PARTS = 4
Grid = tuple[int, int, int]  # exponent, lowest and highest integer of what a convolution takes in


def byte_grid(x: Tensor, low: float, high: float) -> Grid:
    """The 256 steps that round x (N,), samples of values from ``low`` to ``high``, with the least square error."""

    def grid(exponent: int) -> Grid:
        lowest = max(round(low * 2.0**exponent), -255)
        return exponent, lowest, lowest + 255

    return best(grid, math.log2(255 / max(high - low, 1e-6)), x)


def signed_grid(x: Tensor, low: float, high: float) -> Grid:
    """At most ``INPUT_LEVELS`` steps on each side of zero, likewise."""

    def grid(exponent: int) -> Grid:
        lowest, highest = math.floor(low * 2.0**exponent), math.ceil(high * 2.0**exponent)
        return exponent, max(lowest, -INPUT_LEVELS), min(highest, INPUT_LEVELS)

    return best(grid, math.log2(INPUT_LEVELS / max(high, -low, 1e-6)), x)


def best(grid: Callable[[int], Grid], widest: float, x: Tensor) -> Grid:
    """The grid with the least square error on x (N,) among the widest, which clips nothing, and five finer ones."""

    def error(exponent: int) -> float:
        _, lowest, highest = grid(exponent)
        return float(((x * 2.0**exponent).round().clamp(lowest, highest) * 2.0**-exponent - x).square().mean())

    return grid(min(range(math.floor(widest), math.floor(widest) + 6), key=error))


def quantise_conv(exact: ExactConv, weight: Tensor, bias: Tensor, grid: Grid, levels: int = WEIGHT_LEVELS) -> None:
    """Fills ``exact`` with integers for weight (cout, cin, k, k) and bias (cout,): the fewest parts that leave every
    weight grid fine enough.

    ``grid`` is that of its inputs; weights have at most ``levels`` steps on each side of zero.
    """
    exponent, low, high = grid
    weight, bias = weight.double(), bias.double()
    peak = weight.abs().amax((1, 2, 3)).clamp(min=1e-9)
    for parts in (p for p in range(1, MOST_PARTS + 1) if weight.shape[1] % p == 0):
        # Bound of the sums and size of the weights, per output channel; half a step may be added to each by rounding.
        bound = partial_sum_bound(weight, bias * 2.0**exponent, low, high, parts)
        rounding = partial_sum_bound(torch.full_like(weight, 0.5), torch.ones_like(bias), low, high, parts)
        room = torch.minimum((LIMIT - rounding) / bound.clamp(min=1e-9), (levels - 1) / peak)
        fineness = torch.log2(room).floor().clamp(max=30 - exponent)
        if bool((peak * 2.0**fineness >= ENOUGH_LEVELS).logical_or(peak < 1e-6).all()):
            break
    exact.weight_exponent.copy_(fineness.to(torch.int32))
    exact.weight.copy_((weight * 2.0 ** fineness[:, None, None, None]).round().to(torch.int16))
    exact.bias.copy_((bias * 2.0 ** (fineness + exponent)).round().to(torch.int32))
    exact.grid.copy_(torch.tensor([exponent, low, high, parts], dtype=torch.int32))

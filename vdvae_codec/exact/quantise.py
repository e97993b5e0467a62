"""The integers of one convolution: grids of its inputs, found on data, and weights as fine as the bound allows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vdvae_codec.exact.conv import LIMIT, ExactConv, partial_sum_bound

INPUT_LEVELS = 4095  # activations are rounded to at most this many steps above and below zero,
STEPS_PER_RMS = 128  # or to twice as many where they reach so far that steps would be coarser than this
WEIGHT_LEVELS = 2**15 - 1
BYTE_LEVELS = 127
FINEST = 14  # steps of inputs are no finer than 2^-14, so that a bias in their units leaves room for weights
ENOUGH_LEVELS = 250  # the largest weight of an output channel should span this many steps, or the sums are split
MOST_PARTS = 4
Grid = tuple[int, int, int]  # exponent, lowest and highest integer of what a convolution takes in


def input_grid(low: float, high: float, rms: float) -> Grid:
    """The finest grid with at most ``INPUT_LEVELS`` steps on each side of zero that clips no value from low to high;
    finer by one bit for values whose root mean square is small beside their range.

    Outliers are kept: clipping a few costs more than coarser steps for all others (docs/research-log.md).
    """
    exponent = math.floor(math.log2(INPUT_LEVELS / max(high, -low, 1e-6)))
    exponent = min(FINEST, exponent + (rms * 2.0**exponent < STEPS_PER_RMS))
    return exponent, math.floor(low * 2.0**exponent), math.ceil(high * 2.0**exponent)


def quantise_conv(exact: ExactConv, weight: Tensor, bias: Tensor, grid: Grid, levels: int = WEIGHT_LEVELS) -> None:
    """Fills ``exact`` with integers for weight (cout, cin, k, k) and bias (cout,): the fewest parts that leave every
    weight grid fine enough.

    ``grid`` is that of its inputs; weights have at most ``levels`` steps on each side of zero.
    """
    exponent, low, high = grid
    enough = min(ENOUGH_LEVELS, levels // 2)
    weight, bias = weight.double(), bias.double()
    peak = weight.abs().amax((1, 2, 3)).clamp(min=1e-9)
    for parts in (p for p in range(1, MOST_PARTS + 1) if weight.shape[1] % p == 0):
        # Bound of the sums and size of the weights, per output channel; half a step may be added to each by rounding.
        bound = partial_sum_bound(weight, bias * 2.0**exponent, low, high, parts)
        rounding = partial_sum_bound(torch.full_like(weight, 0.5), torch.ones_like(bias), low, high, parts)
        room = torch.minimum((LIMIT - rounding) / bound.clamp(min=1e-9), (levels - 1) / peak)
        fineness = torch.log2(room).floor().clamp(max=30 - exponent)
        if bool((peak * 2.0**fineness >= enough).logical_or(peak < 1e-6).all()):
            break
    exact.weight_exponent.copy_(fineness.to(torch.int32))
    exact.weight.copy_((weight * 2.0 ** fineness[:, None, None, None]).round().to(torch.int16))
    exact.bias.copy_((bias * 2.0 ** (fineness + exponent)).round().to(torch.int32))
    exact.grid.copy_(torch.tensor([exponent, low, high, parts], dtype=torch.int32))

"""Activations that give the same bits on every machine.

Hard swish is a few IEEE operations; gelu and tanh are tables of integers, whose entries every machine computes alike,
in decimal arithmetic.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from decimal import Decimal, localcontext

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

HARDSWISH, GELU = "hardswish", "gelu"

DIGITS = 30
GELU_STEPS, GELU_REACH, GELU_ONE = 2**11, 8, 2**18
TANH_STEPS, TANH_REACH, TANH_ONE = 2**9, 6, 2**12


def hard_swish(x: Tensor) -> Tensor:
    """x * clamp(x + 3, 0, 6) / 6, each a single IEEE operation; by torch's fused kernel where that is the same."""
    return F.hardswish(x) if fused_is_exact(x.device) else unfused_hard_swish(x)


def unfused_hard_swish(x: Tensor) -> Tensor:
    return (x + 3).clamp_(0, 6).mul_(x).div_(six(x.device))


@functools.cache
def six(device: torch.device) -> Tensor:
    """6 as a tensor, by which CUDA divides too; by a number it multiplies, with the inverse."""
    return torch.tensor(6.0, device=device)


@functools.cache
def fused_is_exact(device: torch.device) -> bool:
    """Whether torch's kernel gives the bits of a CPU's single operations: CPUs' divides, CUDA's multiplies by 1/6."""
    return same_as_on_cpus(F.hardswish, device)


def activations_are_exact(device: torch.device) -> bool:
    """Whether ``hard_swish`` gives the bits on a device that it gives on CPUs."""
    return same_as_on_cpus(hard_swish, device)


def same_as_on_cpus(activation: Callable[[Tensor], Tensor], device: torch.device) -> bool:
    x = torch.linspace(-10, 10, 100_003)
    return torch.equal(activation(x.to(device)).cpu(), unfused_hard_swish(x))


def gelu(x: Tensor) -> Tensor:
    """x Phi(x) to about 2^-12: of x rounded to multiples of 2^-11, and in multiples of 2^-18; x itself above 8."""
    reach = GELU_STEPS * GELU_REACH
    index = (x * GELU_STEPS).round().clamp_(-reach, reach).to(torch.int32) + reach
    y = gelu_table(x.device).index_select(0, index.flatten()).view_as(index)
    return torch.where(x > GELU_REACH, x, y)


@functools.cache
def gelu_table(device: torch.device) -> Tensor:
    """float32 (2 * 2^14 + 1,)."""
    with localcontext() as context:
        context.prec = DIGITS
        step = Decimal(1) / GELU_STEPS
        density = [(-(n * step / 2) ** 2 / 2).exp() for n in range(2 * GELU_STEPS * GELU_REACH + 1)]
        scale = step / 6 / (2 * Decimal("3.14159265358979323846264338328")).sqrt()
        cdf, upper = Decimal("0.5"), [Decimal(0)]  # x Phi(x) for x >= 0, Phi by Simpson's rule
        for n in range(1, GELU_STEPS * GELU_REACH + 1):
            cdf += scale * (density[2 * n - 2] + 4 * density[2 * n - 1] + density[2 * n])
            upper.append(n * step * cdf)
        lower = [y - n * step for n, y in enumerate(upper)][:0:-1]  # x Phi(x) = -x (1 - Phi(-x)) below
        return torch.tensor([float(round(y * GELU_ONE)) / GELU_ONE for y in lower + upper], device=device)


class ExactTanh(nn.Module):
    """tanh(x) in multiples of 2^-12, of x rounded to multiples of 2^-9."""

    def forward(self, x: Tensor) -> Tensor:
        reach = TANH_STEPS * TANH_REACH
        index = (x * TANH_STEPS).round().clamp_(-reach, reach).to(torch.int32) + reach
        return tanh_table(x.device).index_select(0, index.flatten()).view_as(x)


@functools.cache
def tanh_table(device: torch.device) -> Tensor:
    """float32 (2 * 3072 + 1,)."""
    reach = TANH_STEPS * TANH_REACH
    with localcontext() as context:
        context.prec = DIGITS
        squares = [(2 * Decimal(n) / TANH_STEPS).exp() for n in range(-reach, reach + 1)]
        return torch.tensor([float(round((s - 1) / (s + 1) * TANH_ONE)) / TANH_ONE for s in squares], device=device)


EXACT: dict[str, Callable[[Tensor], Tensor]] = {"": lambda x: x, HARDSWISH: hard_swish, GELU: gelu}

"""Building blocks of the networks: convolution, activation, residual bottleneck, resampling.

Everything that a coding path needs to be exact is confined to ``Conv`` and ``Tanh``, whose exact twins are in
``vdvae_codec.exact``.
The rest is element-wise IEEE arithmetic in a fixed order, or copying: the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vdvae_codec.config import StageConfig

HARDSWISH, GELU = "hardswish", "gelu"
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"": lambda x: x, HARDSWISH: F.hardswish, GELU: F.gelu}


class Conv(nn.Conv2d):
    """Convolution that keeps height and width: odd kernel, zero padding, optionally of an activation of its input.

    hard swish(x) = x * clamp(x + 3, 0, 6) / 6: the shape of gelu, without transcendentals.
    """

    def __init__(self, cin: int, cout: int, kernel: int, *, act: str = "", gain: float = 1.0, bias: bool = True):
        super().__init__(cin, cout, kernel, padding=kernel // 2, bias=bias)
        self.act = act
        with torch.no_grad():
            self.weight.mul_(gain)
            if self.bias is not None:
                self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(ACTIVATIONS[self.act](x))


class Tanh(nn.Module):
    """Hyperbolic tangent, which has an exact twin."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


class Bottleneck(nn.Module):
    """act-1x1, act-3x3, act-3x3, act-1x1 (VDVAE, arXiv 2011.10650, figure 3): (B, cin, h, w) -> (B, cout, h, w)."""

    def __init__(self, cin: int, middle: int, cout: int, gain: float = 1.0, *, act: str = HARDSWISH, kernel: int = 3):
        super().__init__()
        self.c1 = Conv(cin, middle, 1, act=act)
        self.c2 = Conv(middle, middle, kernel, act=act)
        self.c3 = Conv(middle, middle, kernel, act=act)
        self.c4 = Conv(middle, cout, 1, act=act, gain=gain)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c4(self.c3(self.c2(self.c1(x))))
        return y


class Block(Bottleneck):
    """Residual bottleneck; ``gain`` is 1/sqrt(number of blocks), the paper's stabiliser."""

    def __init__(self, width: int, middle: int, gain: float, *, act: str = HARDSWISH, kernel: int = 3):
        super().__init__(width, middle, width, gain, act=act, kernel=kernel)

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Pair(nn.Module):
    """Residual act-3x3, act-3x3: (B, width, h, w) to the same shape."""

    def __init__(self, width: int, middle: int, gain: float):
        super().__init__()
        self.c1 = Conv(width, middle, 3, act=HARDSWISH)
        self.c2 = Conv(middle, width, 3, act=HARDSWISH, gain=gain)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.c2(self.c1(x))
        return y


def residual(stage: StageConfig, gain: float, *, act: str = HARDSWISH, kernel: int = 3) -> nn.Module:
    """A residual block of a stage."""
    if stage.pairs:
        return Pair(stage.width, stage.bottleneck, gain)
    return Block(stage.width, stage.bottleneck, gain, act=act, kernel=kernel)


def pool(x: Tensor, factor: int) -> Tensor:
    """Average pooling by a power of two, in a fixed order of additions: (B, C, h, w) -> (B, C, h/f, w/f)."""
    while factor > 1:
        x = (x[:, :, ::2, ::2] + x[:, :, 1::2, 1::2]) + (x[:, :, ::2, 1::2] + x[:, :, 1::2, ::2])
        x, factor = x * 0.25, factor // 2
    return x


def upsample(x: Tensor, factor: int) -> Tensor:
    """Nearest-neighbour upsampling: (B, C, h, w) -> (B, C, f h, f w)."""
    return x if factor == 1 else F.interpolate(x, scale_factor=factor, mode="nearest")

"""Building blocks of the networks: convolution, activation, residual bottleneck, resampling.

Everything that a coding path needs to be exact is confined to ``Conv`` and ``Tanh``, which know their exact twins
(``vdvae_codec.exact``). The rest is element-wise IEEE arithmetic in a fixed order, or copying: the same on every
machine.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vdvae_codec.exact.activations import GELU, HARDSWISH, ExactTanh
from vdvae_codec.exact.conv import ExactConv
from vdvae_codec.exact.quantise import Grid

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"": lambda x: x, HARDSWISH: F.hardswish, GELU: F.gelu}


class Takes(Enum):
    """On which grid an exact convolution takes its inputs in; both are found on data when a model is exported."""

    STEPS = "11 bits and a sign: features, which have outliers"
    BYTES = "a byte, and weights are bytes too: within blocks, where speed is decided"


class Gives(Enum):
    """What a convolution's outputs are, which decides how its weights are trained."""

    FEATURES = "inputs of other layers: Muon"
    PARAMETERS = "locations, scales and weights of distributions, to which other numbers apply: AdamW"


class Conv(nn.Conv2d):
    """Convolution that keeps height and width: odd kernel, zero padding, optionally of an activation of its input.

    hard swish(x) = x * clamp(x + 3, 0, 6) / 6: the shape of gelu, without transcendentals. ``takes`` is a grid where it
    is known beforehand.
    """

    def __init__(self, cin: int, cout: int, kernel: int, *, act: str = "", gain: float = 1.0, bias: bool = True,
                 takes: Takes | Grid = Takes.STEPS, gives: Gives = Gives.FEATURES):
        super().__init__(cin, cout, kernel, padding=kernel // 2, bias=bias)
        self.act, self.takes, self.gives = act, takes, gives
        with torch.no_grad():
            self.weight.mul_(gain)
            if self.bias is not None:
                self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(ACTIVATIONS[self.act](x))

    def twin(self) -> ExactConv:
        """An empty exact convolution of the same shape."""
        return ExactConv(self.in_channels, self.out_channels, self.kernel_size[0], self.act)


class Tanh(nn.Module):
    """Hyperbolic tangent."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def twin(self) -> ExactTanh:
        """Its table."""
        return ExactTanh()


class Bottleneck(nn.Module):
    """act-1x1, act-3x3, act-3x3, act-1x1 (VDVAE, arXiv 2011.10650, figure 3): (B, cin, h, w) -> (B, cout, h, w)."""

    def __init__(self, cin: int, middle: int, cout: int, gain: float = 1.0, *, act: str = HARDSWISH, kernel: int = 3,
                 gives: Gives = Gives.FEATURES):
        super().__init__()
        self.c1 = Conv(cin, middle, 1, act=act)
        self.c2 = Conv(middle, middle, kernel, act=act, takes=Takes.BYTES)
        self.c3 = Conv(middle, middle, kernel, act=act, takes=Takes.BYTES)
        self.c4 = Conv(middle, cout, 1, act=act, gain=gain, gives=gives)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c4(self.c3(self.c2(self.c1(x))))
        return y


class Block(Bottleneck):
    """Residual bottleneck; ``gain`` is 1/sqrt(number of blocks), the paper's stabiliser."""

    def __init__(self, width: int, middle: int, gain: float, *, act: str = HARDSWISH, kernel: int = 3):
        super().__init__(width, middle, width, gain, act=act, kernel=kernel)

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def full(x: Tensor) -> Tensor:
    """At least single precision."""
    return x if x.dtype == torch.float64 else x.float()


def pool(x: Tensor, factor: int) -> Tensor:
    """Average pooling by a power of two, in a fixed order of additions: (B, C, h, w) -> (B, C, h/f, w/f)."""
    while factor > 1:
        x = (x[:, :, ::2, ::2] + x[:, :, 1::2, 1::2]) + (x[:, :, ::2, 1::2] + x[:, :, 1::2, ::2])
        x, factor = x * 0.25, factor // 2
    return x


def upsample(x: Tensor, factor: int) -> Tensor:
    """Nearest-neighbour upsampling: (B, C, h, w) -> (B, C, f h, f w)."""
    return x if factor == 1 else F.interpolate(x, scale_factor=factor, mode="nearest")

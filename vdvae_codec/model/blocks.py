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
from vdvae_codec.exact.conv import TAPS, ExactCausal, ExactConv, causal_mask
from vdvae_codec.exact.quantise import Grid

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"": lambda x: x, HARDSWISH: F.hardswish, GELU: F.gelu}


CLIPPED: Grid = (5, 0, 255)  # of features that are clipped to 0..8 in training too, so that bytes hold them
FINE: Grid = (7, -2047, 2047)  # of features that are clipped to -16..16


class Gives(Enum):
    """What a convolution's outputs are, which decides how its weights are trained."""

    FEATURES = "inputs of other layers: Muon"
    PARAMETERS = "locations, scales and weights of distributions, to which other numbers apply: AdamW"


class Conv(nn.Conv2d):
    """Convolution that keeps height and width: odd kernel, zero padding, optionally of an activation of its input.

    hard swish(x) = x * clamp(x + 3, 0, 6) / 6: the shape of gelu, without transcendentals. ``takes`` is the grid of its
    inputs where that is known beforehand: then they are clipped to its range, in training too. Else it is found on data
    when a model is exported.
    """

    def __init__(self, cin: int, cout: int, kernel: int, *, act: str = "", gain: float = 1.0, bias: bool = True,
                 takes: Grid | None = None, gives: Gives = Gives.FEATURES):
        super().__init__(cin, cout, kernel, padding=kernel // 2, bias=bias)
        self.act, self.takes, self.gives = act, takes, gives
        with torch.no_grad():
            self.weight.mul_(gain)
            if self.bias is not None:
                self.bias.zero_()

    @property
    def of_bytes(self) -> bool:
        """Whether the exact twin's weights are bytes."""
        return self.takes == CLIPPED

    def take(self, x: Tensor) -> Tensor:
        """What is multiplied: x after the activation, within the declared grid."""
        x = ACTIVATIONS[self.act](x)
        if self.takes is None:
            return x
        exponent, low, high = self.takes
        return x.clamp(low * 2.0**-exponent, high * 2.0**-exponent)

    def weights(self) -> Tensor:
        """What inputs are multiplied with."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self._conv_forward(self.take(x), self.weights(), self.bias)
        return y

    @property
    def kept(self) -> torch.dtype:
        """Of rows that are multiplied."""
        return self.weight.dtype

    def take_rows(self, x: Tensor) -> Tensor:
        """``take`` of rows (N, cin), as ``rows`` multiplies them."""
        return self.take(x)

    def rows(self, a: Tensor) -> Tensor:
        """What ``take_rows`` gives (N, cin) -> (N, cout): a 1x1 convolution at N positions."""
        return F.linear(a, self.matrix(self.weights()), self.bias)

    def rows_for(self, a: Tensor, following: Conv) -> Tensor:
        """What ``following`` takes of ``rows(a)``."""
        return following.take_rows(self.rows(a))

    def add_rows(self, a: Tensor, x: Tensor) -> Tensor:
        """x (N, cout) + ``rows(a)``."""
        return x + self.rows(a)

    def matrix(self, weight: Tensor) -> Tensor:
        """Weights as (cout, cin) of a 1x1 convolution."""
        return weight[:, :, 0, 0]

    def twin(self) -> ExactConv:
        """An empty exact convolution of the same shape."""
        return ExactConv(self.in_channels, self.out_channels, self.kernel_size[0], self.act)


class CausalConv(Conv):
    """Convolution over the own row up to the position itself, and the row above, one further to the right.

    The kernel is (2, 3), its last weight zero. All that position (y, x) sees has a smaller x + 2 y, or is the position:
    ``TAPS`` says where each of the five weights lies.
    """

    mask: Tensor

    def __init__(self, cin: int, cout: int, *, takes: Grid, gain: float = 1.0):
        super().__init__(cin, cout, 1, takes=takes)
        self.weight = nn.Parameter(torch.randn(cout, cin, 2, 3) * (gain / (len(TAPS) * cin) ** 0.5))
        self.register_buffer("mask", causal_mask(), persistent=False)

    def weights(self) -> Tensor:
        return super().weights() * self.mask

    def matrix(self, weight: Tensor) -> Tensor:
        """(cout, 5 cin), for rows of what ``TAPS`` see, tap after tap."""
        return torch.cat([weight[:, :, 1 + dy, 1 + dx] for dy, dx in TAPS], 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(self.take(x), (1, 1, 1, 0)), self.weights(), self.bias)

    def twin(self) -> ExactCausal:
        return ExactCausal(self.in_channels, self.out_channels, self.act)


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
        self.c2 = Conv(middle, middle, kernel, act=act)
        self.c3 = Conv(middle, middle, kernel, act=act)
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


class CausalBlock(nn.Module):
    """Residual: a causal convolution to ``middle`` channels and back, both of bytes: (B, width, h, w), kept."""

    def __init__(self, width: int, middle: int, gain: float):
        super().__init__()
        self.c1 = CausalConv(width, middle, takes=CLIPPED)
        self.c2 = Conv(middle, width, 1, takes=CLIPPED, gain=gain)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c2(self.c1(x))
        return x + y

    def rows(self, x: Tensor, neighbours: Callable[[Tensor], Tensor]) -> Tensor:
        """Likewise at N positions, x (N, width); ``neighbours`` keeps what ``c1`` takes in and gives what it sees."""
        return self.c2.add_rows(self.c1.rows_for(neighbours(self.c1.take_rows(x)), self.c2), x)


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


def cells(side: int, stride: int) -> int:
    """Grid steps that cover a side."""
    return -(-side // stride)

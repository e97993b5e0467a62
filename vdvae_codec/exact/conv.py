"""A convolution whose result is the same on every machine.

Its inputs are rounded to integers and its weights are integers, both carried in float32 together with powers of two,
which change no mantissa. If no partial sum, in whatever order, can reach 2^24, every one of them is representable, no
addition rounds, and each correct convolution gives the same bits. Everything else on the coding path is element-wise:
single IEEE operations, which are the same everywhere. No sum of products is left to a compiler that might fuse it.

Where inputs and weights are bytes, and the CPU multiplies bytes without saturating (VNNI), they are multiplied as
bytes: the same integers, about three times as fast.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vdvae_codec.errors import ExactnessError
from vdvae_codec.exact.activations import EXACT

LIMIT = 2**24


class ExactConv(nn.Module):
    """A convolution that keeps height and width: x (B, cin, h, w) float32 -> (B, cout, h, w) float32, exact reals.

    The state is integers only:
    weight   int16 (cout, cin, k, k), in units of 2^-weight_exponent
    weight_exponent  int32 (cout,)
    bias     int32 (cout,), in units of 2^-(weight_exponent + input_exponent)
    grid     int32 (4,): input_exponent, lowest and highest input integer, and the number of parts into which the input
             channels are split so that each part keeps its sums below 2^24
    """

    weight: Tensor
    weight_exponent: Tensor
    bias: Tensor
    grid: Tensor

    def __init__(self, cin: int, cout: int, kernel: int, act: str):
        super().__init__()
        self.act, self.padding = act, kernel // 2
        self.register_buffer("weight", torch.zeros((cout, cin, kernel, kernel), dtype=torch.int16))
        self.register_buffer("weight_exponent", torch.zeros(cout, dtype=torch.int32))
        self.register_buffer("bias", torch.zeros(cout, dtype=torch.int32))
        self.register_buffer("grid", torch.tensor([0, -1, 1, 1], dtype=torch.int32))
        self._ready = False
        self._bytes: ByteConv | None = None

    def prepare(self, name: str) -> None:
        """Proves the bound of every output channel and lays out the float weights; raises ExactnessError."""
        self.input_exponent, self.low, self.high, self.parts = (int(v) for v in self.grid.tolist())
        if self.weight.shape[1] % self.parts:
            raise ExactnessError(f"{name}: {self.weight.shape[1]} channels cannot be split into {self.parts} parts")
        worst = float(partial_sum_bound(self.weight, self.bias, self.low, self.high, self.parts).max())
        if worst >= LIMIT:
            raise ExactnessError(f"{name}: a partial sum could reach {worst:.0f}, beyond 2^24")
        exponent = (self.weight_exponent + self.input_exponent).numpy()
        unit = torch.from_numpy(np.ldexp(np.float32(1), -exponent))  # (cout,)
        weight = self.weight.float() * unit[:, None, None, None]
        self._weights = [w.contiguous(memory_format=torch.channels_last) for w in weight.chunk(self.parts, 1)]
        self._bias = self.bias.float() * unit
        use_bytes = self.of_bytes and bytes_are_exact()
        self._bytes = ByteConv(self.weight, unit, self._bias, -self.low) if use_bytes else None
        self._ready = True

    @property
    def of_bytes(self) -> bool:
        """Whether weights are bytes, and inputs from the lowest on, whose sums stay below 2^24 too."""
        span = self.high - self.low
        if self.low > 0 or span > 255 or self.parts > 1 or self.weight.min() < -128 or self.weight.max() > 127:
            return False
        return float(partial_sum_bound(self.weight, self.bias, 0, span, 1).max()) < LIMIT

    def float_weights(self) -> tuple[Tensor, Tensor]:
        """Weight (cout, cin, k, k) and bias (cout,) as float32: those of the float convolution, rounded."""
        unit = torch.ldexp(torch.ones(len(self.bias)), -self.weight_exponent)
        bias_unit = torch.ldexp(unit, -self.grid[0])
        return self.weight.float() * unit[:, None, None, None], self.bias.float() * bias_unit

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._ready:
            self._weights = [fn(w) for w in self._weights]
            self._bias = fn(self._bias)
        return self

    def forward(self, x: Tensor) -> Tensor:
        scale = 2.0**self.input_exponent
        a = EXACT[self.act](x).mul_(scale) if self.act else x * scale
        a = a.round_().clamp_(self.low, self.high)  # integers; the weights carry their power of two
        if self._bytes and a.device.type == "cpu":
            return self._bytes(a)
        if self.parts == 1:
            return F.conv2d(a, self._weights[0], self._bias, padding=self.padding)
        first, *others = a.chunk(self.parts, 1)
        y = F.conv2d(first, self._weights[0], self._bias, padding=self.padding)
        for part, weight in zip(others, self._weights[1:]):
            y += F.conv2d(part, weight, padding=self.padding)
        return y


class ByteConv:
    """An ``ExactConv`` by oneDNN's kernel for bytes: a (B, cin, h, w) float32 integers -> (B, cout, h, w) float32.

    Inputs are unsigned: the lowest becomes 0, and what was 0 the zero point. weight: (cout, cin, k, k) integers in
    units of ``unit`` (cout,) float32; bias: float32 (cout,).
    """

    def __init__(self, weight: Tensor, unit: Tensor, bias: Tensor, zero: int):
        cout, _, k, _ = weight.shape
        self.unit, self.bias, self.zero, self.offsets = unit, bias, zero, torch.zeros(cout, dtype=torch.int64)
        self.geometry = [1, 1], [k // 2, k // 2], [1, 1], 1  # stride, padding, dilation, groups
        self.weight = torch.ops.onednn.qconv_prepack(weight.to(torch.int8), unit, 1.0, zero, *self.geometry)

    def __call__(self, a: Tensor) -> Tensor:
        x = a.add_(self.zero).to(torch.uint8).contiguous(memory_format=torch.channels_last)
        y: Tensor = torch.ops.onednn.qconv2d_pointwise(
            x, 1.0, self.zero, self.weight, self.unit, self.offsets, self.bias, *self.geometry,
            1.0, 0, torch.float32, "none", [], "",
        )
        return y

    def __deepcopy__(self, memo: object) -> ByteConv:
        return self  # it never changes, and torch cannot copy packed weights


@functools.cache
def bytes_are_exact() -> bool:
    """Whether torch has the kernel for bytes and it is right, tried on large sums: older instructions saturate."""
    signs = torch.arange(16)[:, None] >> torch.arange(4) & 1  # (16, 4): each output's, of every fourth input
    weight = torch.where(signs > 0, 127, -128).repeat(1, 16)[:, :, None, None].expand(-1, -1, 3, 3)  # (16, 64, 3, 3)
    bias = torch.arange(16.0)
    a = torch.where(torch.arange(64 * 9 * 9).view(1, 64, 9, 9) % 7 < 5, 243.0, -12.0)
    try:
        y = ByteConv(weight, torch.ones(16), bias, 12)(a.clone())
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.equal(y, F.conv2d(a, weight.float(), bias, padding=1))


def partial_sum_bound(weight: Tensor, bias: Tensor, low: int, high: int, parts: int) -> Tensor:
    """The largest magnitude (cout,) float64 that the sum of any of a part's products, and the bias, can take."""
    up, down = max(high, 0), max(-low, 0)
    worst = torch.zeros(len(weight), dtype=torch.float64)
    for w in weight.double().chunk(parts, 1):
        positive, negative = w.clamp(min=0).sum((1, 2, 3)), (-w).clamp(min=0).sum((1, 2, 3))
        worst = torch.maximum(worst, torch.maximum(positive * up + negative * down, negative * up + positive * down))
    return worst + bias.double().abs()

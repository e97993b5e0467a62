"""A convolution whose result is the same on every machine.

Its inputs are rounded to integers and its weights are integers, both carried in float32 together with powers of two,
which change no mantissa. If no partial sum, in whatever order, can reach 2^24, every one of them is representable, no
addition rounds, and each correct convolution gives the same bits. Everything else on the coding path is element-wise:
single IEEE operations, which are the same everywhere. No sum of products is left to a compiler that might fuse it.

Where rows of inputs and weights are bytes, and the CPU multiplies bytes without saturating (VNNI), they are multiplied
as bytes: the same integers, about three times as fast.
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
TAPS = ((0, 0), (-1, 1), (0, -1), (-1, 0), (-1, -1))  # (dy, dx) of what a causal convolution sees


def causal_mask() -> Tensor:
    """(2, 3): 1 at the weights of ``TAPS`` in a kernel over the row above and the own row."""
    mask = torch.zeros(2, 3)
    for dy, dx in TAPS:
        mask[1 + dy, 1 + dx] = 1
    return mask


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
        self._byte_rows: ByteRows | None = None

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
        self._matrices = [self.matrix(w).t().contiguous() for w in self._weights]  # each (cin of a part, cout)
        use_bytes = self.of_bytes and bytes_are_exact()
        self._byte_rows = ByteRows(self.matrix(self.weight), unit, self._bias) if use_bytes else None
        self._ready = True

    def matrix(self, weight: Tensor) -> Tensor:
        """Weights as (cout, cin) of a 1x1 convolution, for ``rows``."""
        return weight[:, :, 0, 0]

    @property
    def of_bytes(self) -> bool:
        """Whether inputs and weights are bytes."""
        inputs = self.low == 0 and self.high <= 255 and self.parts == 1
        return inputs and int(self.weight.min()) >= -128 and int(self.weight.max()) <= 127

    def float_weights(self) -> tuple[Tensor, Tensor]:
        """Weight (cout, cin, k, k) and bias (cout,) as float32: those of the float convolution, rounded."""
        unit = torch.ldexp(torch.ones(len(self.bias)), -self.weight_exponent)
        bias_unit = torch.ldexp(unit, -self.grid[0])
        return self.weight.float() * unit[:, None, None, None], self.bias.float() * bias_unit

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._ready:
            self._weights, self._matrices = ([fn(w) for w in own] for own in (self._weights, self._matrices))
            self._bias = fn(self._bias)
        return self

    def take(self, x: Tensor) -> Tensor:
        """What is multiplied: x after the activation, as integers; the weights carry their power of two."""
        scale = 2.0**self.input_exponent
        a = EXACT[self.act](x).mul_(scale) if self.act else x * scale
        return a.round_().clamp_(self.low, self.high)

    @property
    def kept(self) -> torch.dtype:
        """Of rows that are multiplied: uint8 where they are bytes from 0 on, and the kernel for them is there."""
        return torch.uint8 if self._byte_rows and self._bias.device.type == "cpu" else torch.float32

    def take_rows(self, x: Tensor) -> Tensor:
        """``take`` of rows (N, cin), of the type ``kept``."""
        a = self.take(x)
        return a.to(torch.int16).to(torch.uint8) if self.kept == torch.uint8 else a  # float to byte alone is slow

    def rows(self, a: Tensor) -> Tensor:
        """What ``take_rows`` gives (N, cin) -> (N, cout) float32: a 1x1 convolution at N positions."""
        if a.dtype == torch.uint8:
            assert self._byte_rows is not None
            return self._byte_rows(a)
        first, *others = self._matrices
        if not others:
            return torch.addmm(self._bias, a, first)
        own, *rest = a.chunk(self.parts, 1)
        y = torch.addmm(self._bias, own, first)
        for part, matrix in zip(rest, others):
            y += part @ matrix
        return y

    def rows_for(self, a: Tensor, following: ExactConv) -> Tensor:
        """What ``following`` takes of ``rows(a)``, of the type that it keeps."""
        if a.dtype == following.kept == torch.uint8 and not following.act:
            assert self._byte_rows is not None
            return self._byte_rows.clipped(a, following.input_exponent)
        return following.take_rows(self.rows(a))

    def add_rows(self, a: Tensor, x: Tensor) -> Tensor:
        """x (N, cout) + ``rows(a)``, which may be written into x."""
        if a.dtype == torch.uint8:
            assert self._byte_rows is not None
            return self._byte_rows.added(a, x)
        return x + self.rows(a)

    def forward(self, x: Tensor) -> Tensor:
        a = self.take(x)
        if self.parts == 1:
            return F.conv2d(a, self._weights[0], self._bias, padding=self.padding)
        first, *others = a.chunk(self.parts, 1)
        y = F.conv2d(first, self._weights[0], self._bias, padding=self.padding)
        for part, weight in zip(others, self._weights[1:]):
            y += F.conv2d(part, weight, padding=self.padding)
        return y


class ExactCausal(ExactConv):
    """Likewise a convolution over the row above and the own row, whose kernel (2, 3) has weights at ``TAPS``."""

    def __init__(self, cin: int, cout: int, act: str):
        super().__init__(cin, cout, 1, act)
        self.weight = torch.zeros((cout, cin, 2, 3), dtype=torch.int16)

    def prepare(self, name: str) -> None:
        super().prepare(name)
        if self.parts > 1 or self.low > 0:
            raise ExactnessError(f"{name}: a causal convolution's sums are not split, and zero is on its grid")

    def matrix(self, weight: Tensor) -> Tensor:
        """(cout, 5 cin), for rows of what ``TAPS`` see, tap after tap."""
        return torch.cat([weight[:, :, 1 + dy, 1 + dx] for dy, dx in TAPS], 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(self.take(x), (1, 1, 1, 0)), self._weights[0], self._bias)


class ByteRows:
    """``ExactConv.rows`` by oneDNN's kernels for bytes: a (N, cin) uint8 -> (N, cout) float32.

    weight: (cout, cin) integers in units of ``unit`` (cout,) float32; bias: float32 (cout,).
    """

    def __init__(self, weight: Tensor, unit: Tensor, bias: Tensor):
        packed = torch.ops.onednn.qlinear_prepack(weight.to(torch.int8).contiguous(), None)
        self.operands = packed, unit, torch.zeros(len(weight), dtype=torch.int64)
        self.bias = bias

    def __call__(self, a: Tensor) -> Tensor:
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            a, 1.0, 0, *self.operands, self.bias, 1.0, 0, torch.float32, "none", [], ""
        )
        return y

    def clipped(self, a: Tensor, exponent: int) -> Tensor:
        """The same in units of 2^-exponent, rounded and clipped to a byte: (N, cout) uint8."""
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            a, 1.0, 0, *self.operands, self.bias, 2.0**-exponent, 0, torch.uint8, "none", [], ""
        )
        return y

    def added(self, a: Tensor, x: Tensor) -> Tensor:
        """The same added to x (N, cout) float32, in place."""
        y: Tensor = torch.ops.onednn.qlinear_pointwise.binary(
            a, 1.0, 0, *self.operands, x, self.bias, 1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], ""
        )
        return y

    def __deepcopy__(self, memo: object) -> ByteRows:
        return self


@functools.cache
def bytes_are_exact() -> bool:
    """Whether torch has the kernels for bytes and they are right, tried on large sums: older instructions saturate."""
    signs = torch.arange(16)[:, None] >> torch.arange(4) & 1  # (16, 4): each output's, of every fourth input
    weight, bias = torch.where(signs > 0, 127, -128).repeat(1, 16), torch.arange(16.0)  # (16, 64)
    a = torch.where(torch.arange(81 * 64).view(81, 64) % 7 < 5, 255, 0)
    unit, started = torch.ldexp(torch.ones(16), -torch.arange(8, 24)), torch.linspace(-3, 3, 81 * 16).view(81, 16)
    try:
        linear, x = ByteRows(weight, unit, bias * unit), a.to(torch.uint8)
        y = F.linear(a.float(), weight.float(), bias) * unit
        same = torch.equal(linear(x), y) and torch.equal(linear.added(x, started.clone()), started + y)
        return same and torch.equal(linear.clipped(x, 5), (y * 32).round().clamp(0, 255).to(torch.uint8))
    except (AttributeError, RuntimeError, TypeError):
        return False


def partial_sum_bound(weight: Tensor, bias: Tensor, low: int, high: int, parts: int) -> Tensor:
    """The largest magnitude (cout,) float64 that the sum of any of a part's products, and the bias, can take."""
    up, down = max(high, 0), max(-low, 0)
    worst = torch.zeros(len(weight), dtype=torch.float64)
    for w in weight.double().chunk(parts, 1):
        positive, negative = w.clamp(min=0).sum((1, 2, 3)), (-w).clamp(min=0).sum((1, 2, 3))
        worst = torch.maximum(worst, torch.maximum(positive * up + negative * down, negative * up + positive * down))
    return worst + bias.double().abs()

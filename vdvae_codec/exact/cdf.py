"""Integer distributions: parameters on grids, tables in place of exp and sigmoid, integer cdfs over 0..255.

Locations are integers in 1/16 of a step, scales are indices of a log-spaced table, weights are integers. The tables are
part of a model, so that no machine has to compute a transcendental function again.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

LOG_SIGMA_RANGE = (-3.0, 5.0)  # of a component, sigma in symbols
STEPS = 16  # locations are multiples of 1/16
SCALES_PER_NAT = 16
TABLE_STEPS = 1024  # table entries per standard unit
TABLE_REACH = 12  # standard units on each side
ONE = 1 << 16  # a probability of 1 in the cdf tables
WEIGHT_BITS = 10
WEIGHT_ONE = 1 << WEIGHT_BITS  # weight of the heaviest component
LOGIT_STEPS = 16
FAR = 2.0**30  # an edge beyond every table
FURTHEST = 2**13 - 1  # of locations, in 1/16 of a step
SUPPORT = 14  # values that a support holds
CHUNK = 8192  # symbols at a time: their tables stay in a core's cache
FLOOR = 16  # every value of 0..255 gets at least 2^-22 of the total, 2^-14 in all


class Tables(NamedTuple):
    """logistic, gaussian: int32 (2 * 12288 + 1,) cdf * 2^16 at multiples of 1/1024 around the centre;
    inverse_scale: float32 (129,) table entries per 1/16 step, 11 bits, for log sigma = -3, -3 + 1/16, ..., 5;
    weight: int32 (256,) 2^10 exp(-n / 16)."""

    logistic: Tensor
    gaussian: Tensor
    inverse_scale: Tensor
    weight: Tensor


def make_tables() -> Tables:
    """Computes the tables; done once, when a model is exported."""
    reach = TABLE_REACH * TABLE_STEPS
    u = [i / TABLE_STEPS for i in range(-reach, reach + 1)]
    low, high = LOG_SIGMA_RANGE
    count = round((high - low) * SCALES_PER_NAT) + 1
    return Tables(
        torch.tensor([round(ONE / (1 + math.exp(-v))) for v in u], dtype=torch.int32),
        torch.tensor([round(ONE * 0.5 * math.erfc(-v / math.sqrt(2))) for v in u], dtype=torch.int32),
        torch.tensor([eleven_bits(TABLE_STEPS / STEPS * math.exp(-low - i / SCALES_PER_NAT)) for i in range(count)]),
        torch.tensor([round(WEIGHT_ONE * math.exp(-n / LOGIT_STEPS)) for n in range(256)], dtype=torch.int32),
    )


def eleven_bits(value: float) -> float:
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(mantissa * 2**11), exponent - 11)


@dataclass
class ByteMixture:
    """Mixtures over the symbols 0..255, N of them, K components each: a ``entropy.codec.Supports``.

    table: int32 cdf table; location: float32 (K, N) integers in 1/16 of a step; inverse_scale: float32 (K, N);
    weight: int32 (K, N).
    """

    table: Tensor
    location: Tensor
    inverse_scale: Tensor
    weight: Tensor

    @functools.cached_property
    def _start(self) -> Tensor:
        """(N,) int32: supports start six values below the mean of the locations."""
        total = self.weight.sum(0, dtype=torch.int32) * STEPS
        mean = (self.location.to(torch.int32) * self.weight).sum(0, dtype=torch.int32)
        return (torch.div(mean, total, rounding_mode="floor") - SUPPORT // 2 + 1).clamp(0, 256 - SUPPORT)

    def start(self) -> np.ndarray:
        start: np.ndarray = self._start.cpu().numpy()
        return start

    def within(self) -> np.ndarray:
        first, last = self._start, 256 - SUPPORT - self._start
        offsets = edge(torch.arange(15, device=first.device, dtype=torch.int32))[:, None]

        def edges(part: slice) -> Tensor:
            position = offsets + (first[part] * STEPS)
            position[0].masked_fill_(first[part] == 0, -FAR)  # the end bins are open
            position[14].masked_fill_(last[part] == 0, FAR)
            return position

        return self.frequencies(edges, 1, (first, last))

    def beyond(self, rows: np.ndarray, above: np.ndarray) -> ByteNibbles:
        index = torch.from_numpy(rows).to(self.weight.device)
        high = torch.from_numpy(above).to(index.device)
        start = self._start[index]
        chosen = (t.index_select(1, index) for t in (self.location, self.inverse_scale, self.weight))
        low, top = torch.where(high, edge(start + SUPPORT), -FAR), torch.where(high, FAR, edge(start))
        return ByteNibbles(ByteMixture(self.table, *chosen), low, top)

    def nibbles(self) -> ByteNibbles:
        """The same distributions without supports."""
        far = torch.full_like(self.location[0], FAR)
        return ByteNibbles(self, -far, far)

    def frequencies(
        self, edges: Callable[[slice], Tensor], width: int, ends: tuple[Tensor, Tensor] | None = None
    ) -> np.ndarray:
        """Frequencies (N, 16) float32 of 16 bins between 17 edges: a slice of n -> (17, n) float32, in 1/16 of a step.

        Every value gets at least FLOOR / 2^10 of the components' weight, and no frequency is zero: a bin is ``width``
        values wide. With ``ends`` the first and the last are open and as wide as ``ends`` (N,) says: only the 15 edges
        between are asked for.
        """
        reach, count = len(self.table) // 2, self.weight.shape[1]
        out = torch.empty(count, 16, device=self.weight.device)
        chunk = CHUNK if out.device.type == "cpu" else max(1, count)
        for begin in range(0, count, chunk):
            part = slice(begin, begin + chunk)
            position = edges(part)
            cdf = torch.zeros(17, position.shape[1], dtype=torch.int32, device=out.device)
            inner = cdf if ends is None else cdf[1:16]
            for location, inverse_scale, weight in zip(self.location, self.inverse_scale, self.weight):
                # Both products are exact (13 bits times 11), so that it does not matter whether additions are fused.
                centre = (reach + 0.5) - location[part] * inverse_scale[part]
                index = torch.addcmul(centre, position, inverse_scale[part]).clamp_(0, 2 * reach).to(torch.int32)
                inner.addcmul_(gather(self.table, index), weight[part])
            total = self.weight[:, part].sum(0, dtype=torch.int32)
            if ends is not None:
                cdf[0], cdf[16] = self.table[0] * total, self.table[-1] * total
            bins = cdf[1:] - cdf[:-1]
            floor = total * FLOOR // WEIGHT_ONE
            bins += floor * width
            if ends is not None:
                for n, end in zip((0, -1), ends):
                    bins[n] += floor * (end[part] - width).clamp(min=0)
            out[part] = bins.t()
        result: np.ndarray = out.cpu().numpy()
        return result

    def responsibilities(self, x: Tensor) -> Tensor:
        """Weights (K, N) int32 of the components once the symbols x (N,) float32 are known, up to 10 bits."""
        reach = len(self.table) // 2
        centre = (reach + 0.5) - self.location * self.inverse_scale
        position = (x - 0.5) * STEPS, (x + 0.5) * STEPS
        lower, upper = (
            gather(self.table, torch.addcmul(centre, edge, self.inverse_scale).clamp_(0, 2 * reach).to(torch.int32))
            for edge in position
        )
        lower, upper = lower.masked_fill(x == 0, 0), upper.masked_fill(x == 255, ONE)  # the end bins are open
        product = (16 * (upper - lower) + 1) * self.weight  # below 2^31, and at least the heaviest weight
        _, exponent = torch.frexp(product.amax(0).double())
        return product >> (exponent - WEIGHT_BITS).clamp(min=0)

    def bits(self, x: np.ndarray) -> np.ndarray:
        """-log2 of the probability that the coder uses for x (N,): float64 (N,)."""
        place = np.clip(x - self.start() + 1, 0, SUPPORT + 1)
        out = symbol_bits(self.within(), place)
        rows = np.flatnonzero((place == 0) | (place == SUPPORT + 1))
        out[rows] += self.beyond(rows, place[rows] > 0).bits(x[rows])
        return out


@dataclass
class ByteNibbles:
    """Mixtures (N) limited to values between the edges low and high: a ``entropy.codec.Nibbles``.

    low, high: float32 (N,), in 1/16 of a step, FAR where there is no limit.
    """

    mixture: ByteMixture
    low: Tensor
    high: Tensor

    def coarse(self) -> np.ndarray:
        return self._frequencies(torch.zeros_like(self.mixture.weight[0]), 16)

    def fine(self, high: np.ndarray) -> np.ndarray:
        return self._frequencies(torch.from_numpy(high.astype(np.int32)).to(self.low.device) * 16, 1)

    def _frequencies(self, first: Tensor, width: int) -> np.ndarray:
        offsets = edge(torch.arange(0, 17 * width, width, device=first.device, dtype=torch.int32))[:, None]

        def edges(part: slice) -> Tensor:
            position = offsets + first[part] * STEPS
            position[0].masked_fill_(first[part] == 0, -FAR)  # the end bins are open
            position[16].masked_fill_(first[part] == 256 - 16 * width, FAR)
            return position.maximum(self.low[part]).minimum(self.high[part])

        return self.mixture.frequencies(edges, width)

    def bits(self, x: np.ndarray) -> np.ndarray:
        """-log2 of the probability that the coder uses for x (N,): float64 (N,)."""
        high, low = np.divmod(x, 16)
        bits: np.ndarray = symbol_bits(self.coarse(), high) + symbol_bits(self.fine(high), low)
        return bits


def edge(value: Tensor) -> Tensor:
    """The lower edge of integer values, in 1/16 of a step, as float32."""
    return (value * STEPS - STEPS // 2).float()


def symbol_bits(frequencies: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    """-log2 of the probabilities of symbols (N,) under rows (N, 16): float64 (N,)."""
    f = frequencies.astype(np.float64)
    bits: np.ndarray = -np.log2(f[np.arange(len(symbols)), symbols] / f.sum(1))
    return bits


def gather(table: Tensor, index: Tensor) -> Tensor:
    """table[index], by the fastest way on the CPU."""
    return table.index_select(0, index.flatten()).view(index.shape)


def on_grid(x: Tensor, per_unit: float) -> Tensor:
    """x rounded to multiples of 1/per_unit, a power of two."""
    return (x * per_unit).round() / per_unit


def inverse_scale(tables: Tables, log_sigma: Tensor) -> Tensor:
    """The table's nearest entry, in the shape of log_sigma."""
    low, high = LOG_SIGMA_RANGE
    top = len(tables.inverse_scale) - 1
    index = ((log_sigma - low) * (top / (high - low))).round().clamp(0, top).to(torch.int32)
    return gather(tables.inverse_scale, index)


def weight_of(tables: Tables, logits: Tensor) -> Tensor:
    """Weights (K, N) int32 of components, the heaviest 2^10, by their logits (K, N)."""
    index = ((logits.amax(0) - logits) * LOGIT_STEPS).round().clamp(0, 255).to(torch.int32)
    return gather(tables.weight, index)


def location_of(value: Tensor) -> Tensor:
    """Locations in symbols as integers in 1/16 of a step, within what the products of ``frequencies`` allow."""
    return (value * STEPS).round().clamp(-FURTHEST, FURTHEST)


def select(x: Tensor, positions: Tensor | None) -> Tensor:
    """(B, K, h, w) to (K, N): the columns ``positions`` (N,) of the flattened (B, h, w), or all."""
    planes = x.transpose(0, 1).flatten(1)
    return planes if positions is None else planes.index_select(1, positions)

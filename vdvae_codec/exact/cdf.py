"""Integer distributions: parameters on grids, tables in place of exp and sigmoid, integer cdfs over 0..255.

Locations are integers in 1/16 of a step, scales are indices of a log-spaced table, weights are integers. The tables are
part of a model, so that no machine has to compute a transcendental function again.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

LOG_SIGMA_RANGE = (-3.0, 5.0)  # of a component, sigma in symbols
STEPS = 16  # locations are multiples of 1/16
SCALES_PER_NAT = 16
FINER_PER_NAT = 64  # of latents: some ten a sub-pixel pay for how far off their scales are
TABLE_STEPS = 1024  # table entries per standard unit
TABLE_REACH = 12  # standard units on each side
ONE = 1 << 16  # a probability of 1 in the cdf tables
WEIGHT_BITS = 10
WEIGHT_ONE = 1 << WEIGHT_BITS  # weight of the heaviest component
LOGIT_STEPS = 16
FAR = np.float32(2**30)  # an edge beyond every table
FURTHEST = 2**13 - 1  # of locations, in 1/16 of a step
SUPPORT = 14  # values that a support holds
CHUNK = 4096  # symbols at a time: their tables stay in a core's cache
WORTH_A_THREAD = 768  # symbols
FLOOR = 16  # of 2^26: every value of 0..255 gets at least 2^-22 of the total, 2^-14 in all


class Tables(NamedTuple):
    """logistic, gaussian: int32 (2 * 12288 + 1,) cdf * 2^16 at multiples of 1/1024 around the centre;
    inverse_scale: float32 (129,) table entries per 1/16 step, 11 bits, for log sigma = -3, -3 + 1/16, ..., 5;
    gaussian_scale: float32 (513,), likewise in steps of 1/64, of what is as spread as sigma says after it was rounded
    to whole symbols: rounding adds 1/12 to a variance (Sheppard 1898);
    weight: int32 (256,) 2^10 exp(-n / 16)."""

    logistic: Tensor
    gaussian: Tensor
    inverse_scale: Tensor
    gaussian_scale: Tensor
    weight: Tensor


def make_tables() -> Tables:
    """Computes the tables; done once, when a model is exported."""
    reach = TABLE_REACH * TABLE_STEPS
    u = [i / TABLE_STEPS for i in range(-reach, reach + 1)]
    low, high = LOG_SIGMA_RANGE
    sigmas, finer = (
        [math.exp(low + i / per_nat) for i in range(round((high - low) * per_nat) + 1)]
        for per_nat in (SCALES_PER_NAT, FINER_PER_NAT)
    )
    before_rounding = [math.sqrt(sigma**2 - min(1 / 12, sigma**2 / 4)) for sigma in finer]
    return Tables(
        torch.tensor([round(ONE / (1 + math.exp(-v))) for v in u], dtype=torch.int32),
        torch.tensor([round(ONE * 0.5 * math.erfc(-v / math.sqrt(2))) for v in u], dtype=torch.int32),
        torch.tensor([eleven_bits(TABLE_STEPS / STEPS / sigma) for sigma in sigmas]),
        torch.tensor([eleven_bits(TABLE_STEPS / STEPS / sigma) for sigma in before_rounding]),
        torch.tensor([round(WEIGHT_ONE * math.exp(-n / LOGIT_STEPS)) for n in range(256)], dtype=torch.int32),
    )


def eleven_bits(value: float) -> float:
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(mantissa * 2**11), exponent - 11)


@dataclass
class ByteMixture:
    """Mixtures over the symbols 0..255, N of them, K components each: a ``entropy.codec.Supports``.

    Arrays of numpy, or tensors on the CPU. table: int32 cdf table; location: float32 (K, N) integers in 1/16 of a step;
    inverse_scale: float32 (K, N); weight: int32 (K, N). Every value gets at least ``floor`` / 2^26 of the total.
    """

    table: np.ndarray
    location: np.ndarray
    inverse_scale: np.ndarray
    weight: np.ndarray
    floor: int = FLOOR

    def __post_init__(self) -> None:
        self.table, self.location = np.asarray(self.table), np.asarray(self.location)
        self.inverse_scale, self.weight = np.asarray(self.inverse_scale), np.asarray(self.weight)

    @functools.cached_property
    def total(self) -> np.ndarray:
        """(N,) int32: weights of all components."""
        total: np.ndarray = self.weight.sum(0, dtype=np.int32)
        return total

    @functools.cached_property
    def _start(self) -> np.ndarray:
        """(N,) int32: supports start six values below the mean of the locations."""
        mean = (self.location.astype(np.int32) * self.weight).sum(0, dtype=np.int32)
        start: np.ndarray = (mean // (self.total * STEPS) - SUPPORT // 2 + 1).clip(0, 256 - SUPPORT)
        return start

    def start(self) -> np.ndarray:
        return self._start

    def within(self) -> np.ndarray:
        first = self._start
        last = 256 - SUPPORT - first
        offsets = edge(np.arange(15))[:, None]

        def edges(part: slice) -> np.ndarray:
            start = first[part]
            position = offsets + (start * STEPS).astype(np.float32)
            position[0, start == 0] = -FAR  # the end bins are open
            position[14, start == 256 - SUPPORT] = FAR
            return position

        return self.frequencies(edges, 1, (first, last))

    def beyond(self, rows: np.ndarray, above: np.ndarray) -> ByteNibbles:
        start = self._start[rows]
        low, high = np.where(above, edge(start + SUPPORT), -FAR), np.where(above, FAR, edge(start))
        columns = self.location[:, rows], self.inverse_scale[:, rows], self.weight[:, rows]
        these = ByteMixture(self.table, *columns, self.floor)
        return ByteNibbles(these, low.astype(np.float32), high.astype(np.float32))

    def nibbles(self) -> ByteNibbles:
        """The same distributions without supports."""
        far = np.full(self.location.shape[1], FAR, np.float32)
        return ByteNibbles(self, -far, far)

    def frequencies(
        self, edges: Callable[[slice], np.ndarray], width: int, ends: tuple[np.ndarray, np.ndarray] | None = None
    ) -> np.ndarray:
        """Frequencies (N, 16) float32 of 16 bins between 17 edges: a slice of n -> (17, n) float32, in 1/16 of a step.

        No bin, which is ``width`` values wide, gets less than the coder can tell from nothing, nor less than the floors
        of its values. With ``ends`` the first and the last are open and as wide as ``ends`` (N,) says: only the 15
        edges between are asked for.
        """
        count = self.weight.shape[1]
        out = np.empty((count, 16), np.float32)

        def fill(part: slice) -> None:
            total = self.total[part]
            inner = self._cdf(edges(part), part)
            if ends is not None:
                inner = np.concatenate([self.table[0] * total[None], inner, self.table[-1] * total[None]])
            bins = inner[1:] - inner[:-1]
            floor = total * self.floor // WEIGHT_ONE
            bins += np.maximum(floor * width, FLOOR)
            if ends is not None:
                for n, end in zip((0, -1), ends):
                    bins[n] += floor * np.maximum(end[part] - width, 0)
            out[part] = bins.T

        in_parts(fill, count)
        return out

    def _cdf(self, position: np.ndarray, part: slice) -> np.ndarray:
        """(E, n) int32 at positions (E, n): sums of the components' cdfs by their weights."""
        reach = len(self.table) // 2
        scale = self.inverse_scale[:, part]
        # Both products are exact (13 bits times 11), so that it does not matter whether additions are fused.
        at = position * scale[:, None]  # (K, E, n)
        at += ((reach + 0.5) - self.location[:, part] * scale)[:, None]
        np.clip(at, 0, 2 * reach, out=at)
        cdf = self.table.take(at.astype(np.int32).astype(np.intp))  # in two steps: twice as fast
        cdf *= self.weight[:, None, part]
        total: np.ndarray = cdf.sum(0, dtype=np.int32)
        return total

    def responsibilities(self, x: np.ndarray) -> np.ndarray:
        """Weights (K, N) int32 of the components once the symbols x (N,) are known, up to 10 bits."""
        reach = len(self.table) // 2
        centre = np.float32(reach + 0.5) - self.location * self.inverse_scale
        ends = []
        for offset in (-STEPS // 2, STEPS // 2):
            at = (x * STEPS + offset).astype(np.float32) * self.inverse_scale + centre
            ends.append(self.table.take(at.clip(0, 2 * reach).astype(np.intp)))
        lower, upper = np.where(x == 0, 0, ends[0]), np.where(x == 255, ONE, ends[1])  # the end bins are open
        product = (16 * (upper - lower) + 1) * self.weight  # below 2^31, and at least the heaviest weight
        _, exponent = np.frexp(product.max(0).astype(np.float64))
        found: np.ndarray = product >> (exponent - WEIGHT_BITS).clip(0)
        return found

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
    low: np.ndarray
    high: np.ndarray

    def coarse(self) -> np.ndarray:
        return self._frequencies(np.zeros(len(self.low), np.int32), 16)

    def fine(self, high: np.ndarray) -> np.ndarray:
        return self._frequencies(high.astype(np.int32) * 16, 1)

    def _frequencies(self, first: np.ndarray, width: int) -> np.ndarray:
        offsets = edge(np.arange(0, 17 * width, width))[:, None]

        def edges(part: slice) -> np.ndarray:
            position = offsets + (first[part] * STEPS).astype(np.float32)
            position[0, first[part] == 0] = -FAR  # the end bins are open
            position[16, first[part] == 256 - 16 * width] = FAR
            return position.clip(self.low[part], self.high[part], out=position)

        return self.mixture.frequencies(edges, width)

    def bits(self, x: np.ndarray) -> np.ndarray:
        """-log2 of the probability that the coder uses for x (N,): float64 (N,)."""
        high, low = np.divmod(x, 16)
        bits: np.ndarray = symbol_bits(self.coarse(), high) + symbol_bits(self.fine(high), low)
        return bits


def in_parts(work: Callable[[slice], None], count: int) -> None:
    """Does the work of symbols 0..count-1 a chunk at a time, on as many threads as torch would take."""
    threads = torch.get_num_threads()
    size = min(CHUNK, max(WORTH_A_THREAD, -(-count // threads)))
    chunks = [slice(begin, begin + size) for begin in range(0, count, size)]
    if len(chunks) < 2 or threads == 1:
        for chunk in chunks:
            work(chunk)
    else:
        for _ in pool(threads).map(work, chunks):
            pass


@functools.cache
def pool(threads: int) -> ThreadPoolExecutor:
    """Threads that are kept."""
    return ThreadPoolExecutor(threads)


def edge(value: np.ndarray) -> np.ndarray:
    """The lower edge of integer values, in 1/16 of a step, as float32."""
    return (value * STEPS - STEPS // 2).astype(np.float32)


def symbol_bits(frequencies: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    """-log2 of the probabilities of symbols (N,) under rows (N, 16): float64 (N,)."""
    f = frequencies.astype(np.float64)
    bits: np.ndarray = -np.log2(f[np.arange(len(symbols)), symbols] / f.sum(1))
    return bits


def on_grid(x: np.ndarray, per_unit: float) -> np.ndarray:
    """x rounded to multiples of 1/per_unit, a power of two."""
    rounded: np.ndarray = np.rint(x * per_unit) * np.float32(1 / per_unit)
    return rounded


def nearest_scale(scales: Tensor, log_sigma: np.ndarray) -> np.ndarray:
    """The nearest entry of ``Tables.inverse_scale`` or ``Tables.gaussian_scale``, in the shape of log_sigma."""
    low, high = LOG_SIGMA_RANGE
    table = scales.cpu().numpy()
    top = len(table) - 1
    index = np.rint((log_sigma - low) * (top / (high - low))).clip(0, top)
    found: np.ndarray = table.take(index.astype(np.intp))
    return found


def weight_of(tables: Tables, logits: np.ndarray) -> np.ndarray:
    """Weights (K, N) int32 of components, the heaviest 2^10, by their logits (K, N)."""
    index = np.rint((logits.max(0) - logits) * LOGIT_STEPS).clip(0, 255)
    found: np.ndarray = tables.weight.cpu().numpy().take(index.astype(np.intp))
    return found


def location_of(value: np.ndarray) -> np.ndarray:
    """Locations in symbols as integers in 1/16 of a step, within what the products of ``frequencies`` allow."""
    location: np.ndarray = np.rint(value * STEPS).clip(-FURTHEST, FURTHEST)
    return location


def columns(x: Tensor, positions: Tensor | None) -> np.ndarray:
    """(B, ..., h, w) to (..., N): the columns ``positions`` (N,) of the flattened (B, h, w), or all."""
    planes = x.movedim(0, -3).flatten(-3)
    array: np.ndarray = (planes if positions is None else planes.index_select(-1, positions)).cpu().numpy()
    return array

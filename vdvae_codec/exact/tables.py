"""Integer distributions: parameters on grids, tables in place of exp and sigmoid, integer cdfs over 0..255.

Locations are integers in 1/16 of a step, scales are indices of a log-spaced table, weights are integers. The tables are
part of a model, so that no machine has to compute a transcendental function again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vdvae_codec.distributions import LOG_SIGMA_RANGE, Gaussian, PixelMixture

STEPS = 16  # locations are multiples of 1/16
SCALES_PER_NAT = 8
TABLE_STEPS = 1024  # table entries per standard unit
TABLE_REACH = 12  # standard units on each side
ONE = 1 << 16  # a probability of 1 in the cdf tables
WEIGHT_ONE = 1 << 10  # weight of the heaviest component
LOGIT_STEPS = 16
FAR = 2.0**30  # an edge beyond every table
FURTHEST = 2**13 - 1  # of locations, in 1/16 of a step
CHUNK = 8192  # symbols at a time: their tables stay in a core's cache
FLOOR = 16  # every value of 0..255 gets at least 2^-22 of the total, 2^-14 in all


class Tables(NamedTuple):
    """logistic, gaussian: int32 (2 * 12288 + 1,) cdf * 2^16 at multiples of 1/1024 around the centre;
    inverse_scale: float32 (65,) table entries per 1/16 step, 11 bits, for log sigma = -3, -3 + 1/8, ..., 5;
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
    """Mixtures over the symbols 0..255, N of them, K components each.

    table: int32 cdf table; location: float32 (K, N) integers in 1/16 of a step; inverse_scale: float32 (K, N);
    weight: int32 (K, N).
    """

    table: Tensor
    location: Tensor
    inverse_scale: Tensor
    weight: Tensor

    def frequencies(self, first: Tensor, width: int) -> np.ndarray:
        """Frequencies (N, 16) float32 of 16 bins of ``width`` values from ``first`` (N,) int32 on.

        The cumulative frequency below a value v is that below the edge v - 1/2; the end bins are open. Every value gets
        at least FLOOR / 2^10 of the components' weight, so that no frequency is zero.
        """
        reach = len(self.table) // 2
        count = len(first)
        out = torch.empty(count, 16, device=first.device)
        offsets = torch.arange(0, 17 * width * STEPS, width * STEPS, device=first.device)[:, None].float()
        chunk = CHUNK if first.device.type == "cpu" else max(1, count)
        for begin in range(0, count, chunk):
            part = slice(begin, begin + chunk)
            start = first[part]
            position = offsets + (start * STEPS - STEPS // 2)  # (17, n) edges, in 1/16 of a step
            position[0].masked_fill_(start == 0, -FAR)
            position[16].masked_fill_(start == 256 - 16 * width, FAR)
            cdf = torch.zeros(position.shape, dtype=torch.int32, device=first.device)
            for location, inverse_scale, weight in zip(self.location, self.inverse_scale, self.weight):
                # Both products are exact (13 bits times 11), so that it does not matter whether the addition is fused.
                centre = (reach + 0.5) - location[part] * inverse_scale[part]
                index = torch.addcmul(centre, position, inverse_scale[part]).clamp_(0, 2 * reach).to(torch.int32)
                cdf.addcmul_(self.table.index_select(0, index.flatten()).view(index.shape), weight[part])
            floor = self.weight[:, part].sum(0, dtype=torch.int32) * (width * FLOOR) // WEIGHT_ONE
            out[part] = (cdf[1:] - cdf[:-1]).add_(floor).t()
        result: np.ndarray = out.cpu().numpy()
        return result

    def coarse(self) -> np.ndarray:
        """(N, 16) float32 frequencies of the high halves."""
        return self.frequencies(torch.zeros_like(self.weight[0]), 16)

    def fine(self, high: np.ndarray) -> np.ndarray:
        """(N, 16) float32 frequencies of the low halves, given the high halves (N,)."""
        return self.frequencies(torch.from_numpy(high.astype(np.int32)).to(self.weight.device) * 16, 1)

    def bits(self, x: np.ndarray) -> np.ndarray:
        """-log2 of the probability that the coder uses for x (N,): float64 (N,)."""
        out = np.zeros(len(x))
        for frequencies, half in ((self.coarse(), x // 16), (self.fine(x // 16), x % 16)):
            f = frequencies.astype(np.float64)
            out -= np.log2(f[np.arange(len(x)), half] / f.sum(1))
        return out


def gather(table: Tensor, index: Tensor) -> Tensor:
    """table[index], by the fastest way on the CPU."""
    return table.index_select(0, index.flatten()).view(index.shape)


def on_grid(x: Tensor, per_unit: float) -> Tensor:
    """x rounded to multiples of 1/per_unit, a power of two."""
    return (x * per_unit).round() / per_unit


def scale_index(log_sigma: Tensor) -> Tensor:
    low, high = LOG_SIGMA_RANGE
    top = round((high - low) * SCALES_PER_NAT)
    return ((log_sigma - low) * SCALES_PER_NAT).round().clamp(0, top).to(torch.int32)


def quantise(p: PixelMixture) -> PixelMixture:
    """The parameters on their grids, so that ``location`` is exact: base and loc 1/16, coupling 1/64."""
    return PixelMixture(
        p.logits, on_grid(p.loc, STEPS).clamp(-2048, 2048), p.log_sigma,
        on_grid(p.base, STEPS).clamp(-512, 768), on_grid(p.coupling, 64).clamp(-4, 4),
    )


def pixel_distribution(
    tables: Tables, p: PixelMixture, channel: int, x: Tensor, inside: Tensor | None
) -> ByteMixture:
    """One channel's distributions at the positions ``inside``, given the earlier channels of x (B, 3, h, w).

    ``p`` is quantised; inside: int64 (N,) indices into the flattened (B, h, w), or None for all of them.
    """
    def select(t: Tensor) -> Tensor:  # (B, K, h, w) -> (K, N)
        planes = t.transpose(0, 1).flatten(1)
        return planes if inside is None else planes.index_select(1, inside)

    location = select(p.location(channel, x)) * STEPS
    logits = select(p.logits[:, :, channel])
    index = ((logits.amax(0) - logits) * LOGIT_STEPS).round().clamp(0, 255).to(torch.int32)
    scale = gather(tables.inverse_scale, scale_index(select(p.log_sigma[:, :, channel])))
    weight = gather(tables.weight, index)
    return ByteMixture(tables.logistic, location.round().clamp(-FURTHEST, FURTHEST), scale, weight)


def latent_distribution(tables: Tables, p: Gaussian, exponent: int, alive: Tensor) -> ByteMixture:
    """Distributions over the indices k + 128 of latents z = k 2^-exponent, for the channels ``alive`` (n,) int64.

    The N symbols run over (channels alive, B, h, w).
    """
    def select(t: Tensor) -> Tensor:
        return t.index_select(1, alive).transpose(0, 1).reshape(1, -1)

    location = (select(p.mean) * 2.0**exponent * STEPS).round() + 128 * STEPS
    scale = gather(tables.inverse_scale, scale_index(select(p.log_sigma) + exponent * math.log(2)))
    weight = torch.full_like(scale, WEIGHT_ONE, dtype=torch.int32)
    return ByteMixture(tables.gaussian, location.clamp(-FURTHEST, FURTHEST), scale, weight)

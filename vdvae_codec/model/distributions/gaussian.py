"""Diagonal Gaussians, the distributions of latents."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vdvae_codec.exact.cdf import (
    STEPS,
    WEIGHT_ONE,
    ByteMixture,
    ByteNibbles,
    Tables,
    location_of,
    nearest_scale,
    on_grid,
)

MIDDLE = 128  # index of the grid point at z = 0


@dataclass
class Gaussian:
    """Diagonal Gaussian; both tensors (B, zdim, h, w), in units of z."""

    mean: Tensor
    log_sigma: Tensor

    def sample(self, temperature: float = 1.0) -> Tensor:
        """Draws z, with sigma times ``temperature``; 0 gives the mean."""
        return self.mean + torch.randn_like(self.mean) * (temperature * self.log_sigma.exp())

    def integers(self, tables: Tables, exponent: int, active: Tensor) -> ByteNibbles:
        """Distributions over the indices k + 128 of latents z = k 2^-exponent, for the channels ``active`` (n,) int64.

        The N symbols run over (active channels, B, h, w). Values far from the mean get next to nothing: one of them
        drawn from a posterior spoils all that follows.
        """

        def select(t: Tensor) -> np.ndarray:
            array: np.ndarray = t.index_select(1, active).transpose(0, 1).reshape(1, -1).cpu().numpy()
            return array

        location = on_grid(select(self.mean) * 2.0**exponent, STEPS) + MIDDLE
        scale = nearest_scale(tables.gaussian_scale, select(self.log_sigma) + exponent * math.log(2))
        weight = np.full(scale.shape, WEIGHT_ONE, np.int32)
        return ByteMixture(tables.gaussian.cpu().numpy(), location_of(location), scale, weight, floor=0).nibbles()


def gaussian_kl(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q || p) in nats per element, same shape as the means."""
    ratio = (2 * (q.log_sigma - p.log_sigma)).exp()
    distance = (q.mean - p.mean) ** 2 * (-2 * p.log_sigma).exp()
    return 0.5 * (ratio + distance - 1) - (q.log_sigma - p.log_sigma)

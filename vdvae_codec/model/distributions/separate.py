"""A mixture for each colour, their locations coupled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vdvae_codec.exact.cdf import LOG_SIGMA_RANGE, ByteMixture, Tables, columns, nearest_scale, weight_of
from vdvae_codec.model.distributions.logistics import (
    BASE_RANGE,
    COUPLING_REACH,
    Colours,
    Mixture,
    Uniform,
    gumbel_argmax,
    levels,
    logistic_mass,
    logistic_noise,
)

LOC_REACH = 2048


@dataclass
class SeparateMixture(Mixture):
    """Discretised mixtures of logistics with channel coupling (PixelCNN++, arXiv 1701.05517, eq. 1-3).

    The channels are coded in the order G, R, B: green predicts the others best. With ``e_c = x_c - base_c`` the
    locations of the later channels move by ``c0 e_g`` (red) and ``c1 e_g + c2 e_r`` (blue).

    logits, loc, log_sigma: (B, K, 3, h, w), loc and sigma in pixel levels, channels in G, R, B order;
    base: (B, 3, h, w) linear prediction in pixel levels, G, R, B; coupling: (B, 3, h, w).
    """

    order = (0, 1, 2)
    logits: Tensor
    loc: Tensor
    log_sigma: Tensor
    base: Tensor
    coupling: Tensor

    def location(self, channel: int, x: Tensor) -> Tensor:
        shift = self.base[:, channel]
        if channel == 1:
            shift = shift + self.coupling[:, 0] * (x[:, 0] - self.base[:, 0])
        if channel == 2:
            shift = shift + self.coupling[:, 1] * (x[:, 0] - self.base[:, 0])
            shift = shift + self.coupling[:, 2] * (x[:, 1] - self.base[:, 1])
        return self.loc[:, :, channel] + shift[:, None]

    def nll_nats(self, x: Tensor, channels: int = 3) -> Tensor:
        loc = torch.stack([self.location(c, x) for c in range(3)], 2)  # (B, K, 3, h, w)
        mass = logistic_mass(x[:, None], loc, self.log_sigma.clamp(*LOG_SIGMA_RANGE))
        p = (F.softmax(self.logits, 1) * mass).sum(1)
        return -torch.log(p + 1e-12)[:, :channels]

    def sample(self, temperature: float = 1.0, uniform: Uniform = torch.rand_like) -> Tensor:
        choice = gumbel_argmax(self.logits, temperature, uniform)  # (B, 1, 3, h, w)
        sigma = self.log_sigma.clamp(*LOG_SIGMA_RANGE).exp().gather(1, choice)[:, 0]
        noise = temperature * logistic_noise(sigma, uniform)
        x = torch.zeros_like(self.base)
        for c in range(3):
            x[:, c] = levels(self.location(c, x).gather(1, choice[:, :, c])[:, 0] + noise[:, c])
        return x

    def integers(self, tables: Tables, positions: Tensor | None) -> SeparateColours:
        loc, base, coupling = (columns(t, positions) for t in (self.loc, self.base, self.coupling))
        return SeparateColours(
            self.order, tables.logistic.cpu().numpy(),
            nearest_scale(tables.inverse_scale, columns(self.log_sigma, positions)),
            loc.clip(-LOC_REACH, LOC_REACH), base.clip(*BASE_RANGE)[None],
            coupling.clip(-COUPLING_REACH, COUPLING_REACH)[None],
            weight_of(tables, columns(self.logits, positions)),
        )


class SeparateColours(Colours):
    """Each colour has weights of its own: ``weight`` (K, 3, N)."""

    def mixture(self, place: int, earlier: Sequence[np.ndarray]) -> ByteMixture:
        return self.components(place, earlier, self.weight[:, self.order[place]])

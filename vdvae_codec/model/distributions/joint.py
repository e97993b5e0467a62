"""A mixture whose components span the colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vdvae_codec.exact.cdf import ByteMixture, Tables, columns, nearest_scale, weight_of
from vdvae_codec.model.distributions.logistics import (
    BASE_RANGE,
    COUPLED,
    COUPLING_REACH,
    Colours,
    Mixture,
    Uniform,
    gumbel_argmax,
    levels,
    logistic_mass,
    logistic_noise,
)

LOC_REACH = 1024


@dataclass
class JointMixture(Mixture):
    """Mixture whose components span the colours (PixelCNN++, arXiv 1701.05517, eq. 1-3), as VDVAE's code has it.

    Each component has a base of its own, and its colours are coupled by the ``e_c = x_c - base_c`` of the earlier ones:
    the second colour in ``order`` moves by ``c0 e_first``, the third by ``c1 e_first + c2 e_second``. What the earlier
    colours were tells which component it is, and so how far the later ones may be off.

    logits: (B, K, h, w); loc, log_sigma: (B, K, 3, h, w) in pixel levels, channels in G, R, B order; base: the same, or
    1 in place of K; coupling: (B, K, 3, h, w), c0, c1, c2; bits: of a sub-pixel, whose lower ones are dropped.
    """

    logits: Tensor
    loc: Tensor
    log_sigma: Tensor
    base: Tensor
    coupling: Tensor
    order: tuple[int, int, int] = (0, 1, 2)
    bits: int = 8

    def location(self, channel: int, x: Tensor) -> Tensor:
        place = self.order.index(channel)
        loc = self.loc[:, :, channel] + self.base[:, :, channel]  # (B, K, h, w)
        for earlier, c in zip(self.order[:place], COUPLED[place]):
            loc = loc + self.coupling[:, :, c] * (x[:, None, earlier] - self.base[:, :, earlier])
        return loc

    def nll_nats(self, x: Tensor, channels: int = 3) -> Tensor:
        step = 2 ** (8 - self.bits)
        x = (x / step).floor() * step
        loc = torch.stack([self.location(c, x) for c in range(3)], 2)  # (B, K, 3, h, w)
        mass = logistic_mass(x[:, None], loc, self.log_sigma, step)
        log_mass = torch.log(mass.clamp(min=1e-12))  # (B, K, 3, h, w)
        log_p = log_mass[:, :, list(self.order[:channels])].sum(2)  # (B, K, h, w)
        return -torch.logsumexp(F.log_softmax(self.logits, 1) + log_p, 1, keepdim=True)

    def sample(self, temperature: float = 1.0, uniform: Uniform = torch.rand_like) -> Tensor:
        choice = gumbel_argmax(self.logits, temperature, uniform)  # (B, 1, h, w)
        sigma = self.log_sigma.exp().gather(1, choice[:, :, None].expand(-1, -1, 3, -1, -1))[:, 0]
        noise = temperature * logistic_noise(sigma, uniform)
        x = torch.zeros_like(noise)
        for c in self.order:
            x[:, c] = levels(self.location(c, x).gather(1, choice)[:, 0] + noise[:, c])
        return x

    def integers(self, tables: Tables, positions: Tensor | None) -> JointColours:
        loc, base, coupling = (columns(t, positions) for t in (self.loc, self.spread_base(), self.coupling))
        return JointColours(
            self.order, tables.logistic.cpu().numpy(),
            nearest_scale(tables.inverse_scale, columns(self.log_sigma, positions)),
            loc.clip(-LOC_REACH, LOC_REACH), base.clip(*BASE_RANGE), coupling.clip(-COUPLING_REACH, COUPLING_REACH),
            weight_of(tables, columns(self.logits, positions)),
        )

    def spread_base(self) -> Tensor:
        """(B, K or 1, 3, h, w)"""
        return self.base.expand(len(self.loc), -1, 3, *self.loc.shape[3:])


class JointColours(Colours):
    """What each colour was says which component it is: ``weight`` (K, N) is that before the first."""

    _last: tuple[int, ByteMixture] | None = None  # the place that was asked for last, which the next one needs

    def mixture(self, place: int, earlier: Sequence[np.ndarray]) -> ByteMixture:
        weight = self.weight
        if place:
            known = self._last is not None and self._last[0] == place - 1
            before = self._last[1] if known and self._last else self.mixture(place - 1, earlier)
            weight = before.responsibilities(earlier[place - 1])
        found = self.components(place, earlier, weight)
        self._last = place, found
        return found

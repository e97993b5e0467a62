"""A mixture whose components span the colours."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from vdvae_codec.exact.cdf import STEPS, ByteMixture, Tables, on_grid, select, weight_of
from vdvae_codec.model.distributions.logistics import (
    BASE_RANGE,
    COUPLING_REACH,
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
    1 in place of K; coupling: (B, K, 3, h, w), c0, c1, c2; bits: of a sub-pixel, whose lower ones are dropped;
    coupling_steps: the coder rounds coupling to this part of 1.
    """

    logits: Tensor
    loc: Tensor
    log_sigma: Tensor
    base: Tensor
    coupling: Tensor
    order: tuple[int, int, int] = (0, 1, 2)
    bits: int = 8
    coupling_steps: int = 64

    def location(self, channel: int, x: Tensor) -> Tensor:
        place = self.order.index(channel)
        loc = self.loc[:, :, channel] + self.base[:, :, channel]  # (B, K, h, w)
        for earlier, c in zip(self.order[:place], ((), (0,), (1, 2))[place]):
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

    def on_grid(self) -> Self:
        return replace(
            self, loc=on_grid(self.loc, STEPS).clamp(-LOC_REACH, LOC_REACH),
            base=on_grid(self.base, STEPS).clamp(*BASE_RANGE),
            coupling=on_grid(self.coupling, self.coupling_steps).clamp(-COUPLING_REACH, COUPLING_REACH),
        )

    def integers(self, tables: Tables, channel: int, x: Tensor, positions: Tensor | None) -> ByteMixture:
        weight = weight_of(tables, select(self.logits, positions))
        for earlier in self.order[: self.order.index(channel)]:
            p = self.components(tables, earlier, weight, x, positions)
            weight = p.responsibilities(select(x[:, earlier, None], positions)[0])
        return self.components(tables, channel, weight, x, positions)

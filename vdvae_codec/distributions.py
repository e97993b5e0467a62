"""Float distributions for training and scoring: Gaussian KL and the discretised mixture of logistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_SIGMA_RANGE = (-3.0, 5.0)  # of a logistic component, sigma in pixel levels
Uniform = Callable[[Tensor], Tensor]  # numbers in 0..1 of the shape of a tensor (B, ...)


@dataclass
class Gaussian:
    """Diagonal Gaussian; both tensors (B, zdim, h, w), in units of z."""

    mean: Tensor
    log_sigma: Tensor

    def sample(self, temperature: float = 1.0) -> Tensor:
        """Draws z, with sigma times ``temperature``; 0 gives the mean."""
        return self.mean + torch.randn_like(self.mean) * (temperature * self.log_sigma.exp())


def gaussian_kl(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q || p) in nats per element, same shape as the means."""
    ratio = (2 * (q.log_sigma - p.log_sigma)).exp()
    distance = (q.mean - p.mean) ** 2 * (-2 * p.log_sigma).exp()
    return 0.5 * (ratio + distance - 1) - (q.log_sigma - p.log_sigma)


class Mixture(Protocol):
    """A distribution over the colours (B, 3, h, w) of pixels, by discretised logistics."""

    order: tuple[int, int, int]  # of the channels, as they are coded
    logits: Tensor  # (B, K, 3, h, w) or, of components that span the colours, (B, K, h, w)
    log_sigma: Tensor  # (B, K, 3, h, w), sigma in pixel levels

    def location(self, channel: int, x: Tensor) -> Tensor:
        """Component locations (B, K, h, w) of one channel, given the earlier channels of ``x`` (B, 3, h, w)."""

    def nll_nats(self, x: Tensor, channels: int = 3) -> Tensor:
        """-log p(x) in nats, (B, 1 or channels, h, w), of the first ``channels`` of x in the order of coding.

        ``x`` is (B, 3, h, w) in pixel levels 0..255, G, R, B.
        """

    def sample(self, temperature: float = 1.0, uniform: Uniform = torch.rand_like) -> Tensor:
        """Draws x, (B, 3, h, w) in pixel levels 0..255, G, R, B, with logits / temperature and sigma * temperature.

        0 gives the location of the most likely component. ``uniform`` is the source of chance.
        """


def logistic_mass(x: Tensor, loc: Tensor, log_sigma: Tensor, width: float = 1.0) -> Tensor:
    """Probability under logistics of the bin of the given ``width`` around x; the end bins of 0..255 are open."""
    inv_sigma = (-log_sigma).exp()
    lower = torch.where(x < 0.5, -1e5, x - width / 2)
    upper = torch.where(x > 255.5 - width, 1e5, x + width / 2)
    a, b = (lower - loc) * inv_sigma, (upper - loc) * inv_sigma
    # On the right of the centre use 1 - cdf, so that tails keep their precision.
    flip = a + b > 0
    a, b = torch.where(flip, -b, a), torch.where(flip, -a, b)
    return torch.sigmoid(b) - torch.sigmoid(a)


def logistic_noise(sigma: Tensor, uniform: Uniform) -> Tensor:
    u = uniform(sigma).clamp(1e-6, 1 - 1e-6)
    return sigma * (torch.log(u) - torch.log1p(-u))


def gumbel_argmax(logits: Tensor, temperature: float, uniform: Uniform) -> Tensor:
    """Draws a component of logits (B, K, ...): (B, 1, ...) int64."""
    gumbel = -torch.log(-torch.log(uniform(logits).clamp(1e-6, 1 - 1e-6)))
    return (logits + temperature * gumbel).argmax(1, keepdim=True)


@dataclass
class PixelMixture:
    """Discretised mixture of logistics with channel coupling (PixelCNN++, arXiv 1701.05517, eq. 1-3).

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
        """Component locations (B, K, h, w) of one channel, given the earlier channels of ``x`` (B, 3, h, w)."""
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
            loc = self.location(c, x).gather(1, choice[:, :, c])[:, 0]
            x[:, c] = (loc + noise[:, c]).round().clamp(0, 255)
        return x


@dataclass
class JointMixture:
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
            loc = self.location(c, x).gather(1, choice)[:, 0]
            x[:, c] = (loc + noise[:, c]).round().clamp(0, 255)
        return x

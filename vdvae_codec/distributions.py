"""Float distributions for training and scoring: Gaussian KL and the discretised mixture of logistics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_SIGMA_RANGE = (-3.0, 5.0)  # of a logistic component, sigma in pixel levels


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


@dataclass
class PixelMixture:
    """Discretised mixture of logistics with channel coupling (PixelCNN++, arXiv 1701.05517, eq. 1-3).

    The channels are coded in the order G, R, B: green predicts the others best. With ``e_c = x_c - base_c`` the
    locations of the later channels move by ``c0 e_g`` (red) and ``c1 e_g + c2 e_r`` (blue).

    logits, loc, log_sigma: (B, K, 3, h, w), loc and sigma in pixel levels, channels in G, R, B order;
    base: (B, 3, h, w) linear prediction in pixel levels, G, R, B; coupling: (B, 3, h, w).
    """

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

    def nll_nats(self, x: Tensor) -> Tensor:
        """-log p(x) in nats per sub-pixel, (B, 3, h, w), for ``x`` in pixel levels 0..255, G, R, B."""
        loc = torch.stack([self.location(c, x) for c in range(3)], 2)  # (B, K, 3, h, w)
        inv_sigma = (-self.log_sigma.clamp(*LOG_SIGMA_RANGE)).exp()
        x = x[:, None]
        lower = torch.where(x < 0.5, -1e5, x - 0.5)  # the end bins are open
        upper = torch.where(x > 254.5, 1e5, x + 0.5)
        a, b = (lower - loc) * inv_sigma, (upper - loc) * inv_sigma
        # On the right of the centre use 1 - cdf, so that tails keep their precision.
        flip = a + b > 0
        a, b = torch.where(flip, -b, a), torch.where(flip, -a, b)
        p = (F.softmax(self.logits, 1) * (torch.sigmoid(b) - torch.sigmoid(a))).sum(1)
        return -torch.log(p + 1e-12)

    def sample(self, temperature: float = 1.0) -> Tensor:
        """Draws x, (B, 3, h, w) in pixel levels 0..255, G, R, B, with logits / temperature and sigma * temperature.

        0 gives the location of the most likely component.
        """
        gumbel = -torch.log(-torch.log(torch.rand_like(self.logits).clamp(1e-6, 1 - 1e-6)))
        choice = (self.logits + temperature * gumbel).argmax(1, keepdim=True)  # (B, 1, 3, h, w)
        sigma = self.log_sigma.clamp(*LOG_SIGMA_RANGE).exp().gather(1, choice)[:, 0]
        u = torch.rand_like(sigma).clamp(1e-6, 1 - 1e-6)
        noise = temperature * sigma * (torch.log(u) - torch.log1p(-u))
        x = torch.zeros_like(self.base)
        for c in range(3):
            loc = self.location(c, x).gather(1, choice[:, :, c])[:, 0]
            x[:, c] = (loc + noise[:, c]).round().clamp(0, 255)
        return x

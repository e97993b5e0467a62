"""Discretised logistics (PixelCNN++, arXiv 1701.05517, eq. 1-3): what all mixtures over pixels share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from vdvae_codec.exact.cdf import ByteMixture, Tables, location_of

BASE_RANGE = (-512, 768)  # of linear predictions on the coder's grid, in pixel levels
COUPLING_REACH = 4
COUPLED = ((), (0,), (1, 2))  # which coupling moves the colour at each place by each of the earlier ones
Uniform = Callable[[Tensor], Tensor]  # numbers in 0..1 of the shape of a tensor (B, ...)


class Mixture(ABC):
    """A distribution over the colours (B, 3, h, w) of pixels, by mixtures of discretised logistics.

    ``order`` is that of the channels as they are coded; ``logits`` (B, K, 3, h, w) or, of components that span the
    colours, (B, K, h, w); ``log_sigma`` (B, K, 3, h, w), sigma in pixel levels.
    """

    order: tuple[int, int, int]
    logits: Tensor
    log_sigma: Tensor

    @abstractmethod
    def location(self, channel: int, x: Tensor) -> Tensor:
        """Component locations (B, K, h, w) of one channel, given the earlier channels of ``x`` (B, 3, h, w)."""

    @abstractmethod
    def nll_nats(self, x: Tensor, channels: int = 3) -> Tensor:
        """-log p(x) in nats, (B, 1 or channels, h, w), of the first ``channels`` of x in the order of coding.

        ``x`` is (B, 3, h, w) in pixel levels 0..255, G, R, B.
        """

    @abstractmethod
    def sample(self, temperature: float = 1.0, uniform: Uniform = torch.rand_like) -> Tensor:
        """Draws x, (B, 3, h, w) in pixel levels 0..255, G, R, B, with logits / temperature and sigma * temperature.

        0 gives the location of the most likely component. ``uniform`` is the source of chance.
        """

    @abstractmethod
    def integers(self, tables: Tables, positions: Tensor | None) -> Colours:
        """The distributions on the coder's grids at positions int64 (N,) of the flattened (B, h, w); None is all."""


class Colours(ABC):
    """Integer distributions over 0..255 of the colours of N pixels, in the order of coding.

    Arrays of numpy, colours in G, R, B order: scale, loc, base and coupling float32 (K, 3, N), where K may be 1
    in the last two. ``weight`` is int32.
    """

    def __init__(
        self, order: tuple[int, int, int], table: np.ndarray, scale: np.ndarray, loc: np.ndarray, base: np.ndarray,
        coupling: np.ndarray, weight: np.ndarray,
    ):
        self.order, self.table, self.scale, self.loc = order, table, scale, loc
        self.base, self.coupling, self.weight = base, coupling, weight

    def select(self, index: np.ndarray) -> Self:
        """Of the pixels ``index`` (n,) alone."""
        own = (t[..., index] for t in (self.scale, self.loc, self.base, self.coupling, self.weight))
        return type(self)(self.order, self.table, *own)

    @abstractmethod
    def mixture(self, place: int, earlier: Sequence[np.ndarray]) -> ByteMixture:
        """The colour that is coded at ``place``, given all earlier ones (N,) int32."""

    def components(self, place: int, earlier: Sequence[np.ndarray], weight: np.ndarray) -> ByteMixture:
        """Its mixture with the component weights (K, N) int32."""
        c = self.order[place]
        location = self.loc[:, c] + self.base[:, c]  # (K, N)
        for m, k in zip(range(place), COUPLED[place]):
            location = location + self.coupling[:, k] * (earlier[m].astype(np.float32) - self.base[:, self.order[m]])
        return ByteMixture(self.table, location_of(location), self.scale[:, c], weight)


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


def levels(x: Tensor) -> Tensor:
    """Whole pixel levels."""
    return x.round().clamp(0, 255)

"""The negative ELBO in nats, as a visitor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vdvae_codec.model.distributions.gaussian import Gaussian, gaussian_kl
from vdvae_codec.model.distributions.logistics import Mixture
from vdvae_codec.model.layers.base import Acts, PixelLayer, Visitor
from vdvae_codec.model.layers.latent import LatentLayer
from vdvae_codec.model.vdvae import VDVAE


class Elbo(Visitor):
    """Visitor that sums the negative ELBO: per image, nats of each latent layer (KL) and each pixel layer."""

    def __init__(self, acts: Acts):
        self.acts, self.dims = acts, 0  # dims: the sub-pixels that count
        self.kl_nats: list[Tensor] = []  # one (B, zdim) a latent layer
        self.nll_nats: list[Tensor] = []  # one (B,) a pixel layer

    def latent(self, layer: LatentLayer, p: Gaussian, posterior: Callable[[Acts], Gaussian]) -> Tensor:
        q = posterior(self.acts)
        active = layer.active[:, None, None]
        self.kl_nats.append((gaussian_kl(q, p) * active).sum((2, 3)))
        return torch.where(active, q.sample(), p.mean)

    def pixels(self, layer: PixelLayer, p: Mixture, x: Tensor) -> None:
        plane = layer.plane(x)
        self.nll_nats.append(p.nll_nats(plane, layer.channels).sum((1, 2, 3)))
        self.dims += plane[:, : layer.channels].numel()


def elbo(model: VDVAE, x: Tensor) -> Elbo:
    """One walk over images ``x`` (B, 3, H, W); the terms are in the returned visitor, in nats."""
    visit = Elbo(model.encode(x))
    model.walk(x, visit)
    return visit

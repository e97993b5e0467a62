"""The model: one top-down list of layers and the one function that walks it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn as nn
from torch import Tensor

from vdvae_codec.config import ModelConfig
from vdvae_codec.distributions import Gaussian, Mixture, gaussian_kl
from vdvae_codec.errors import ModelError
from vdvae_codec.model.encoder import Encoder
from vdvae_codec.model.layers import Acts, LatentLayer, Layer, PixelLayer, State, Visitor
from vdvae_codec.model.published import PublishedEncoder, published_layers


class VDVAE(nn.Module):
    """A very deep VAE (arXiv 2011.10650) whose list of layers may interleave latents and pixels.

    Fully convolutional: images are (B, 3, H, W) float32 in pixel levels 0..255, channels G, R, B, H and W multiples of
    ``config.max_stride``; or, as published, of ``config.side``.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.bias = nn.Parameter(torch.zeros(1, config.stages[0].width, 1, 1))
        self.encoder: nn.Module | None = None
        if config.side:
            self.encoder, self.layers = PublishedEncoder(config), nn.ModuleList(published_layers(config))
            return
        if any(s.latents for s in config.stages):
            self.encoder = Encoder(config)
        depth = sum(2 * s.latents + sum(s.blocks) for s in config.stages)
        layers: list[Layer] = []
        known: list[tuple[int, tuple[int, int]]] = []  # (stride, offset) of the pixel layers so far
        width = config.stages[0].width
        for s in config.stages:
            for _ in range(s.latents):
                layers.append(LatentLayer(s, width, depth**-0.5))
                width = s.width
            for offset, blocks in zip(s.pixels, s.blocks):
                context = sorted({(dy % s.stride, dx % s.stride) for _, (dy, dx) in known})
                layers.append(PixelLayer(
                    s, width, depth**-0.5, offset, blocks, context, config.mixtures, config.predictor, config.joint,
                    config.channels,
                ))
                known.append((s.stride, offset))
                width = s.width
        self.layers = nn.ModuleList(layers)

    def walk(self, x: Tensor, visit: Visitor) -> None:
        """Walks the layers from the top down. ``x`` is the image as far as it is known; visitors may fill it in.

        Raises ModelError if the model is for images of another size.
        """
        stride, side = self.config.max_stride, self.config.side
        if side and x.shape[2:] != (side, side):
            raise ModelError(f"this model is for images of {side}x{side}, not of {x.shape[2]}x{x.shape[3]}")
        h = self.bias.expand(x.shape[0], -1, x.shape[2] // stride, x.shape[3] // stride)
        state = State(h, stride, x)
        for layer in self.layers:
            state = layer(state, visit)


class Elbo:
    """Visitor that sums the negative ELBO: per image, nats of each latent layer (KL) and each pixel layer."""

    def __init__(self, acts: Acts):
        self.acts, self.dims = acts, 0  # dims: the sub-pixels that count
        self.kl_nats: list[Tensor] = []  # one (B, zdim) a latent layer
        self.nll_nats: list[Tensor] = []  # one (B,) a pixel layer

    def latent(self, layer: LatentLayer, p: Gaussian, posterior: Callable[[Acts], Gaussian]) -> Tensor:
        q = posterior(self.acts)
        alive = layer.alive[:, None, None]
        self.kl_nats.append((gaussian_kl(q, p) * alive).sum((2, 3)))
        return torch.where(alive, q.sample(), p.mean)

    def pixels(self, layer: PixelLayer, p: Mixture, x: Tensor) -> None:
        plane = layer.plane(x)
        self.nll_nats.append(p.nll_nats(plane, layer.channels).sum((1, 2, 3)))
        self.dims += plane[:, : layer.channels].numel()


class Sample:
    """Visitor that draws from the prior, at a temperature: sigma is multiplied by it (VDVAE, arXiv 2011.10650)."""

    def __init__(self, temperature: float = 1.0):
        self.temperature = temperature

    def latent(self, layer: LatentLayer, p: Gaussian, posterior: Callable[[Acts], Gaussian]) -> Tensor:
        return torch.where(layer.alive[:, None, None], p.sample(self.temperature), p.mean)

    def pixels(self, layer: PixelLayer, p: Mixture, x: Tensor) -> None:
        drawn = p.sample(self.temperature)
        layer.plane(x).copy_(drawn if layer.channels == 3 else drawn[:, p.order[:1]])


class Reconstruct(Sample):
    """Visitor that keeps what layers of at least a ``stride`` say of an image, and draws all that is finer.

    Kept latents are the posterior's means. Kept pixel layers are those of ``known`` (B, 3, H, W); None draws them all.
    """

    def __init__(self, acts: Acts, stride: int, known: Tensor | None, temperature: float):
        super().__init__(temperature)
        self.acts, self.stride, self.known = acts, stride, known

    def latent(self, layer: LatentLayer, p: Gaussian, posterior: Callable[[Acts], Gaussian]) -> Tensor:
        if layer.stride < self.stride:
            return super().latent(layer, p, posterior)
        return torch.where(layer.alive[:, None, None], posterior(self.acts).mean, p.mean)

    def pixels(self, layer: PixelLayer, p: Mixture, x: Tensor) -> None:
        if self.known is None or layer.stride < self.stride:
            super().pixels(layer, p, x)
        else:
            layer.plane(x).copy_(layer.plane(self.known))


def elbo(model: VDVAE, x: Tensor) -> Elbo:
    """One walk over images ``x`` (B, 3, H, W); the terms are in the returned visitor, in nats."""
    visit = Elbo(model.encoder(x) if model.encoder is not None else {})
    model.walk(x, visit)
    return visit

"""Latent layers: p(z_l | z_<l) and q(z_l | z_<l, x), diagonal Gaussians (VDVAE, arXiv 2011.10650, figure 3)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from vdvae_codec.errors import ConfigError
from vdvae_codec.exact.activations import HARDSWISH
from vdvae_codec.model.blocks import Block, Bottleneck, Conv, Gives, full
from vdvae_codec.model.distributions.gaussian import MIDDLE, Gaussian
from vdvae_codec.model.layers.base import Acts, Layer, Offset, Place, State, Visitor

LOG_SIGMA_REACH = 8.0  # beyond that, exp overflows in the KL


@dataclass(frozen=True)
class LatentConfig:
    """``repeat`` latent layers, one below the other."""

    KIND: ClassVar[str] = "latent"

    stride: int
    width: int
    bottleneck: int  # channels inside residual blocks
    zdim: int  # channels of each latent
    repeat: int = 1
    kernel: int = 3  # of the convolutions over neighbours

    def __post_init__(self) -> None:
        if min(self.width, self.bottleneck, self.zdim, self.repeat) < 1:
            raise ConfigError(f"{self.KIND} at stride {self.stride}: sizes must be positive")

    @property
    def depth(self) -> int:
        return 2

    @property
    def holds(self) -> tuple[Offset, ...]:
        return ()

    @property
    def needs_encoder(self) -> bool:
        return True

    def single(self) -> list[Self]:
        return [replace(self, repeat=1)] * self.repeat


class LatentLayer(Layer):
    """A prior and a posterior, both bottlenecks over the shared state, and what z does to it."""

    Config = LatentConfig
    grid_exponent: Tensor
    active: Tensor

    def __init__(self, config: LatentConfig, place: Place, *, act: str = HARDSWISH):
        super().__init__(config, place)
        width, middle, self.zdim = config.width, config.bottleneck, config.zdim
        shape, parameters = {"act": act, "kernel": config.kernel}, Gives.PARAMETERS
        self.prior = Bottleneck(width, middle, 2 * self.zdim + width, gives=parameters, **shape)  # type: ignore[arg-type]
        self.posterior = Bottleneck(2 * width, middle, 2 * self.zdim, gives=parameters, **shape)  # type: ignore[arg-type]
        self.z_proj = Conv(self.zdim, width, 1, gain=place.gain)
        self.resnet = Block(width, middle, place.gain, **shape)  # type: ignore[arg-type]
        # What coding needs to know, found on data when a model is exported: z = k 2^-grid_exponent, k in -128..127, and
        # which channels carry information; the others stay at the prior's mean.
        self.register_buffer("grid_exponent", torch.zeros((), dtype=torch.int32))
        self.register_buffer("active", torch.ones(self.zdim, dtype=torch.bool))
        with torch.no_grad():
            self.prior.c4.weight.zero_()
            self.posterior.c4.bias[self.zdim :].fill_(-1.0)  # type: ignore[index]

    def set_grid(self, exponent: int) -> None:
        """Latents are coded as multiples of 2^-exponent, which ``z_proj`` takes in as they are."""
        self.grid_exponent.fill_(exponent)
        self.z_proj.takes = (exponent, -MIDDLE, MIDDLE - 1)

    def forward(self, state: State, visit: Visitor) -> State:
        h = self.enter(state)
        p_mean, p_log_sigma, delta = self.prior(h).split([self.zdim, self.zdim, h.shape[1]], 1)

        def posterior(acts: Acts) -> Gaussian:
            return gaussian(*self.posterior(torch.cat([h, acts[self.stride]], 1)).chunk(2, 1))

        z = visit.latent(self, gaussian(p_mean, p_log_sigma), posterior)
        return State(self.resnet(h + delta + self.z_proj(z)), self.stride, state.x)


def gaussian(mean: Tensor, log_sigma: Tensor) -> Gaussian:
    return Gaussian(full(mean), full(log_sigma).clamp(-LOG_SIGMA_REACH, LOG_SIGMA_REACH))

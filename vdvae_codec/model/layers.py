"""The two kinds of layers, and the state that they share.

A layer takes the state, hands what it knows to the visitor, and leaves the state richer for the next layer. It does
not know whether it is trained, scored, sampled, or coded: that is the visitor's affair.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn as nn
from torch import Tensor

from vdvae_codec.config import StageConfig
from vdvae_codec.distributions import LOG_SIGMA_RANGE, Gaussian, JointMixture, Mixture, PixelMixture
from vdvae_codec.model.blocks import HARDSWISH, Bottleneck, Conv, residual, upsample

PIXEL_EXPONENT = 4  # predictors take pixels less 128 in sixteenths, which slows their learning
Offset = tuple[int, int]
Acts = dict[int, Tensor]


@dataclass
class State:
    """What the layers share: features (B, C, H/stride, W/stride) and the image, known as far as it is coded.

    ``x`` is (B, 3, H, W) float32 in pixel levels, channels G, R, B.
    """

    h: Tensor
    stride: int
    x: Tensor


class Visitor(Protocol):
    """What happens at each layer of the walk."""

    def latent(self, layer: LatentLayer, p: Gaussian, posterior: Callable[[Acts], Gaussian]) -> Tensor:
        """Returns z (B, zdim, h, w), given the prior; ``posterior`` computes q from the encoder's activations."""

    def pixels(self, layer: PixelLayer, p: Mixture, x: Tensor) -> None:
        """Makes ``layer.plane(x)`` valid, if it is not yet."""


class Layer(nn.Module):
    stride: int

    def enter(self, state: State) -> Tensor:
        """The state's features at this layer's stride."""
        h = upsample(state.h, state.stride // self.stride)
        return h if self.widen is None else self.widen(h)

    def __init__(self, stage: StageConfig, width: int):
        super().__init__()
        self.stride = stage.stride
        self.widen = None if width == stage.width else Conv(width, stage.width, 1)

    def forward(self, state: State, visit: Visitor) -> State:
        raise NotImplementedError


class LatentLayer(Layer):
    """p(z_l | z_<l) and q(z_l | z_<l, x), diagonal Gaussians (VDVAE, arXiv 2011.10650, figure 3)."""

    grid_exponent: Tensor
    alive: Tensor

    def __init__(self, stage: StageConfig, width: int, gain: float, *, act: str = HARDSWISH, kernel: int = 3):
        super().__init__(stage, width)
        self.zdim = stage.zdim
        outputs = 2 * stage.zdim
        self.prior = Bottleneck(stage.width, stage.bottleneck, outputs + stage.width, act=act, kernel=kernel)
        self.posterior = Bottleneck(2 * stage.width, stage.bottleneck, outputs, act=act, kernel=kernel)
        self.z_proj = Conv(stage.zdim, stage.width, 1, gain=gain)
        self.resnet = residual(stage, gain, act=act, kernel=kernel)
        # What coding needs to know, found on data when a model is exported: z = k 2^-grid_exponent, k in -128..127, and
        # which channels carry information; the others stay at the prior's mean.
        self.register_buffer("grid_exponent", torch.zeros((), dtype=torch.int32))
        self.register_buffer("alive", torch.ones(stage.zdim, dtype=torch.bool))
        with torch.no_grad():
            self.prior.c4.weight.zero_()
            self.posterior.c4.bias[stage.zdim :].fill_(-1.0)  # type: ignore[index]

    def forward(self, state: State, visit: Visitor) -> State:
        h = self.enter(state)
        p_mean, p_log_sigma, delta = self.prior(h).split([self.zdim, self.zdim, h.shape[1]], 1)

        def posterior(acts: Acts) -> Gaussian:
            return gaussian(*self.posterior(torch.cat([h, acts[self.stride]], 1)).chunk(2, 1))

        z = visit.latent(self, gaussian(p_mean, p_log_sigma), posterior)
        return State(self.resnet(h + delta + self.z_proj(z)), self.stride, state.x)


def gaussian(mean: Tensor, log_sigma: Tensor) -> Gaussian:
    return Gaussian(full(mean), full(log_sigma).clamp(-8, 8))  # beyond that, exp overflows in the KL


def full(x: Tensor) -> Tensor:
    """At least single precision."""
    return x if x.dtype == torch.float64 else x.float()


class PixelLayer(Layer):
    """p(x_g | z, x_<g) for the group of sub-pixels at one offset of a grid.

    Of images with one of its ``channels`` the others copy the first in the order of coding.

    A linear predictor over the known pixels around gives the base of the prediction, or one for each component if they
    are ``joint``; the network sees the known pixels relative to the mean base and corrects them.
    """

    COUPLING = (0.9, 0.45, 0.45)  # where training starts
    SIGMAS = (2.0, 6.0, 18.0)
    FREE_GAIN = 300.0  # of locations without a base: they span all levels, and latents starve while these are slow

    def __init__(self, stage: StageConfig, width: int, gain: float, offset: Offset, blocks: int, context: list[Offset],
                 mixtures: int, kernel: int, joint: bool, channels: int = 3):
        super().__init__(stage, width)
        self.offset, self.context, self.mixtures, self.joint = offset, context, mixtures, joint
        self.channels = channels
        bases = mixtures if joint else 1
        self.predictor = Conv(3 * len(context), 3 * bases, kernel, bias=False) if context else None
        self.embed = Conv(3 * len(context) + 3, stage.width, 3) if context else None
        self.blocks = nn.Sequential(*[residual(stage, gain) for _ in range(blocks)])
        logits = mixtures if joint else 3 * mixtures
        scales = logits + 3 * mixtures  # where the scales begin, behind logits and locations
        coupling = scales + 3 * mixtures
        self.head = Conv(stage.width, coupling + (3 * mixtures if joint else 3), 1, act=HARDSWISH, gain=0.1)
        with torch.no_grad():
            bias = self.head.bias
            assert bias is not None
            sigmas = torch.tensor(self.SIGMAS).log()[torch.arange(mixtures) % len(self.SIGMAS)]
            bias[scales:coupling] = sigmas.repeat_interleave(3)
            bias[coupling:] = torch.tensor(self.COUPLING).repeat(mixtures if joint else 1)
            if self.predictor is None:
                self.head.weight[logits:scales].mul_(self.FREE_GAIN / self.stride)
            else:
                start = nearest_average(self.stride, offset, context, kernel)
                self.predictor.weight.copy_(2**PIXEL_EXPONENT * start.repeat(bases, 1, 1, 1))

    def plane(self, x: Tensor, offset: Offset | None = None) -> Tensor:
        """This layer's sub-pixels (or those at another offset) of x: (B, C, H, W) -> (B, C, H/stride, W/stride)."""
        dy, dx = offset or self.offset
        return x[:, :, dy :: self.stride, dx :: self.stride]

    def bases(self, known: Tensor) -> Tensor:
        """Linear predictions (B, 1 or K, 3, h, w) in pixel levels from the known planes (B, 3 n, h, w), in full
        precision."""
        assert self.predictor is not None
        with torch.autocast(known.device.type, enabled=False):
            bases = self.predictor((known - 128) * 2.0**-PIXEL_EXPONENT) + 128
            split: Tensor = bases.view(len(bases), -1, 3, *bases.shape[2:])
            return split

    def forward(self, state: State, visit: Visitor) -> State:
        h = self.enter(state)
        b, _, height, width = h.shape
        if self.context:
            known = torch.cat([self.plane(state.x, o) for o in self.context], 1)  # (B, 3 n, h, w)
            bases = self.bases(known)
            base = mean(bases)
            relative = known - base.repeat(1, len(self.context), 1, 1)
            h = h + self.embed(torch.cat([relative * 2.0**-4, (base - 128) * 2.0**-6], 1))  # type: ignore[misc]
        else:
            bases = torch.full((b, 1, 3, height, width), 128.0, device=h.device)
        h = self.blocks(h)
        visit.pixels(self, self.mixture(full(self.head(h)).contiguous(), bases), state.x)
        return State(h, self.stride, state.x)

    def mixture(self, out: Tensor, bases: Tensor) -> Mixture:
        """The distribution that the head's channels ``out`` (B, C, h, w) describe."""
        b, _, height, width = out.shape
        k = self.mixtures
        if self.joint:
            parts = out[:, k:].view(b, 3, k, 3, height, width)
            loc, log_sigma, coupling = parts.unbind(1)  # each (B, K, 3, h, w)
            return JointMixture(out[:, :k], loc * self.stride, log_sigma.clamp(*LOG_SIGMA_RANGE), bases, coupling)
        parts, coupling = out[:, : 9 * k].view(b, 3, k, 3, height, width), out[:, 9 * k :]
        logits, loc, log_sigma = parts.unbind(1)
        return PixelMixture(logits, loc * self.stride, log_sigma, bases[:, 0], coupling)


def mean(bases: Tensor) -> Tensor:
    """Over dimension 1, in a fixed order of additions, then one product: the same on every machine."""
    first, *others = bases.unbind(1)
    for other in others:
        first = first + other
    return first * (1 / bases.shape[1]) if others else first


def nearest_average(stride: int, offset: Offset, context: list[Offset], kernel: int) -> Tensor:
    """Weights (3, 3 n, k, k) that average the nearest known pixels around the predicted one, channel by channel."""
    weight = torch.zeros(3, len(context), 3, kernel, kernel)
    radius = kernel // 2
    places = [
        (math.hypot(stride * i + o[0] - offset[0], stride * j + o[1] - offset[1]), n, i + radius, j + radius)
        for n, o in enumerate(context)
        for i in range(-radius, radius + 1)
        for j in range(-radius, radius + 1)
    ]
    nearest = [p for p in places if p[0] < min(places)[0] + 1e-6]
    for _, n, i, j in nearest:
        for c in range(3):
            weight[c, n, c, i, j] = 1 / len(nearest)
    return weight.reshape(3, 3 * len(context), kernel, kernel)

"""Phase layers: p(x_g | z, x_<g) for the pixels at one offset of a grid; at stride 1, for all pixels at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn as nn
from torch import Tensor

from vdvae_codec.errors import ConfigError
from vdvae_codec.exact.activations import HARDSWISH
from vdvae_codec.exact.cdf import LOG_SIGMA_RANGE
from vdvae_codec.model.blocks import Block, Conv, Gives, full
from vdvae_codec.model.distributions.joint import JointMixture
from vdvae_codec.model.distributions.logistics import Mixture
from vdvae_codec.model.distributions.separate import SeparateMixture
from vdvae_codec.model.layers.base import Offset, PixelLayer, Place, State, Visitor

PIXEL_EXPONENT = 4  # predictors take pixels less 128 in sixteenths, which slows their learning
PIXELS = (PIXEL_EXPONENT, -128, 127)  # their grid: pixels as they are
COUPLING = (0.9, 0.45, 0.45)  # where training starts
SIGMAS = (2.0, 6.0, 18.0)
FREE_GAIN = 300.0  # of locations without a base: they span all levels, and latents starve while these are slow


@dataclass(frozen=True)
class PhaseConfig:
    """A phase layer for each of the ``offsets`` (dy, dx), in the order in which they are coded."""

    KIND: ClassVar[str] = "phase"

    stride: int
    width: int
    bottleneck: int  # channels inside residual blocks
    offsets: tuple[Offset, ...]
    blocks: int  # residual blocks in front of the head
    mixtures: int  # logistic components
    joint: bool = False  # whether components span the colours, each with linear predictors of its own
    predictor: int = 5  # kernel size of the linear predictors

    def __post_init__(self) -> None:
        if any(not 0 <= d < self.stride for offset in self.offsets for d in offset):
            raise ConfigError(f"{self.KIND} at stride {self.stride}: an offset lies outside the grid step")
        if self.mixtures < 1 or self.predictor % 2 == 0:
            raise ConfigError(f"{self.KIND} at stride {self.stride}: mixtures must be positive, predictor odd")

    @property
    def depth(self) -> int:
        return self.blocks

    @property
    def holds(self) -> tuple[Offset, ...]:
        return self.offsets

    @property
    def needs_encoder(self) -> bool:
        return False

    def single(self) -> list[Self]:
        return [replace(self, offsets=(offset,)) for offset in self.offsets]


class PhaseLayer(PixelLayer):
    """One group of pixels, given the state and all pixels that earlier layers hold.

    A linear predictor over the known pixels around gives the base of the prediction, or one for each component if they
    are ``joint``; the network sees the known pixels relative to the mean base and corrects them. Where none are known,
    bases are the middle level, and the locations of joint components: a coupling of what a colour is beyond its own
    component's location is neither steep nor tied to that location (docs/research-log.md).
    """

    Config = PhaseConfig

    def __init__(self, config: PhaseConfig, place: Place):
        super().__init__(config, place)
        (self.offset,) = config.offsets
        self.mixtures, self.joint, self.channels = config.mixtures, config.joint, place.channels
        k, stride, width = config.mixtures, config.stride, config.width
        self.context = sorted({(dy % stride, dx % stride) for _, (dy, dx) in place.known})
        context = 3 * len(self.context)
        bases = k if self.joint else 1
        self.predictor = self.embed = None
        if context:
            self.predictor = Conv(
                context, 3 * bases, config.predictor, bias=False, takes=PIXELS, gives=Gives.PARAMETERS
            )
            self.embed = Conv(context + 3, width, 3)
        self.blocks = nn.Sequential(*[Block(width, config.bottleneck, place.gain) for _ in range(config.blocks)])
        logits = k if self.joint else 3 * k
        scales = logits + 3 * k  # where the scales begin, behind logits and locations
        coupling = scales + 3 * k
        outputs = coupling + (3 * k if self.joint else 3)
        self.head = Conv(width, outputs, 1, act=HARDSWISH, gain=0.1, gives=Gives.PARAMETERS)
        with torch.no_grad():
            bias = self.head.bias
            assert bias is not None
            bias[scales:coupling] = torch.tensor(SIGMAS).log()[torch.arange(k) % len(SIGMAS)].repeat_interleave(3)
            bias[coupling:] = torch.tensor(COUPLING).repeat(k if self.joint else 1)
            if self.predictor is None:
                self.head.weight[logits:scales].mul_(FREE_GAIN / stride)
            else:
                start = nearest_average(stride, self.offset, self.context, config.predictor)
                self.predictor.weight.copy_(2**PIXEL_EXPONENT * start.repeat(bases, 1, 1, 1))

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
        if self.embed is None:
            bases = torch.full((b, 1, 3, height, width), 128.0, device=h.device)
        else:
            known = torch.cat([self.plane(state.x, o) for o in self.context], 1)  # (B, 3 n, h, w)
            bases = self.bases(known)
            base = mean(bases)
            relative = known - base.repeat(1, len(self.context), 1, 1)
            h = h + self.embed(torch.cat([relative * 2.0**-4, (base - 128) * 2.0**-6], 1))
        h = self.blocks(h)
        with torch.autocast(h.device.type, enabled=False):
            out = self.head(full(h))
        visit.pixels(self, self.mixture(out.contiguous(), bases), state.x)
        return State(h, self.stride, state.x)

    def mixture(self, out: Tensor, bases: Tensor) -> Mixture:
        """The distribution that the head's channels ``out`` (B, C, h, w) describe."""
        b, _, height, width = out.shape
        k = self.mixtures
        if self.joint:
            parts = out[:, k:].view(b, 3, k, 3, height, width)
            loc, log_sigma, coupling = parts.unbind(1)  # each (B, K, 3, h, w)
            loc = loc * self.stride
            if self.predictor is None:
                bases, loc = bases + loc, torch.zeros_like(loc)
            return JointMixture(out[:, :k], loc, log_sigma.clamp(*LOG_SIGMA_RANGE), bases, coupling)
        parts, coupling = out[:, : 9 * k].view(b, 3, k, 3, height, width), out[:, 9 * k :]
        logits, loc, log_sigma = parts.unbind(1)
        return SeparateMixture(logits, loc * self.stride, log_sigma, bases[:, 0], coupling)


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

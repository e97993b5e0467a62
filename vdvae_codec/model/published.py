"""The VDVAE of the paper and of OpenAI's code (arXiv 2011.10650; github.com/openai/vdvae), as a case of our layer list.

It differs from this package's own models by gelu, 1x1 kernels where the grid is a point, features learned for each
position at the start of a stage, a convolutional encoder down to one point, and one pixel layer for the whole image.
Its images have one size, ``config.side``.
"""

from __future__ import annotations

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vdvae_codec.config import ModelConfig, StageConfig
from vdvae_codec.distributions import JointMixture
from vdvae_codec.model.blocks import GELU, Block, Conv, Tanh, pool, upsample
from vdvae_codec.model.layers import LatentLayer, Layer, PixelLayer, State, Visitor, full

LARGEST_START = 64  # sides of grids that start from learned features ("no_bias_above")
UNIT = 127.5  # pixel levels in which the output's mixtures are given, and of their centre
ORDER = (1, 0, 2)  # colours are coded as R, G, B, while ours begin with G
COUPLING_STEPS = 2**12  # as the exact tanh gives it


def kernel(config: ModelConfig, stage: StageConfig) -> int:
    return 3 if config.side // stage.stride > 2 else 1


class PublishedEncoder(nn.Module):
    """x (B, 3, H, W) in pixel levels -> {stride: activations (B, width, H/stride, W/stride)}."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.mean, self.std = config.mean, config.std
        self.stages = config.stages[::-1]  # fine to coarse
        self.in_conv = Conv(3, self.stages[0].width, 3)
        gain = sum(s.encoder_blocks for s in self.stages) ** -0.5
        self.enc_blocks = nn.ModuleList(
            Block(s.width, s.bottleneck, gain, act=GELU, kernel=kernel(config, s))
            for s in self.stages for _ in range(s.encoder_blocks)
        )

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        acts: dict[int, Tensor] = {}
        blocks = iter(self.enc_blocks)
        h = self.in_conv((x - self.mean) / self.std)
        for stage, coarser in zip(self.stages, (*self.stages[1:], None)):
            for _ in range(stage.encoder_blocks - (coarser is not None)):
                h = next(blocks)(h)
            acts[stage.stride] = h
            if coarser is not None:
                h = pool(next(blocks)(h), coarser.stride // stage.stride)
                h = F.pad(h, (0, 0, 0, 0, 0, coarser.width - h.shape[1]))
        return acts


class PublishedLatentLayer(LatentLayer):
    """A latent layer; the ``first`` of a stage adds features that are learned for each position."""

    def __init__(self, config: ModelConfig, stage: StageConfig, gain: float, first: bool):
        super().__init__(stage, stage.width, gain, act=GELU, kernel=kernel(config, stage))
        self.width, side = stage.width, config.side // stage.stride
        started = first and stage is not config.stages[0] and side <= LARGEST_START
        self.start = nn.Parameter(torch.zeros(1, stage.width, side, side)) if started else None

    def enter(self, state: State) -> Tensor:
        h = upsample(state.h, state.stride // self.stride)[:, : self.width]
        return h if self.start is None else h + self.start


class PublishedPixelLayer(PixelLayer):
    """p(x | z) of all pixels: a mixture whose components span the colours."""

    def __init__(self, config: ModelConfig):
        stage = config.stages[-1]
        Layer.__init__(self, stage, stage.width)
        self.offset, self.context, self.mixtures, self.bits = (0, 0), [], config.mixtures, config.bits
        self.channels = config.channels
        self.gain = nn.Parameter(torch.ones(1, stage.width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, stage.width, 1, 1))
        self.head = Conv(stage.width, 10 * config.mixtures, 1)
        self.tanh = Tanh()

    def forward(self, state: State, visit: Visitor) -> State:
        h = self.enter(state)
        b, _, height, width = h.shape
        out = full(self.head(h * self.gain + self.bias)).contiguous()
        logits, rest = out[:, : self.mixtures], out[:, self.mixtures :]
        rest = rest.reshape(b, 3, 3, self.mixtures, height, width).transpose(1, 3)  # (B, K, parameter, R G B, h, w)
        mean, log_scale, coupling = rest.unbind(2)
        loc = (mean * UNIT)[:, :, [1, 0, 2]]
        log_sigma = (log_scale.clamp(min=-7) + math.log(UNIT))[:, :, [1, 0, 2]]
        base = torch.full_like(loc[:, :1, :, :1, :1], UNIT)
        p = JointMixture(logits, loc, log_sigma, base, self.tanh(coupling), ORDER, self.bits, COUPLING_STEPS)
        visit.pixels(self, p, state.x)
        return State(h, self.stride, state.x)


def published_layers(config: ModelConfig) -> list[Layer]:
    gain = sum(s.latents for s in config.stages) ** -0.5
    latents = [PublishedLatentLayer(config, s, gain, n == 0) for s in config.stages for n in range(s.latents)]
    return [*latents, PublishedPixelLayer(config)]

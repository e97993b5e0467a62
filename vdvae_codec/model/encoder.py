"""The bottom-up network: activations of the image at every stride that has latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vdvae_codec.errors import ConfigError
from vdvae_codec.model.blocks import Block, Conv, pool


@dataclass(frozen=True)
class EncoderStage:
    """Residual blocks at one stride."""

    stride: int
    width: int
    bottleneck: int
    blocks: int


@dataclass(frozen=True)
class EncoderConfig:
    """What every kind of encoder has: stages from coarse to fine, as the layers are listed."""

    stages: tuple[EncoderStage, ...]

    def __post_init__(self) -> None:
        strides = [stage.stride for stage in self.stages]
        if not strides or strides != sorted(set(strides), reverse=True):
            raise ConfigError(f"encoder: stages must go from coarse to fine, one a stride: {strides}")


@dataclass(frozen=True)
class ResidualConfig(EncoderConfig):
    """``[encoder]`` of the kind "residual"."""

    KIND: ClassVar[str] = "residual"


class ResidualEncoder(nn.Module):
    """x (B, 3, H, W) in pixel levels -> {stride: activations (B, width, H/stride, W/stride)}."""

    Config = ResidualConfig

    def __init__(self, config: ResidualConfig):
        super().__init__()
        stages = config.stages[::-1]  # fine to coarse
        gain = sum(s.blocks for s in stages) ** -0.5 if any(s.blocks for s in stages) else 1.0
        self.strides = [s.stride for s in stages]
        self.stem = Conv(3 * stages[0].stride ** 2, stages[0].width, 3)
        self.stages = nn.ModuleList()
        self.widen = nn.ModuleList()
        width = stages[0].width
        for s in stages:
            self.widen.append(nn.Identity() if s.width == width else Conv(width, s.width, 1))
            self.stages.append(nn.Sequential(*[Block(s.width, s.bottleneck, gain) for _ in range(s.blocks)]))
            width = s.width

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        acts: dict[int, Tensor] = {}
        stride = self.strides[0]
        h = self.stem(F.pixel_unshuffle((x - 128) * 2.0**-6, stride))
        for next_stride, widen, blocks in zip(self.strides, self.widen, self.stages):
            h = blocks(widen(pool(h, next_stride // stride)))
            stride = next_stride
            acts[stride] = h
        return acts

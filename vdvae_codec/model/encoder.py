"""The bottom-up network: activations of the image at every stride that has latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vdvae_codec.errors import ConfigError
from vdvae_codec.exact.activations import HARDSWISH
from vdvae_codec.model.blocks import Block, Conv, cells, full, pool


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

    COVERS: ClassVar[bool] = False  # whether images need not be whole numbers of grid steps
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
        h = full(self.stem(F.pixel_unshuffle((x - 128) * 2.0**-6, stride)))
        for next_stride, widen, blocks in zip(self.strides, self.widen, self.stages):
            h = blocks(full(widen(pool(h, next_stride // stride))))
            stride = next_stride
            acts[stride] = h
        return acts


@dataclass(frozen=True)
class StyleConfig(EncoderConfig):
    """``[encoder]`` of the kind "style": one stage, ``bottleneck`` channels in its convolutions."""

    KIND: ClassVar[str] = "style"
    COVERS: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.stages) != 1 or self.stages[0].stride < POOLED:
            raise ConfigError(f"encoder: style has one stage, of a stride of at least {POOLED}")


POOLED = 8  # stride of the features that are pooled
CURVATURE = 32  # pixel levels of the second differences that are told apart


class StyleEncoder(nn.Module):
    """How the image was made, a vector a cell: mean and spread of local features.

    x (B, 3, H, W) in pixel levels -> {stride: (B, width, cells, cells)}; cells that H and W do not fill are continued
    periodically, which keeps the statistics.
    """

    Config = StyleConfig

    def __init__(self, config: StyleConfig):
        super().__init__()
        (stage,) = config.stages
        self.stride, middle = stage.stride, stage.bottleneck
        self.stem = Conv(4 * 9, middle, 3)
        self.c1 = Conv(4 * middle, middle, 1, act=HARDSWISH)
        self.c2 = Conv(4 * middle, middle, 1, act=HARDSWISH)
        self.blocks = nn.Sequential(*[Conv(middle, middle, 3, act=HARDSWISH) for _ in range(stage.blocks)])
        self.pooled = Conv(2 * middle, stage.width, 1)

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        x = covering(x, self.stride)
        curvature = second_differences(x).clamp(-CURVATURE, CURVATURE)
        h = self.stem(F.pixel_unshuffle(torch.cat([(x - 128) * 2.0**-6, curvature * 2.0**-3], 1), 2))
        h = self.c1(F.pixel_unshuffle(h, 2))
        h = self.blocks(self.c2(F.pixel_unshuffle(h, 2)))  # (B, middle, H/8, W/8)
        h = torch.cat([pool(h, self.stride // POOLED), pool(h.abs(), self.stride // POOLED)], 1)
        return {self.stride: self.pooled(h)}


def covering(x: Tensor, multiple: int) -> Tensor:
    """x (B, C, H, W) continued periodically to multiples of some pixels."""
    for dim in (2, 3):
        side = x.shape[dim]
        if side % multiple:
            x = x.index_select(dim, torch.arange(cells(side, multiple) * multiple, device=x.device) % side)
    return x


def second_differences(x: Tensor) -> Tensor:
    """Across and down, (B, C, H, W) -> (B, 2 C, H, W); the border is repeated."""
    p = F.pad(x, (1, 1, 1, 1), mode="replicate")
    across = p[:, :, 1:-1, 2:] + p[:, :, 1:-1, :-2] - 2 * x
    down = p[:, :, 2:, 1:-1] + p[:, :, :-2, 1:-1] - 2 * x
    return torch.cat([across, down], 1)

"""The bottom-up network: activations of the image at every stride that has latents."""

from __future__ import annotations

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vdvae_codec.config import ModelConfig
from vdvae_codec.model.blocks import Block, Conv, pool


class Encoder(nn.Module):
    """x (B, 3, H, W) in pixel levels -> {stride: activations (B, width, H/stride, W/stride)}."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        stages = [s for s in config.stages if s.latents][::-1]  # fine to coarse
        count = sum(s.encoder_blocks for s in stages)
        self.strides = [s.stride for s in stages]
        self.stem = Conv(3 * stages[0].stride ** 2, stages[0].width, 3)
        self.stages = nn.ModuleList()
        self.widen = nn.ModuleList()
        width = stages[0].width
        for s in stages:
            self.widen.append(nn.Identity() if s.width == width else Conv(width, s.width, 1))
            blocks = [Block(s.width, s.bottleneck, count**-0.5) for _ in range(s.encoder_blocks)]
            self.stages.append(nn.Sequential(*blocks))
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

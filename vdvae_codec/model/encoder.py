"""The bottom-up network: activations of the image at every stride that has latents."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vdvae_codec.config import ModelConfig
from vdvae_codec.model.blocks import Conv, pool, residual


class Encoder(nn.Module):
    """x (B, 3, H, W) in pixel levels -> {stride: activations (B, width, H/stride, W/stride)}."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        stages = [s for s in config.stages if s.latents][::-1]  # fine to coarse
        count = sum(s.encoder_blocks for s in stages)
        self.strides = [s.stride for s in stages]
        self.texture = config.texture
        self.stem = Conv((9 if config.texture else 3) * stages[0].stride ** 2, stages[0].width, 3)
        self.stages = nn.ModuleList()
        self.widen = nn.ModuleList()
        width = stages[0].width
        for s in stages:
            self.widen.append(nn.Identity() if s.width == width else Conv(width, s.width, 1))
            blocks = [residual(s, count**-0.5) for _ in range(s.encoder_blocks)]
            self.stages.append(nn.Sequential(*blocks))
            width = s.width

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        acts: dict[int, Tensor] = {}
        stride = self.strides[0]
        seen = (x - 128) * 2.0**-6
        if self.texture:
            seen = torch.cat([seen, second_differences(x).clamp(-32, 32) * 2.0**-3], 1)
        h = self.stem(F.pixel_unshuffle(seen, stride))
        for next_stride, widen, blocks in zip(self.strides, self.widen, self.stages):
            h = blocks(widen(pool(h, next_stride // stride)))
            stride = next_stride
            acts[stride] = h
        return acts


def second_differences(x: Tensor) -> Tensor:
    """Across and down, of G, R - G and B - G: (B, 3, H, W) to (B, 6, H, W), zero at the border.

    They show grain, and how colours were interpolated and rounded, which the image itself drowns.
    """
    x = torch.cat([x[:, :1], x[:, 1:] - x[:, :1]], 1)
    across = 2 * x[..., 1:-1] - x[..., :-2] - x[..., 2:]
    down = 2 * x[..., 1:-1, :] - x[..., :-2, :] - x[..., 2:, :]
    return torch.cat([F.pad(across, (1, 1)), F.pad(down, (0, 0, 1, 1))], 1)

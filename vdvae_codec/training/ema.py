"""Exponential moving average of the weights."""

from __future__ import annotations

import copy

import torch
import torch.nn as nn


class Ema:
    """Keeps ``model`` as the moving average of the trained one; the decay warms up as (1 + t) / (10 + t)."""

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, values = list(self.model.parameters()), [p.detach() for p in model.parameters()]
        torch._foreach_lerp_(averages, values, 1 - decay)

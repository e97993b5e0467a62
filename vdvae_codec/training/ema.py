"""Exponential moving average of the weights."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
import torch.nn as nn
from torch import Tensor

Model = TypeVar("Model", bound=nn.Module)


class Ema(Generic[Model]):
    """Keeps ``model`` as the moving average of the trained one; the decay warms up as (1 + t) / (10 + t)."""

    def __init__(self, model: Model, decay: float):
        self.model = copy.deepcopy(model)
        self.model.requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: Model, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        averages: list[Tensor] = list(self.model.parameters())
        values = [p.detach() for p in model.parameters()]
        torch._foreach_lerp_(averages, values, 1 - decay)

"""Muon: momentum whose updates are made orthogonal (Jordan 2024; learning rates as in arXiv 2502.16982)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
RMS = 0.2  # of an update per learning rate, as large as AdamW's usually are


class Muon(Optimizer):
    """For weights of convolutions (cout, cin, k, k), taken as matrices (cout, cin k k); torch.optim.Muon takes
    matrices only."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].mul_(group["momentum"]).add_(weight.grad)
                update = weight.grad.add(state["momentum"], alpha=group["momentum"]).flatten(1)
                scale = RMS * max(update.shape) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(orthogonal(update).view(weight.shape), alpha=-group["lr"] * scale)


def orthogonal(m: Tensor) -> Tensor:
    """The matrix with all singular values near 1 and the singular vectors of m, by a Newton-Schulz iteration."""
    if m.shape[0] > m.shape[1]:
        return orthogonal(m.T).T
    a, b, c = NEWTON_SCHULZ
    x: Tensor = m / (m.norm() + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x

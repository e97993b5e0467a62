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
    matrices only, and one after the other. Products are in ``dtype``, for which bfloat16 is enough."""

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    alike.setdefault(weight.shape, []).append(weight)
                    self.state[weight].setdefault("momentum", torch.zeros_like(weight))
            for shape, weights in alike.items():
                gradients = [weight.grad for weight in weights if weight.grad is not None]
                momenta = [self.state[weight]["momentum"] for weight in weights]
                torch._foreach_mul_(momenta, group["momentum"])
                torch._foreach_add_(momenta, gradients)
                updates = torch._foreach_add(gradients, momenta, alpha=group["momentum"])
                matrices = torch.stack([update.flatten(1) for update in updates])  # (n, cout, cin k k)
                directions = orthogonal(matrices.to(self.dtype)).float().view(-1, *shape)
                scale = RMS * max(matrices.shape[1:]) ** 0.5
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(weights, list(directions), alpha=-group["lr"] * scale)


def orthogonal(m: Tensor) -> Tensor:
    """Matrices (n, r, c) with the singular vectors of m and all singular values near 1, by Newton-Schulz iteration."""
    if m.shape[1] > m.shape[2]:
        return orthogonal(m.mT).mT
    a, b, c = NEWTON_SCHULZ
    x: Tensor = m / (m.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x

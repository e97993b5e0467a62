"""What turns gradients into weights: AdamW, Muon, which of them trains which weights, and the moving average."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Generic, TypeVar

import torch
import torch.nn as nn
from torch import Tensor
from torch.optim import Optimizer

from vdvae_codec.model.vdvae import VDVAE, muon_weights
from vdvae_codec.training.recipe import Recipe

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
RMS = 0.2  # of an update per learning rate, as large as AdamW's usually are
Model = TypeVar("Model", bound=nn.Module)


def optimizers(model: VDVAE, recipe: Recipe) -> dict[str, Optimizer]:
    """By their names in checkpoints; ``peak`` of each is relative to ``recipe.learning_rate``.

    With ``recipe.muon`` the weights between features belong to Muon (``model.vdvae.muon_weights``); those that give
    parameters of distributions, and whatever is no convolution's weight, to AdamW.
    """
    inner = muon_weights(model) if recipe.muon else []
    taken = {id(weight) for weight in inner}
    others = [p for p in model.parameters() if id(p) not in taken]
    adamw = torch.optim.AdamW(others, lr=0.0, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True)
    adamw.param_groups[0]["peak"] = 1.0
    found: dict[str, Optimizer] = {"optimizer": adamw}
    if inner:
        dtype = torch.bfloat16 if bf16_is_fast(others[0].device) else torch.float32
        found["muon"] = Muon(inner, lr=0.0, weight_decay=recipe.weight_decay, dtype=dtype)
        found["muon"].param_groups[0]["peak"] = recipe.muon
    return found


def bf16_is_fast(device: torch.device) -> bool:
    """Whether the device multiplies bf16 natively; CPUs without it emulate, a hundred times slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Muon(Optimizer):
    """Momentum whose updates are made orthogonal (Jordan 2024; learning rates as in arXiv 2502.16982).

    For weights of convolutions (cout, cin, k, k), taken as matrices (cout, cin k k); torch.optim.Muon takes matrices
    only, and one after the other. Products are in ``dtype``, for which bfloat16 is enough.
    """

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

"""Fine-tuning a float model through the rounding of its exact twin: straight-through gradients (Bengio 2013, arXiv
1308.3432)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from tqdm import tqdm

from vdvae_codec.exact.conv import ExactConv
from vdvae_codec.model.blocks import Conv
from vdvae_codec.model.elbo import elbo
from vdvae_codec.model.vdvae import VDVAE
from vdvae_codec.training.chance import seeded
from vdvae_codec.training.data import Crops
from vdvae_codec.training.trainer import stack_terms

PIXELS = 2**15  # of a step
LEARNING_RATE = 2e-5  # of Adam; rises over WARMUP_STEPS and falls to zero with the steps
WARMUP_STEPS = 50


def tune(model: VDVAE, exact: VDVAE, crops: Crops, seed: int, steps: int) -> None:
    """Trains the float ``model``'s weights in place on the CPU, in float32, as if they and what convolutions take in
    were on the grids of its twin ``exact``, which stays as it is."""
    count = max(1, PIXELS // crops.side**2)
    adam = torch.optim.Adam(model.requires_grad_(True).parameters(), betas=(0.9, 0.999))
    with torch.inference_mode(False), torch.enable_grad(), rounded(model, exact), seeded(seed, torch.device("cpu")):
        for step in tqdm(range(steps), desc="fine-tuning", disable=None):
            x = crops.batch((seed, 4, step), 0, count).float()
            kl, nll = stack_terms(elbo(model, x), x)
            adam.zero_grad()
            (kl.sum() + nll.sum()).backward()  # type: ignore[no-untyped-call]
            adam.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS) * (1 - step / steps)
            if all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters()):
                adam.step()
    model.requires_grad_(False)


@contextmanager
def rounded(model: VDVAE, exact: VDVAE) -> Iterator[None]:
    """Within it, convolutions of the float ``model`` multiply what those of ``exact`` do, with gradients as if nothing
    had been rounded. Latents are not rounded: their coder makes up for it (``exact.cdf.Tables.gaussian_scale``)."""
    convolutions = {name: conv for name, conv in model.named_modules() if isinstance(conv, Conv)}
    try:
        for name, conv in convolutions.items():
            round_conv(conv, exact.get_submodule(name))
        yield
    finally:
        for conv in convolutions.values():
            vars(conv).pop("take", None)
            vars(conv).pop("weights", None)


def round_conv(conv: Conv, exact: torch.nn.Module) -> None:
    assert isinstance(exact, ExactConv)
    take, weights = conv.take, conv.weights
    exponent, low, high, _ = exact.grid.tolist()
    step = torch.ldexp(torch.ones(len(exact.weight)), -exact.weight_exponent)[:, None, None, None]

    def rounded_take(x: Tensor) -> Tensor:
        a = take(x)
        return a + shift(a, lambda v: (v * 2.0**exponent).round().clamp(low, high) * 2.0**-exponent)

    def rounded_weights() -> Tensor:
        weight = weights()
        return weight + shift(weight, lambda v: (v / step).round() * step)

    vars(conv)["weights"] = rounded_weights
    if conv.takes is None:
        vars(conv)["take"] = rounded_take


@torch.no_grad()
def shift(x: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """What ``rounding`` adds to x, as a constant."""
    return rounding(x) - x

"""From a float model to its exact twin: calibration on real images, integer weights, latent grids."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn as nn
from torch import Tensor

from vdvae_codec.exact.conv import ExactConv
from vdvae_codec.exact.quantise import BYTE_LEVELS, WEIGHT_LEVELS, Grid, input_grid, quantise_conv
from vdvae_codec.model.blocks import ACTIVATIONS, Conv
from vdvae_codec.model.distributions.gaussian import MIDDLE, Gaussian, gaussian_kl
from vdvae_codec.model.elbo import Elbo, elbo
from vdvae_codec.model.layers.base import Acts
from vdvae_codec.model.layers.latent import LatentLayer
from vdvae_codec.model.vdvae import VDVAE, exact_twin, prepare

ACTIVE_NATS = 0.01  # mean KL per element below which a latent channel is fixed at its prior's mean
HELD = 1 - 1e-4  # share of a channel's latents that its grid reaches


@torch.no_grad()
def quantise_model(model: VDVAE, batches: list[Tensor], tune: Callable[[VDVAE], None] | None = None) -> VDVAE:
    """Post-training quantisation of a float model on the CPU: its exact twin, ready to run.

    Calibrated on image batches (B, 3, H, W) float32 in pixel levels, G, R, B. What a convolution takes in is rounded to
    the grid that it declares (``Conv.takes``), or else to one that clips nothing seen; each output channel's weights
    get the finest power-of-two grid that keeps its sums below 2^24. ``choose_latents`` sets the latents of both models.
    ``tune`` is given the twin and may change the float model's weights, which are then rounded again. Raises
    ExactnessError if a bound fails.
    """
    choose_latents(model, batches)
    inputs = observe(model, batches)
    twin = rounded_twin(model, inputs)
    if tune is not None:
        tune(twin)
        twin = rounded_twin(model, inputs)
    return twin


def rounded_twin(model: VDVAE, inputs: dict[nn.Module, Range]) -> VDVAE:
    twin = exact_twin(model)
    for name, exact in twin.named_modules():
        if isinstance(exact, ExactConv):
            conv = model.get_submodule(name)
            assert isinstance(conv, Conv)
            bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias
            levels = BYTE_LEVELS if conv.of_bytes else WEIGHT_LEVELS
            quantise_conv(exact, conv.weights(), bias, conv.takes or inputs[conv].grid(), levels)
    prepare(twin)
    return twin


class Range:
    """Of what a convolution took in, after its activation; zero is in it."""

    def __init__(self) -> None:
        self.low = self.high = self.squares = 0.0
        self.count = 0

    def add(self, x: Tensor) -> None:
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        self.squares += float(x.square().sum())
        self.count += x.numel()

    def grid(self) -> Grid:
        """That rounds it."""
        return input_grid(self.low, self.high, math.sqrt(self.squares / max(1, self.count)))


def observe(model: VDVAE, batches: list[Tensor]) -> dict[nn.Module, Range]:
    """What each convolution takes in when the ELBO of the batches is computed."""
    inputs: dict[nn.Module, Range] = {module: Range() for module in model.modules() if isinstance(module, Conv)}

    def see(conv: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(conv, Conv)
        inputs[conv].add(ACTIVATIONS[conv.act](args[0]))

    hooks = [conv.register_forward_pre_hook(see) for conv in inputs]
    try:
        elbo_nats(model, batches)
    finally:
        for hook in hooks:
            hook.remove()
    return inputs


def elbo_nats(model: VDVAE, batches: list[Tensor]) -> float:
    """The negative ELBO of all batches, with the same noise at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        terms = [elbo(model, x) for x in batches]
    return sum(float(t.sum()) for term in terms for t in (*term.kl_nats, *term.nll_nats))


class LatentStatistics(Elbo):
    """Visitor that gathers of every latent channel KL and posterior sigma, as means over elements, and how far the
    share ``HELD`` of the latents reaches from zero: (zdim,) a layer."""

    def __init__(self, acts: Acts):
        super().__init__(acts)
        self.channel_nats: list[Tensor] = []
        self.log_sigma: list[Tensor] = []
        self.reach: list[Tensor] = []

    def latent(self, layer: LatentLayer, p: Gaussian, posterior: Callable[[Acts], Gaussian]) -> Tensor:
        q = posterior(self.acts)
        self.channel_nats.append(gaussian_kl(q, p).mean((0, 2, 3)))
        self.log_sigma.append(q.log_sigma.mean((0, 2, 3)))
        z = super().latent(layer, p, lambda acts: q)
        sizes = z.abs().transpose(0, 1).flatten(1)
        self.reach.append(sizes.kthvalue(math.ceil(HELD * sizes.shape[1])).values)
        return z


def latent_statistics(model: VDVAE, batches: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Mean KL in nats and mean log sigma of an element, and the reach of latents, (zdim,) a latent layer."""
    visits = []
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        for x in batches:
            visits.append(LatentStatistics(model.encode(x)))
            model.walk(x, visits[-1])
    nats, log_sigma, reach = (
        [torch.stack(layer) for layer in zip(*lists)]
        for lists in ((v.channel_nats for v in visits), (v.log_sigma for v in visits), (v.reach for v in visits))
    )
    return [t.mean(0) for t in nats], [t.mean(0) for t in log_sigma], [t.amax(0) for t in reach]


@torch.no_grad()
def choose_latents(model: VDVAE, batches: list[Tensor]) -> None:
    """Finds the active channels and the grid of every latent layer of a float model, and sets them.

    Channels with next to no KL are inactive, and whole layers without which the ELBO of the first batch is better. The
    grid is half the smallest posterior sigma of an active channel, or as wide as it takes to hold nearly all latents.
    """
    layers = model.latent_layers
    if not layers:
        return
    for layer in layers:
        layer.active.fill_(True)
    nats, log_sigmas, reaches = latent_statistics(model, batches)
    for layer, channels in zip(layers, nats):
        layer.active.copy_(channels > ACTIVE_NATS)
    best = elbo_nats(model, batches[:1])
    for layer, log_sigma, reach in zip(layers, log_sigmas, reaches):
        active = layer.active.clone()
        counted = active if active.any() else slice(None)
        fine_enough = 1 - math.floor(float(log_sigma[counted].min()) / math.log(2))
        finest = math.floor(math.log2((MIDDLE - 1) / float(reach[counted].max())))
        layer.set_grid(min(fine_enough, finest))
        layer.active.fill_(False)
        without = elbo_nats(model, batches[:1]) if active.any() else best
        if without > best:
            layer.active.copy_(active)
        best = min(best, without)

"""From a float model to its exact twin: calibration on real images, integer weights, latent grids."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn as nn
from torch import Tensor

from vdvae_codec.distributions import Gaussian, gaussian_kl
from vdvae_codec.exact.conv import LIMIT, ExactConv, partial_sum_bound
from vdvae_codec.exact.functions import ExactTanh
from vdvae_codec.model.blocks import ACTIVATIONS, Bottleneck, Conv, Pair, Tanh
from vdvae_codec.model.layers import PIXEL_EXPONENT, Acts, LatentLayer
from vdvae_codec.model.vdvae import VDVAE, Elbo, elbo

INPUT_LEVELS = 2047  # activations are rounded to at most this many steps above and below zero
WEIGHT_LEVELS = 2**15 - 1
SAMPLES = 2**15  # inputs of a convolution and batch by which its grid is chosen
ENOUGH_LEVELS = 60  # the largest weight of an output channel should span this many steps, or the sums are split
MOST_PARTS = 4
ALIVE_NATS = 0.01  # mean KL per element below which a latent channel is fixed at its prior's mean
Grid = tuple[int, int, int]  # exponent, lowest and highest integer of what a convolution takes in


def exact_twin(model: VDVAE) -> VDVAE:
    """The same layers with every ``Conv`` replaced by an empty ``ExactConv``, for a state dict to be loaded into, and
    every ``Tanh`` by its table."""
    twin = copy.deepcopy(model).requires_grad_(False).eval()
    for parent, name, conv in list(convolutions(twin)):
        setattr(parent, name, ExactConv(conv))
    for parent in [m for m in twin.modules() if isinstance(getattr(m, "tanh", None), Tanh)]:
        parent.tanh = ExactTanh()
    return twin


def convolutions(model: nn.Module) -> Iterator[tuple[nn.Module, str, Conv]]:
    """(parent, attribute name, convolution) for each convolution."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, Conv):
                yield parent, name, child


def prepare(model: VDVAE) -> None:
    """Proves every bound of an exact model and makes it ready to run; raises ExactnessError."""
    for name, module in model.named_modules():
        if isinstance(module, ExactConv):
            module.prepare(name)


@torch.no_grad()
def quantise_model(model: VDVAE, batches: list[Tensor]) -> VDVAE:
    """Post-training quantisation of a float model, calibrated on image batches (B, 3, H, W) in pixel levels.

    Activation grids round the values seen with the least error; each output channel's weights get the finest
    power-of-two grid that keeps its sums below 2^24. Between the first and the last convolution of a bottleneck, and in
    the second of a pair, both are bytes: there inputs have no outliers, and speed is decided. What predictors know is
    pixels, which their grid holds as they are. ``choose_latents`` sets the latents of both models.
    """
    ranges: dict[nn.Module, tuple[float, float]] = {}
    seen: dict[nn.Module, list[Tensor]] = {conv: [torch.zeros(1)] for _, _, conv in convolutions(model)}
    inner = {
        conv for parent, name, conv in convolutions(model)
        if isinstance(parent, (Bottleneck, Pair)) and name in ("c2", "c3")
    }

    def observe(conv: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(conv, Conv)
        x = ACTIVATIONS[conv.act](args[0]).flatten()
        low, high = ranges.get(conv, (0.0, 0.0))
        ranges[conv] = min(low, float(x.min())), max(high, float(x.max()))
        seen[conv].append(x[:: -(-len(x) // SAMPLES)])

    choose_latents(model, batches)
    twin = exact_twin(model)
    hooks = [conv.register_forward_pre_hook(observe) for _, _, conv in convolutions(model)]
    for x in batches:
        elbo(model, x)
    for hook in hooks:
        hook.remove()
    projections = {layer.z_proj: layer for layer in model.layers if isinstance(layer, LatentLayer)}
    for name, exact in twin.named_modules():
        if not isinstance(exact, ExactConv):
            continue
        conv = model.get_submodule(name)
        assert isinstance(conv, Conv)
        levels = 127 if conv in inner else WEIGHT_LEVELS
        if conv in projections:
            grid = (int(projections[conv].grid_exponent), -128, 127)
        elif name.endswith(".predictor"):
            grid = (PIXEL_EXPONENT, -128, 127)
        else:
            x, (low, high) = torch.cat(seen[conv]), ranges.get(conv, (0.0, 0.0))
            grid = byte_grid(x, low, high) if conv in inner else signed_grid(x, low, high)
        quantise_conv(conv, exact, *grid, levels)
    prepare(twin)
    return twin


def byte_grid(x: Tensor, low: float, high: float) -> Grid:
    """The 256 steps that round x (N,), samples of values from ``low`` to ``high``, with the least square error."""

    def grid(exponent: int) -> Grid:
        lowest = max(round(low * 2.0**exponent), -255)
        return exponent, lowest, lowest + 255

    return best(grid, math.log2(255 / max(high - low, 1e-6)), x)


def signed_grid(x: Tensor, low: float, high: float) -> Grid:
    """At most ``INPUT_LEVELS`` steps on each side of zero, likewise."""

    def grid(exponent: int) -> Grid:
        lowest, highest = math.floor(low * 2.0**exponent), math.ceil(high * 2.0**exponent)
        return exponent, max(lowest, -INPUT_LEVELS), min(highest, INPUT_LEVELS)

    return best(grid, math.log2(INPUT_LEVELS / max(high, -low, 1e-6)), x)


def best(grid: Callable[[int], Grid], widest: float, x: Tensor) -> Grid:
    """The grid with the least square error on x (N,) among the widest, which clips nothing, and five finer ones."""

    def error(exponent: int) -> float:
        _, lowest, highest = grid(exponent)
        return float(((x * 2.0**exponent).round().clamp(lowest, highest) * 2.0**-exponent - x).square().mean())

    return grid(min(range(math.floor(widest), math.floor(widest) + 6), key=error))


def quantise_conv(
    conv: Conv, exact: ExactConv, exponent: int, low: int, high: int, levels: int = WEIGHT_LEVELS
) -> None:
    """Fills ``exact`` with the integers of ``conv``: the fewest parts that leave every weight grid fine enough.

    Weights have at most ``levels`` steps on each side of zero.
    """
    weight = conv.weight.detach().double()
    bias = torch.zeros(len(weight), dtype=torch.float64) if conv.bias is None else conv.bias.detach().double()
    peak = weight.abs().amax((1, 2, 3)).clamp(min=1e-9)
    for parts in (p for p in range(1, MOST_PARTS + 1) if weight.shape[1] % p == 0):
        # Bound of the sums and size of the weights, per output channel; half a step may be added to each by rounding.
        bound = partial_sum_bound(weight, bias * 2.0**exponent, low, high, parts)
        rounding = partial_sum_bound(torch.full_like(weight, 0.5), torch.ones_like(bias), low, high, parts)
        room = torch.minimum((LIMIT - rounding) / bound.clamp(min=1e-9), (levels - 1) / peak)
        grid = torch.log2(room).floor().clamp(max=30 - exponent)
        if bool((peak * 2.0**grid >= ENOUGH_LEVELS).logical_or(peak < 1e-6).all()):
            break
    exact.weight_exponent.copy_(grid.to(torch.int32))
    exact.weight.copy_((weight * 2.0 ** grid[:, None, None, None]).round().to(torch.int16))
    exact.bias.copy_((bias * 2.0 ** (grid + exponent)).round().to(torch.int32))
    exact.grid.copy_(torch.tensor([exponent, low, high, parts], dtype=torch.int32))


class LatentStatistics(Elbo):
    """Visitor that gathers posterior sigma and KL of every latent channel."""

    def __init__(self, acts: Acts):
        super().__init__(acts)
        self.kl: list[Tensor] = []  # mean nats of an element, (zdim,) a layer
        self.log_sigma: list[Tensor] = []

    def latent(self, layer: LatentLayer, p: Gaussian, posterior: Callable[[Acts], Gaussian]) -> Tensor:
        q = posterior(self.acts)
        self.kl.append(gaussian_kl(q, p).mean((0, 2, 3)))
        self.log_sigma.append(q.log_sigma.mean((0, 2, 3)))
        return super().latent(layer, p, lambda acts: q)


def choose_latents(model: VDVAE, batches: list[Tensor]) -> None:
    """Finds grid and life of every latent layer of a float model, and sets its buffers.

    Channels with next to no KL die, and whole layers without which the ELBO is better. The grid is half the smallest
    posterior sigma of a live channel.
    """
    layers = [layer for layer in model.layers if isinstance(layer, LatentLayer)]
    if model.encoder is None or not layers:
        return
    visits = []
    for x in batches:
        visits.append(LatentStatistics(model.encoder(x)))
        model.walk(x, visits[-1])
    for layer, *kls in zip(layers, *(v.kl for v in visits)):
        layer.alive.copy_(torch.stack(kls).mean(0) > ALIVE_NATS)

    def elbo_nats() -> float:
        torch.manual_seed(0)
        terms = [elbo(model, x) for x in batches]
        return sum(float(t.sum()) for term in terms for t in (*term.kl_nats, *term.nll_nats))

    best = elbo_nats()
    for layer, *log_sigmas in zip(layers, *(v.log_sigma for v in visits)):
        alive = layer.alive.clone()
        log_sigma = torch.stack(log_sigmas).mean(0)[alive if alive.any() else slice(None)].min()
        layer.grid_exponent.fill_(1 - math.floor(float(log_sigma) / math.log(2)))
        layer.alive.fill_(False)
        without = elbo_nats() if alive.any() else best
        if without > best:
            layer.alive.copy_(alive)
        best = min(best, without)

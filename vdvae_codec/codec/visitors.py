"""Joins model and coder: what each layer pushes, pops and costs. The only place where tensors become numpy arrays.

All of it runs on exact models (``vdvae_codec.exact``): the parameters that the walk hands over are the same floats on
every machine, and are rounded to integers here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vdvae_codec.codec.group import Group, fill
from vdvae_codec.codec.pixels import Coded, among, scatter
from vdvae_codec.codec.schedule import MIN_BITS
from vdvae_codec.codec.waves import ORDER, wave_bits, wave_codec
from vdvae_codec.entropy.ans import Stack
from vdvae_codec.entropy.bits_back import Receiver, Sender
from vdvae_codec.entropy.codec import Codec, nibbles_codec
from vdvae_codec.exact.cdf import ByteNibbles, Tables
from vdvae_codec.images.tiling import FILL
from vdvae_codec.model.distributions.gaussian import MIDDLE, Gaussian
from vdvae_codec.model.distributions.logistics import Mixture
from vdvae_codec.model.layers.base import Acts, PixelLayer, State, Visitor
from vdvae_codec.model.layers.causal import CausalLayer
from vdvae_codec.model.layers.latent import LatentLayer
from vdvae_codec.model.vdvae import VDVAE

COARSER = 3  # latents of groups that borrow nothing lie on grids whose steps are 2^3 times as large: about 4 sigma


class Coding(Visitor):
    """What sender and receiver have in common: distributions to codecs, arrays to tensors."""

    def __init__(self, model: VDVAE, tables: Tables, group: Group, x: Tensor, direct: bool = False):
        self.model, self.tables, self.group, self.x = model, tables, group, x
        self.coarser = COARSER if direct else 0

    @cached_property
    def acts(self) -> Acts:
        """The encoder's activations of x, computed once, when it is known, and only if a latent needs them."""
        return self.model.encode(self.x)

    def exponent(self, layer: LatentLayer) -> int:
        """Active latents are z = k 2^-exponent."""
        return int(layer.grid_exponent) - self.coarser

    def integers(self, layer: LatentLayer, p: Gaussian) -> ByteNibbles:
        """Distributions of the indices k + 128 of a layer's active latents."""
        return p.integers(self.tables, self.exponent(layer), layer.active.nonzero()[:, 0])

    def z(self, layer: LatentLayer, p: Gaussian, index: np.ndarray) -> Tensor:
        """Latents (B, zdim, h, w): ``index`` holds the k + 128 of active channels, the others are at p's mean."""
        finest = int(layer.grid_exponent)
        z = nearest(p.mean, finest) * 2.0**-finest
        b, _, h, w = z.shape
        active = torch.from_numpy(index).to(z.device, torch.float32).view(-1, b, h, w) - MIDDLE
        z[:, layer.active] = active.transpose(0, 1) * 2.0 ** -self.exponent(layer)
        return z

    def coded(self, layer: PixelLayer, p: Mixture) -> Coded:
        """A layer's coded pixels."""
        first, later = (self.group.positions(layer) * 2)[:2]
        return Coded(p.integers(self.tables, first), among(first, later), self.group.channels)


def nearest(mean: Tensor, exponent: int) -> Tensor:
    """The k of the grid point k 2^-exponent that is nearest to a mean, as float32."""
    return (mean * 2.0**exponent).round().clamp(-MIDDLE, MIDDLE - 1)


class Push(Coding):
    """Visitor that codes a group whose image x is known."""

    def __init__(self, model: VDVAE, tables: Tables, group: Group, x: Tensor, stack: Stack, direct: bool):
        super().__init__(model, tables, group, x, direct)
        self.sender = Sender(stack, direct)
        self.initial_bits = 0.0  # what the latents of a direct group cost beyond their share of the elbo
        self.layers: list[PixelLayer | LatentLayer] = []  # of what the sender pushes
        self.posterior_bits = np.zeros(len(x))  # (B,): of what is drawn for each tile, but for a constant

    def latent(self, layer: LatentLayer, p: Gaussian, posterior: Callable[[Acts], Gaussian]) -> Tensor:
        if not layer.active.any():
            return self.z(layer, p, np.zeros(0, np.int32))
        q = posterior(self.acts)
        q_integers = self.integers(layer, q)

        def point() -> np.ndarray:
            k = nearest(q.mean, self.exponent(layer))[:, layer.active]
            index: np.ndarray = (k + MIDDLE).transpose(0, 1).flatten().int().cpu().numpy()
            self.initial_bits += float(q_integers.bits(index).sum())
            return index

        self.layers.append(layer)
        if not self.sender.direct:
            self.posterior_bits += (q.log_sigma[:, layer.active].double().sum((1, 2, 3)) / math.log(2)).cpu().numpy()
        prior = nibbles_codec(self.integers(layer, p))
        return self.z(layer, p, self.sender.latent(prior, nibbles_codec(q_integers), point))

    def pixels(self, layer: PixelLayer, p: Mixture, x: Tensor) -> None:
        self._observed(layer, self.coded(layer, p).codec(), p.order, x)

    def causal(self, layer: CausalLayer, state: State) -> None:
        self._observed(layer, wave_codec(self.tables, self.group, layer, state), ORDER, state.x)

    def _observed(self, layer: PixelLayer, codec: Codec, order: Sequence[int], x: Tensor) -> None:
        self.layers.append(layer)
        self.sender.observed(codec, np.concatenate(self.group.values(layer, order, x)))

    def tile_bits(self, bits: list[np.ndarray], total_bits: float) -> np.ndarray:
        """What each tile cost, (B,): its latents and pixels, less what it borrowed, and an equal share of the rest."""
        count = len(self.x)
        tiles = -self.posterior_bits
        for layer, costs in zip(self.layers, bits) if count > 1 else ():
            if isinstance(layer, LatentLayer):
                tiles += costs.reshape(int(layer.active.sum()), count, -1).sum((0, 2), dtype=np.float64)
            else:
                positions = self.group.positions(layer)
                parts = np.split(costs, np.cumsum(self.group.sizes(layer))[:-1])
                area = layer.plane(self.x[:1, :1]).numel()
                tiles += sum(by_tile(part, at, count, area) for part, at in zip(parts, positions))
        tiles += (total_bits - tiles.sum()) / count
        return tiles


def by_tile(bits: np.ndarray, positions: Tensor | None, count: int, area: int) -> np.ndarray:
    """Sums (count,) of bits (N,) over the tiles of ``area`` pixels that the positions lie in."""
    tiles: np.ndarray
    if positions is None:
        tiles = bits.reshape(count, -1).sum(1, dtype=np.float64)
    else:
        tiles = np.bincount(positions.cpu().numpy() // area, bits, count)
    return tiles


class Pop(Coding):
    """Visitor that decodes a group and fills in x."""

    def __init__(self, model: VDVAE, tables: Tables, group: Group, x: Tensor, stack: Stack, direct: bool):
        super().__init__(model, tables, group, x, direct)
        self.receiver = Receiver(stack, direct)

    def latent(self, layer: LatentLayer, p: Gaussian, posterior: Callable[[Acts], Gaussian]) -> Tensor:
        if not layer.active.any():
            return self.z(layer, p, np.zeros(0, np.int32))

        def later() -> Codec:  # called when x is known
            return nibbles_codec(self.integers(layer, posterior(self.acts)))

        return self.z(layer, p, self.receiver.latent(nibbles_codec(self.integers(layer, p)), later))

    def pixels(self, layer: PixelLayer, p: Mixture, x: Tensor) -> None:
        values = self.receiver.observed(self.coded(layer, p).codec())
        positions, plane = self.group.positions(layer), layer.plane(x)
        rows = np.split(values, np.cumsum(self.group.sizes(layer))[:-1])
        for n, c in enumerate(p.order):
            coded = min(n, self.group.channels - 1)
            scatter(plane, c, positions[coded], rows[coded])
        self.group.fill(x, layer)

    def causal(self, layer: CausalLayer, state: State) -> None:
        self.receiver.observed(wave_codec(self.tables, self.group, layer, state))


@dataclass(frozen=True)
class Pushed:
    """What pushing a group cost."""

    initial_bits: float  # of the latents, beyond their share of the elbo: paid by direct groups alone
    borrowed_bits: int  # that were on the stack, and are on it again
    tile_bits: np.ndarray  # (B,)


def push_group(
    model: VDVAE, tables: Tables, group: Group, x: Tensor, stack: Stack, direct: bool = False
) -> Pushed | None:
    """Codes x (B, 3, H, W) onto the stack, less what is not coded, which is filled in.

    ``direct``: it borrows nothing, and its latents are rounded more.
    Returns None, the stack unchanged, if the bits that the group would borrow are not there.
    """
    before = stack.bits
    fill(model, group, x)
    visit = Push(model, tables, group, x, stack, direct)
    model.walk(x, visit)
    if visit.sender.borrows and stack.bits < MIN_BITS:
        visit.sender.give_back()
        return None
    borrowed = before - stack.bits
    bits = visit.sender.finish()
    return Pushed(visit.initial_bits, borrowed, visit.tile_bits(bits, stack.bits - before))


def pop_group(model: VDVAE, tables: Tables, group: Group, stack: Stack, direct: bool = False) -> Tensor:
    """Decodes a group: x (B, 3, H, W) in pixel levels; leaves the stack as it was before ``push_group``."""
    b, _, height, width = group.coded_mask.shape
    x = torch.full((b, 3, height, width), float(FILL), device=group.coded_mask.device)
    visit = Pop(model, tables, group, x, stack, direct)
    model.walk(x, visit)
    visit.receiver.finish()
    return x


class Count(Coding):
    """Visitor that counts the bits that coding would cost: latents (net of what is borrowed) and pixels."""

    def __init__(self, model: VDVAE, tables: Tables, group: Group, x: Tensor, seed: int = 0):
        super().__init__(model, tables, group, x)
        self.rng = np.random.default_rng(seed)
        self.kl_bits: list[float] = []
        self.pixel_bits: list[float] = []

    def latent(self, layer: LatentLayer, p: Gaussian, posterior: Callable[[Acts], Gaussian]) -> Tensor:
        if not layer.active.any():
            self.kl_bits.append(0.0)
            return self.z(layer, p, np.zeros(0, np.int32))
        q = self.integers(layer, posterior(self.acts))
        k = draw(q, self.rng)
        self.kl_bits.append(float((self.integers(layer, p).bits(k) - q.bits(k)).sum()))
        return self.z(layer, p, k)

    def pixels(self, layer: PixelLayer, p: Mixture, x: Tensor) -> None:
        coded, rows = self.coded(layer, p), self.group.values(layer, p.order, x)
        self.pixel_bits.append(sum(float(coded.mixture(n, rows).bits(row).sum()) for n, row in enumerate(rows)))

    def causal(self, layer: CausalLayer, state: State) -> None:
        x = np.concatenate(self.group.values(layer, ORDER, state.x))
        self.pixel_bits.append(wave_bits(self.tables, self.group, layer, state, x))


def draw(d: ByteNibbles, rng: np.random.Generator) -> np.ndarray:
    """One sample (N,) int32 of each distribution: what popping random bits gives."""
    words = rng.integers(1, 2**32, 64 + len(d.low), np.uint32)
    return nibbles_codec(d).pop(Stack(words))


def exact_elbo(model: VDVAE, tables: Tables, group: Group, x: Tensor) -> Count:
    """The negative ELBO of an exact model on a group, in bits, itemised by layer."""
    fill(model, group, x)
    visit = Count(model, tables, group, x)
    model.walk(x, visit)
    return visit

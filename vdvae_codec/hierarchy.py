"""Joins model and coder: what each layer pushes and pops. The only place where tensors become numpy arrays.

All of it runs on exact models (``vdvae_codec.exact``): the parameters that the walk hands over are the same floats on
every machine, and are rounded to integers here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vdvae_codec.coding.bits_back import Receiver, Sender
from vdvae_codec.coding.codec import Codec, chain, halves_codec, window_codec
from vdvae_codec.coding.schedule import MIN_BITS
from vdvae_codec.coding.stack import Stack
from vdvae_codec.distributions import Gaussian, Mixture
from vdvae_codec.exact.tables import ByteHalves, Tables, latent_distribution, pixel_distribution, quantise
from vdvae_codec.images import FILL
from vdvae_codec.model.layers import Acts, LatentLayer, Offset, PixelLayer
from vdvae_codec.model.vdvae import VDVAE


class Group:
    """Tiles (B, 3, H, W) of one shape, coded together; channels in G, R, B order.

    ``inside`` (B, H, W) bool marks the pixels that belong to the image. A grey image codes one channel, which the
    others copy. ``cells`` (B, H/2, W/2) bool marks the 2x2 pixels of which all but the first code green alone: their
    colours less green lie ``between`` those of first pixels.
    """

    def __init__(self, inside: Tensor, channels: int, cells: Tensor | None = None):
        self.inside, self.channels, self.cells = inside, channels, cells
        self.full = bool(inside.all())

    def following(self, layer: PixelLayer) -> Tensor | None:
        """(B, 1, h, w) bool: the positions of a layer that code green alone; None for none."""
        if self.cells is None or not any(d % 2 for d in layer.offset):
            return None
        return half_plane(layer, self.cells[:, None])

    def positions(self, layer: PixelLayer) -> list[Tensor | None]:
        """Indices (N,) of each coded channel's positions in the flattened (B, h, w) of a layer; None for all."""
        inside, following = layer.plane(self.inside[:, None]), self.following(layer)
        first = None if self.full else inside.flatten().nonzero()[:, 0]
        later = first if following is None else (inside & ~following).flatten().nonzero()[:, 0]
        return [first, *[later] * (self.channels - 1)]

    def values(self, layer: PixelLayer, p: Mixture, x: Tensor) -> list[np.ndarray]:
        """The coded sub-pixels (N,) of each channel of a layer, in p's order, from the image x (B, 3, H, W)."""
        plane = layer.plane(x).to(torch.int32)
        flat = [plane[:, c].flatten() for c in p.order[: self.channels]]
        chosen = zip(flat, self.positions(layer))
        return [(values if at is None else values[at]).cpu().numpy() for values, at in chosen]


def half_plane(layer: PixelLayer, x: Tensor) -> Tensor:
    """A layer's positions (B, C, h, w) of what is known of each 2x2 pixels, x (B, C, H/2, W/2)."""
    (dy, dx), step = layer.offset, layer.stride // 2
    return x[:, :, dy // 2 :: step, dx // 2 :: step]


def has_cells(model: VDVAE) -> bool:
    """Whether the first pixels of all 2x2 are coded before the others, so that ``Group.cells`` can be."""
    layers = [layer for layer in model.layers if isinstance(layer, PixelLayer)]
    odd = [bool(dy % 2 or dx % 2) for dy, dx in (layer.offset for layer in layers)]
    return all(layer.stride % 2 == 0 and layer.channels == 3 for layer in layers) and odd == sorted(odd)


def between(x: Tensor, offset: Offset) -> Tensor:
    """Red and blue less green (B, 2, H/2, W/2) of the pixels at an offset of 2x2, from those of the first pixels of x
    (B, 3, H, W) around them: means, halves rounded up, as where colours were kept on every second pixel."""
    first = x[:, 1:, ::2, ::2] - x[:, :1, ::2, ::2]
    below = torch.cat([first[:, :, 1:], first[:, :, -1:]], 2)
    if offset == (1, 0):
        return ((first + below + 1) / 2).floor()
    pairs = first + below if offset == (1, 1) else first
    total = pairs + torch.cat([pairs[..., 1:], pairs[..., -1:]], 3)
    return ((total + 2) / 4).floor() if offset == (1, 1) else ((total + 1) / 2).floor()


def cells_of(x: Tensor) -> Tensor:
    """(B, H/2, W/2) bool: the 2x2 pixels of x (B, 3, H, W) whose colours lie ``between``."""
    fit = [
        (x[:, 1:, dy::2, dx::2] == (x[:, :1, dy::2, dx::2] + between(x, (dy, dx))) % 256).all(1)
        for dy, dx in ((0, 1), (1, 0), (1, 1))
    ]
    return fit[0] & fit[1] & fit[2]


class Coding:
    """What sender and receiver have in common: distributions to codecs, arrays to tensors."""

    def __init__(self, model: VDVAE, tables: Tables, group: Group):
        self.model, self.tables, self.group = model, tables, group
        self._acts: Acts | None = None

    def acts(self, x: Tensor) -> Acts:
        """The encoder's activations, computed once and only if a latent needs them."""
        if self._acts is None:
            assert self.model.encoder is not None
            self._acts = self.model.encoder(x)
        return self._acts

    def latent_bytes(self, layer: LatentLayer, p: Gaussian) -> ByteHalves:
        """Distributions of the indices k + 128 of a layer's live latents, z = k 2^-grid_exponent."""
        alive = layer.alive.nonzero()[:, 0]
        return latent_distribution(self.tables, p, int(layer.grid_exponent), alive)

    def z(self, layer: LatentLayer, p: Gaussian, alive: np.ndarray) -> Tensor:
        """Latents (B, zdim, h, w): ``alive`` holds the indices k + 128 of live channels, dead ones are at p's mean."""
        z = latent_index(p.mean, layer) - 128
        b, _, h, w = z.shape
        live = torch.from_numpy(alive).to(z.device, torch.float32).view(-1, b, h, w) - 128
        z[:, layer.alive] = live.transpose(0, 1)
        return z * 2.0 ** -int(layer.grid_exponent)

    def pixel_codec(self, layer: PixelLayer, p: Mixture) -> Codec:
        """Codec of the layer's sub-pixels (N,) in 0..255, channel after channel, which depends on those before it."""
        p = quantise(p)
        positions = self.group.positions(layer)

        def channel(n: int) -> Callable[[list[np.ndarray]], Codec]:
            def given(rows: list[np.ndarray]) -> Codec:
                x = torch.full_like(p.log_sigma[:, 0], FILL)  # (B, 3, h, w)
                for known, at, row in zip(p.order, positions, rows):
                    scatter(x, known, at, row)
                return window_codec(pixel_distribution(self.tables, p, p.order[n], x, positions[n]))

            return given

        return chain([channel(n) for n in range(self.group.channels)], self.sizes(layer, positions))

    def sizes(self, layer: PixelLayer, positions: list[Tensor | None]) -> list[int]:
        """Number of coded sub-pixels of each channel of a layer."""
        whole = layer.plane(self.group.inside[:, None]).numel()
        return [whole if at is None else len(at) for at in positions]


def scatter(x: Tensor, channel: int, inside: Tensor | None, values: np.ndarray) -> None:
    """Writes values (N,) at the positions ``inside`` (None: all) of one channel of x (B, C, h, w)."""
    plane = torch.from_numpy(values).to(x.device, torch.float32)
    if inside is not None:
        plane = x[:, channel].flatten().index_copy(0, inside, plane)
    x[:, channel] = plane.view(x[:, channel].shape)


def latent_index(mean: Tensor, layer: LatentLayer) -> Tensor:
    """The nearest grid index k + 128 of a mean, as float32."""
    return (mean * 2.0 ** int(layer.grid_exponent)).round().clamp(-128, 127) + 128


class Push(Coding):
    """Visitor that codes a group whose image x is known."""

    def __init__(self, model: VDVAE, tables: Tables, group: Group, x: Tensor, stack: Stack, direct: bool):
        super().__init__(model, tables, group)
        self.x, self.sender = x, Sender(stack, direct)
        self.initial_bits = 0.0  # what the latents of a direct group cost beyond their share of the elbo

    def latent(self, layer: LatentLayer, p: Gaussian, posterior: Callable[[Acts], Gaussian]) -> Tensor:
        if not layer.alive.any():
            return self.z(layer, p, np.zeros(0, np.int32))
        q = posterior(self.acts(self.x))
        q_bytes = self.latent_bytes(layer, q)

        def point() -> np.ndarray:
            index = latent_index(q.mean, layer)[:, layer.alive].transpose(0, 1).flatten().int().cpu().numpy()
            self.initial_bits += float(q_bytes.bits(index).sum())
            return index

        prior = halves_codec(self.latent_bytes(layer, p))
        return self.z(layer, p, self.sender.latent(prior, halves_codec(q_bytes), point))

    def pixels(self, layer: PixelLayer, p: Mixture, x: Tensor) -> None:
        self.sender.observed(self.pixel_codec(layer, p), np.concatenate(self.group.values(layer, p, x)))


class Pop(Coding):
    """Visitor that decodes a group and fills in x."""

    def __init__(self, model: VDVAE, tables: Tables, group: Group, x: Tensor, stack: Stack, direct: bool):
        super().__init__(model, tables, group)
        self.x, self.receiver = x, Receiver(stack, direct)

    def latent(self, layer: LatentLayer, p: Gaussian, posterior: Callable[[Acts], Gaussian]) -> Tensor:
        if not layer.alive.any():
            return self.z(layer, p, np.zeros(0, np.int32))

        def later() -> Codec:  # called when x is known
            return halves_codec(self.latent_bytes(layer, posterior(self.acts(self.x))))

        return self.z(layer, p, self.receiver.latent(halves_codec(self.latent_bytes(layer, p)), later))

    def pixels(self, layer: PixelLayer, p: Mixture, x: Tensor) -> None:
        values = self.receiver.observed(self.pixel_codec(layer, p))
        positions, plane, following = self.group.positions(layer), layer.plane(x), self.group.following(layer)
        rows = np.split(values, np.cumsum(self.sizes(layer, positions))[:-1])
        for n, c in enumerate(p.order):
            coded = min(n, self.group.channels - 1)
            scatter(plane, c, positions[coded], rows[coded])
        if following is not None:
            dy, dx = layer.offset
            colours = (plane[:, :1] + half_plane(layer, between(x, (dy % 2, dx % 2)))) % 256
            plane[:, 1:] = torch.where(following, colours, plane[:, 1:])


@torch.inference_mode()
def push_group(model: VDVAE, tables: Tables, group: Group, x: Tensor, stack: Stack, direct: bool) -> float | None:
    """Codes x (B, 3, H, W) onto the stack; returns the initial bits, which only a direct group pays.

    Returns None, the stack unchanged, if the bits that the group would borrow are not there.
    """
    visit = Push(model, tables, group, x, stack, direct)
    model.walk(x, visit)
    if visit.sender.borrows and stack.bits < MIN_BITS:
        visit.sender.give_back()
        return None
    visit.sender.finish()
    return visit.initial_bits


@torch.inference_mode()
def pop_group(model: VDVAE, tables: Tables, group: Group, stack: Stack, direct: bool) -> Tensor:
    """Decodes a group: x (B, 3, H, W) in pixel levels; leaves the stack as it was before ``push_group``."""
    b, height, width = group.inside.shape
    x = torch.full((b, 3, height, width), float(FILL), device=group.inside.device)
    visit = Pop(model, tables, group, x, stack, direct)
    model.walk(x, visit)
    visit.receiver.finish()
    return x


class ExactElbo(Coding):
    """Visitor that counts the bits that coding would cost: latents (net of what is borrowed) and pixels."""

    def __init__(self, model: VDVAE, tables: Tables, group: Group, x: Tensor, seed: int = 0):
        super().__init__(model, tables, group)
        self.x, self.rng = x, np.random.default_rng(seed)
        self.kl_bits: list[float] = []
        self.pixel_bits: list[float] = []

    def latent(self, layer: LatentLayer, p: Gaussian, posterior: Callable[[Acts], Gaussian]) -> Tensor:
        if not layer.alive.any():
            self.kl_bits.append(0.0)
            return self.z(layer, p, np.zeros(0, np.int32))
        q = self.latent_bytes(layer, posterior(self.acts(self.x)))
        k = draw(q, self.rng)
        self.kl_bits.append(float((self.latent_bytes(layer, p).bits(k) - q.bits(k)).sum()))
        return self.z(layer, p, k)

    def pixels(self, layer: PixelLayer, p: Mixture, x: Tensor) -> None:
        p, plane = quantise(p), layer.plane(x)
        coded = zip(p.order, self.group.positions(layer), self.group.values(layer, p, x))
        self.pixel_bits.append(sum(
            float(pixel_distribution(self.tables, p, c, plane, at).bits(row).sum()) for c, at, row in coded
        ))


def draw(d: ByteHalves, rng: np.random.Generator) -> np.ndarray:
    """One sample (N,) int32 of each distribution: what popping random bits gives."""
    words = rng.integers(1, 2**32, 64 + len(d.low), np.uint32)
    return halves_codec(d).pop(Stack(words))


@torch.inference_mode()
def exact_elbo(model: VDVAE, tables: Tables, group: Group, x: Tensor) -> ExactElbo:
    """The negative ELBO of an exact model on a group, in bits, itemised by layer."""
    visit = ExactElbo(model, tables, group, x)
    model.walk(x, visit)
    return visit

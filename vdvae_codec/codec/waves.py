"""Codec of a causal layer: pushed in bulk from the parallel pass, popped a wavefront at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from vdvae_codec.codec.group import Group
from vdvae_codec.codec.pixels import Coded, among
from vdvae_codec.entropy.ans import Stack
from vdvae_codec.entropy.codec import Bytes, Codec, push_parts
from vdvae_codec.exact.cdf import Tables
from vdvae_codec.images.tiling import FILL
from vdvae_codec.model.distributions.joint import JointMixture
from vdvae_codec.model.layers.base import State
from vdvae_codec.model.layers.causal import CausalLayer

ORDER = JointMixture.order
PUSHED_PIXELS = 2**17  # whose frequencies are made at a time


def wave_codec(tables: Tables, group: Group, layer: CausalLayer, state: State) -> Codec:
    """Codec of a causal layer's coded sub-pixels (N,), colour after colour, each in the order of the wavefronts.

    ``push`` needs the image in ``state.x``; ``pop`` writes it there. On the stack, the parts are wavefronts: of
    each the first colour, then the second, then the third.
    """

    def push(stack: Stack, x: np.ndarray) -> np.ndarray:
        return push_waves(stack, tables, group, layer, state, x)

    def pop(stack: Stack) -> np.ndarray:
        pop_waves(stack, tables, group, layer, state)
        return np.concatenate(group.values(layer, ORDER, state.x))

    return Codec(push, pop)


def push_waves(
    stack: Stack, tables: Tables, group: Group, layer: CausalLayer, state: State, x: np.ndarray
) -> np.ndarray:
    """What each sub-pixel costs, float32 (N,) in bits."""
    bits = np.empty(len(x), np.float32)
    for chunk in reversed(list(chunks(group, layer, state))):
        coded, rows = chunk.coded(tables, layer), [x[own] for own in chunk.place]
        colours = [Bytes(coded.mixture(n, rows), row, chunk.part[n]) for n, row in enumerate(rows)]
        for own, cost in zip(chunk.place, push_parts(stack, colours)):
            bits[own] = cost
    return bits


def wave_bits(tables: Tables, group: Group, layer: CausalLayer, state: State, x: np.ndarray) -> float:
    """What ``push_waves`` would cost."""
    bits = 0.0
    for chunk in chunks(group, layer, state):
        coded, rows = chunk.coded(tables, layer), [x[own] for own in chunk.place]
        bits += sum(float(coded.mixture(n, rows).bits(row).sum()) for n, row in enumerate(rows))
    return bits


@dataclass(frozen=True)
class Chunk:
    """Some parts of a group."""

    parameters: Tensor  # rows (B h w, 13 K) of the whole group
    at: np.ndarray  # (N,): its pixels among them
    masks: list[np.ndarray]  # (N,) bool, whether the first and the later colours are coded
    part: list[np.ndarray]  # that each coded byte belongs to, by colour
    place: list[slice]  # of these bytes among all of the group

    def coded(self, tables: Tables, layer: CausalLayer) -> Coded:
        """Its pixels on the coder's grids."""
        rows = self.parameters.index_select(0, torch.from_numpy(self.at).to(self.parameters.device))
        return coded_pixels(tables, layer, rows, self.masks, len(self.place))


def coded_pixels(
    tables: Tables, layer: CausalLayer, rows: Tensor, masks: Sequence[np.ndarray] | None, channels: int
) -> Coded:
    """Of pixels with the parameters ``rows`` (N, 13 K), those that the masks (N,) of first and later colours say."""
    p = layer.distribution(rows)
    if masks is None or all(bool(mask.all()) for mask in masks):
        return Coded(p.integers(tables, None), None, channels)
    first, later = (torch.from_numpy(np.flatnonzero(mask)).to(rows.device) for mask in masks)
    return Coded(p.integers(tables, first), among(first, later), channels)


def chunks(group: Group, layer: CausalLayer, state: State) -> Iterator[Chunk]:
    """A group in the order of its wavefronts."""
    parameters = layer.strips(state)  # (B h w, 13 K)
    order, part = group.order(layer)
    masks = wave_masks(group, layer)
    starts = np.cumsum([0, *group.sizes(layer)])
    cuts = [0, *np.searchsorted(part, part[PUSHED_PIXELS::PUSHED_PIXELS]), len(part)]  # no part is cut
    for first, last in pairwise(cuts):
        own = [mask[first:last] for mask in masks]
        parts = [part[first:last][own[min(n, 1)]] for n in range(group.channels)]
        place = [slice(start, start + len(of)) for start, of in zip(starts, parts)]
        starts = starts[: group.channels] + [len(of) for of in parts]
        yield Chunk(parameters, order[first:last], own, parts, place)


def wave_masks(group: Group, layer: CausalLayer) -> list[np.ndarray]:
    """(N,) bool, in the order of wavefronts: whether the first and the later colours of each pixel are coded."""
    mask = layer.plane(group.coded_mask).cpu().numpy()
    order, _ = group.order(layer)
    return [mask[:, n].ravel()[order] for n in (0, -1)]


def pop_waves(stack: Stack, tables: Tables, group: Group, layer: CausalLayer, state: State) -> None:
    """Decodes the group into ``state.x``."""
    masks = wave_masks(group, layer)
    whole, end = all(bool(mask.all()) for mask in masks), 0
    for wave, rows, pixels in layer.waves(state):
        end += len(rows)
        own = None if whole else [mask[end - len(rows) : end] for mask in masks]
        coded = coded_pixels(tables, layer, rows, own, group.channels)
        values = np.split(coded.codec().pop(stack), np.cumsum(coded.sizes)[:-1])
        firsts = None if group.masked is None else pixels.firsts(wave).cpu().numpy()
        pixels.put(wave, torch.from_numpy(shown(values, len(rows), own, firsts)))


def shown(
    values: list[np.ndarray], count: int, masks: list[np.ndarray] | None, firsts: np.ndarray | None
) -> np.ndarray:
    """(N, 3) float32: decoded values of a wavefront, and what the network is shown where nothing is coded."""
    x = np.full((count, 3), FILL, np.float32)
    for n, c in enumerate(ORDER):
        row = values[min(n, len(values) - 1)]
        if masks is None:
            x[:, c] = row
        else:
            x[masks[min(n, len(values) - 1, 1)], c] = row
    if masks is not None and firsts is not None:
        x = np.where((masks[0] & ~masks[1])[:, None], (x[:, :1] + (firsts - firsts[:, :1])) % 256, x)
    return x

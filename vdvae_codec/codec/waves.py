"""Codec of a causal layer: pushed in bulk from the parallel pass, popped a wavefront at a time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise, zip_longest

import numpy as np
import torch
from torch import Tensor

from vdvae_codec.codec.group import LANES, Group
from vdvae_codec.codec.pixels import pixel_codec, scatter
from vdvae_codec.entropy.ans import Stack
from vdvae_codec.entropy.codec import Bytes, Codec, push_parts
from vdvae_codec.exact.arithmetic import threads
from vdvae_codec.exact.cdf import ByteMixture, Tables
from vdvae_codec.exact.wavefront import Pixels, Wave, lane_slices
from vdvae_codec.images.tiling import FILL
from vdvae_codec.model.distributions.joint import JointMixture
from vdvae_codec.model.layers.base import State
from vdvae_codec.model.layers.causal import CausalLayer

ORDER = JointMixture.order
Step = tuple[Wave, Tensor, Pixels]
PUSHED_PIXELS = 2**17  # whose frequencies are made at a time


def wave_codec(tables: Tables, group: Group, layer: CausalLayer, state: State) -> Codec:
    """Codec of a causal layer's coded sub-pixels (N,), colour after colour, each in the order of the wavefronts.

    ``push`` needs the image in ``state.x``; ``pop`` writes it there. On the stack, a part is a wavefront of one lane:
    its first colour, then the second, then the third.
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
    for chunk in reversed(list(chunks(group, layer, state, x))):
        colours = [Bytes(chunk.distribution(tables, c), chunk.x[c], chunk.part[c]) for c in range(group.channels)]
        for c, cost in enumerate(push_parts(stack, colours)):
            bits[chunk.place[c]] = cost
    return bits


def wave_bits(tables: Tables, group: Group, layer: CausalLayer, state: State, x: np.ndarray) -> float:
    """What ``push_waves`` would cost."""
    parts = chunks(group, layer, state, x)
    return sum(float(p.distribution(tables, c).bits(p.x[c]).sum()) for p in parts for c in range(group.channels))


@dataclass(frozen=True)
class Chunk:
    """Some parts of a group: its distributions on the coder's grids, and of each colour the coded sub-pixels."""

    p: JointMixture  # of N positions: (1, ..., 1, N)
    pixels: Tensor  # (1, 3, 1, N)
    coded: list[Tensor | None]  # which of the N positions; None is all
    x: list[np.ndarray]  # bytes
    part: list[np.ndarray]  # that each byte belongs to
    place: list[slice]  # of the bytes among all of the group

    def distribution(self, tables: Tables, colour: int) -> ByteMixture:
        return self.p.integers(tables, ORDER[colour], self.pixels, self.coded[colour])


def chunks(group: Group, layer: CausalLayer, state: State, x: np.ndarray) -> Iterator[Chunk]:
    """A group in the order of its wavefronts; x are its coded sub-pixels (N,), colour after colour in that order."""
    parameters = layer.strips(state)  # (B h w, 13 K)
    device = parameters.device
    planes = layer.plane(state.x).transpose(0, 1).flatten(1)  # (3, B h w)
    mask = layer.plane(group.coded_mask).transpose(0, 1).flatten(1)  # (1 or 2, B h w)
    order, part = group.order(layer)
    starts = np.cumsum([0, *group.sizes(layer)])
    cuts = [0, *np.searchsorted(part, part[PUSHED_PIXELS::PUSHED_PIXELS]), len(part)]  # no part is cut
    for first, last in pairwise(cuts):
        at = torch.from_numpy(order[first:last]).to(device)
        coded = [None if bool(own.all()) else own.nonzero()[:, 0] for own in (mask[0][at], mask[-1][at])]
        coded = [coded[min(c, 1)] for c in range(group.channels)]
        parts = [part[first:last] if own is None else part[first:last][own.cpu().numpy()] for own in coded]
        place = [slice(start, start + len(own)) for start, own in zip(starts, parts)]
        starts = starts[: group.channels] + [len(own) for own in parts]
        p = layer.distribution(parameters.index_select(0, at)).on_grid()
        pixels = planes.index_select(1, at)[None, :, None]
        yield Chunk(p, pixels, coded, [x[own] for own in place], parts, place)


def pop_waves(stack: Stack, tables: Tables, group: Group, layer: CausalLayer, state: State) -> None:
    """Decodes the group into ``state.x``."""
    lanes = [lane for lane in lane_slices(len(state.x), LANES) if lane.start < lane.stop]
    steps = [layer.waves(State(state.h[lane], state.stride, state.x[lane])) for lane in lanes]
    masks = WaveMasks(group, layer)
    for lane, (wave, rows, pixels) in alternating(steps):
        p, coded = layer.distribution(rows).on_grid(), masks.of(wave, lane)
        values = pixel_codec(tables, p, coded[: group.channels], group.channels).pop(stack)
        shown = pixels.firsts(wave) if group.masked is not None else None
        pixels.put(wave, colours_of(values, len(rows), coded, group.channels, shown))


class WaveMasks:
    """Which pixels of a part are coded."""

    def __init__(self, group: Group, layer: CausalLayer):
        order, part = group.order(layer)
        self.lanes, self.ends = LANES, np.cumsum(np.bincount(part))
        mask = layer.plane(group.coded_mask)
        at = torch.from_numpy(order).to(mask.device)
        self.masks = None if bool(mask.all()) else [mask[:, n].flatten()[at] for n in (0, -1)]

    def of(self, wave: Wave, lane: int) -> list[Tensor | None]:
        """Positions (n,) in the wavefront of one lane, of each colour; None is all."""
        if self.masks is None:
            return [None] * 3
        part = wave.t * self.lanes + lane
        own = slice(self.ends[part - 1] if part else 0, self.ends[part])
        first, later = (mask[own].nonzero()[:, 0] for mask in self.masks)
        return [first, later, later]


def alternating(steps: list[Iterator[Step]]) -> Iterator[tuple[int, Step]]:
    """The steps of all lanes in turn, with the lane's number; while one is used, the others are prepared."""
    count = torch.get_num_threads()
    if len(steps) == 1 or count == 1:
        for together in zip_longest(*steps):  # to the end of each
            yield from enumerate(together)
        return

    def prepare(lane: Iterator[Step]) -> Step | None:
        with torch.inference_mode(), threads(max(1, count // len(steps))):
            return next(lane, None)

    with threads(max(1, count // len(steps))), ThreadPoolExecutor(len(steps)) as pool:
        waiting = [pool.submit(prepare, lane) for lane in steps]
        while (step := waiting[0].result()) is not None:
            for n, lane in enumerate(steps):
                step = waiting[n].result()
                assert step is not None  # all lanes have the same wavefronts
                yield n, step
                waiting[n] = pool.submit(prepare, lane)


def colours_of(
    values: np.ndarray, count: int, coded: list[Tensor | None], channels: int, firsts: Tensor | None
) -> Tensor:
    """(N, 3): decoded values of a wavefront, and what the network is shown where nothing is coded."""
    x = torch.full((1, 3, 1, count), float(FILL))
    rows = np.split(values, np.cumsum([count if at is None else len(at) for at in coded[:channels]])[:-1])
    for n, c in enumerate(ORDER):
        own = min(n, channels - 1)
        scatter(x, c, coded[own], rows[own])
    out = x[0, :, 0].t()
    if firsts is not None and coded[1] is not None:
        here = torch.ones(count, dtype=torch.bool)
        if coded[0] is not None:
            here[:] = False
            here[coded[0]] = True
        here[coded[1]] = False
        out = torch.where(here[:, None], (out[:, :1] + (firsts - firsts[:, :1])) % 256, out)
    return out

"""Causal layers: p(x_i | z, x_<i) for every pixel of a grid in raster order, all with the same weights.

PixelCNN (arXiv 1601.06759) as layers of the list: the case of VDVAE's first proposition (arXiv 2011.10650) with a layer
for each pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Self

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vdvae_codec.errors import ConfigError
from vdvae_codec.exact.cdf import LOG_SIGMA_RANGE
from vdvae_codec.exact.conv import ExactConv
from vdvae_codec.exact.wavefront import Pixels, Rings, Strip, Wave, waves
from vdvae_codec.images.tiling import FILL
from vdvae_codec.model.blocks import FINE, CausalBlock, Conv, Gives, full, upsample
from vdvae_codec.model.distributions.joint import JointMixture
from vdvae_codec.model.layers.base import Offset, PixelLayer, Place, State, Visitor
from vdvae_codec.model.layers.phase import COUPLING, PIXEL_EXPONENT, PIXELS, SIGMAS, mean

SEEN: tuple[int, int, int] = (7, 0, 2047)  # grid of what the head takes in
STRIP_PIXELS = 2**12  # of a strip: what its layers give stays in a core's cache
START = {(0, -1): 0.75, (-1, 0): 0.75, (-1, -1): -0.5}  # of the linear predictions


@dataclass(frozen=True)
class CausalConfig:
    """A causal layer over the pixels at one offset of each grid step."""

    KIND: ClassVar[str] = "causal"

    width: int
    bottleneck: int  # channels inside the residual blocks
    blocks: int
    mixtures: int  # logistic components that span the colours, each with linear predictors of its own
    reach: int = 3  # of what the linear predictors and the first layer see: rows above, and pixels to each side
    stride: int = 1
    offset: Offset = (0, 0)

    def __post_init__(self) -> None:
        if min(self.width, self.bottleneck, self.mixtures, self.reach) < 1 or self.blocks < 0:
            raise ConfigError(f"{self.KIND} at stride {self.stride}: sizes must be positive")
        if any(not 0 <= d < self.stride for d in self.offset):
            raise ConfigError(f"{self.KIND} at stride {self.stride}: the offset lies outside the grid step")

    @property
    def depth(self) -> int:
        return self.blocks

    @property
    def holds(self) -> tuple[Offset, ...]:
        return (self.offset,)

    @property
    def needs_encoder(self) -> bool:
        return False

    def single(self) -> list[Self]:
        return [self]


class CausalLayer(PixelLayer):
    """All pixels of a grid, given the state, the pixels before them, and those that earlier layers hold.

    Pixel (y, x) sees pixels and features with a smaller x + 2 y alone, so that all pixels of one x + 2 y can be decoded
    together. K linear predictors of each colour give the bases of K components; the network sees what is known
    relative to their mean, and that mean.
    """

    Config = CausalConfig

    def __init__(self, config: CausalConfig, place: Place):
        super().__init__(config, place)
        self.offset, self.channels, self.mixtures = config.offset, place.channels, config.mixtures
        k, width, reach = config.mixtures, config.width, config.reach
        self.width, self.reach, self.taps = width, reach, causal_taps(reach)
        n = len(self.taps)
        self.earlier = sorted({(dy % self.stride, dx % self.stride) for _, (dy, dx) in place.known})
        self.predictor = Conv(3 * n, 3 * k, 1, bias=False, takes=PIXELS, gives=Gives.PARAMETERS)
        self.embed = Conv(3 * n + 3, width, 1, takes=FINE)
        self.around = Conv(3 * len(self.earlier), width, 3, takes=FINE) if self.earlier else None
        gain = max(1, config.blocks) ** -0.5
        self.blocks = nn.ModuleList(CausalBlock(width, config.bottleneck, gain) for _ in range(config.blocks))
        self.head = Conv(width, 10 * k, 1, gain=0.1, takes=SEEN, gives=Gives.PARAMETERS)
        with torch.no_grad():
            start = torch.zeros(3, n, 3)
            for tap, weight in START.items():
                start[:, self.taps.index(tap)] += weight * torch.eye(3)
            self.predictor.weight.copy_(2**PIXEL_EXPONENT * start.view(3, 3 * n, 1, 1).repeat(k, 1, 1, 1))
            bias = self.head.bias
            assert bias is not None
            bias[4 * k : 7 * k] = torch.tensor(SIGMAS).log()[torch.arange(k) % len(SIGMAS)].repeat_interleave(3)
            bias[7 * k :] = torch.tensor(COUPLING).repeat(k)

    def forward(self, state: State, visit: Visitor) -> State:
        h = self.widened(state)
        if self.around is not None:
            h = self.enter(state)
            earlier = torch.cat([self.plane(state.x, o) for o in self.earlier], 1)
            h = h + self.around((earlier - 128) * 2.0**-6)
        state = State(h, state.stride if self.around is None else self.stride, state.x)
        visit.causal(self, state)
        return state

    def distributions(self, state: State) -> JointMixture:
        """Of all pixels of an image that is known: (B, ..., h, w)."""
        if not isinstance(self.embed, ExactConv):
            return self.parallel(state)
        b, _, height, width = self.plane(state.x).shape
        columns = self.strips(state).view(b, height, width, -1).permute(0, 3, 1, 2).contiguous()
        bases = columns[:, 10 * self.mixtures :].reshape(b, self.mixtures, 3, height, width)
        return self.mixture(columns[:, : 10 * self.mixtures], bases)

    def parallel(self, state: State) -> JointMixture:
        """Likewise, of a float model: each convolution over the whole image."""
        x = self.plane(state.x)
        height, width = x.shape[2:]
        r = self.reach
        padded = F.pad(x, (r, r, r, 0), value=float(FILL))
        known = torch.cat([padded[:, :, r + dy :, r + dx :][:, :, :height, :width] for dy, dx in self.taps], 1)
        bases = self.bases(known)
        h = upsample(state.h, state.stride // self.stride)[:, :, :height, :width]
        f = run(self.embed, self.seen(known, bases)) + h
        for block in self.causal_blocks:
            f = block(f)
        return self.mixture(full(self.head(f)).contiguous(), bases)

    def strips(self, state: State) -> Tensor:
        """What the head gives for all pixels of an image that is known, and the bases: rows (B h w, 13 K).

        The parameters of ``parallel``, bit by bit on an exact model, in less time and memory.
        """
        plane = self.plane(state.x)
        count, _, height, width = plane.shape
        tiles = max(1, STRIP_PIXELS // (height * width))
        rows = min(height, max(1, STRIP_PIXELS // (tiles * width)))
        out = torch.empty(count, height * width, 13 * self.mixtures, device=plane.device)
        kept = self.kept()
        for n in range(0, count, tiles):
            x, h = plane[n : n + tiles], rows_of(state.h[n : n + tiles])
            pixels = Pixels(x, self.reach, FILL)
            pixels.fill(x)
            strips = [Strip(len(x), rows, width, *kept) for _ in self.blocks]
            for y in range(0, height, rows):
                here = min(rows, height - y)
                known = pixels.strip(y, here, self.taps)
                at = torch.arange(y, y + here, device=x.device)[:, None], torch.arange(width, device=x.device)
                found = self.network(known, self.features(state, h, *at), [partial(s.neighbours, here) for s in strips])
                out[n : n + tiles, y * width : (y + here) * width] = found.view(len(x), here * width, -1)
        return out.flatten(0, 1)

    def waves(self, state: State) -> Iterator[tuple[Wave, Tensor, Pixels]]:
        """The same rows a wavefront at a time, (N, 13 K) of its N pixels.

        The caller puts these pixels before it asks for the next wavefront; what it has put is the plane of state.x in
        the end. What the image holds before does not matter.
        """
        plane, h = self.plane(state.x), rows_of(state.h)
        tiles, _, height, width = plane.shape
        pixels = Pixels(plane, self.reach, FILL)
        rings = Rings(len(self.blocks), tiles, height, *self.kept())
        for wave in waves(height, width):
            y = torch.arange(wave.low, wave.high, device=plane.device)
            features = self.features(state, h, y, wave.t - 2 * y)
            yield wave, self.network(pixels.known(wave, self.taps), features, rings.neighbours(wave)), pixels
        plane.copy_(pixels.images())

    def kept(self) -> tuple[int, torch.dtype, torch.device]:
        """Of what each block keeps: channels, type and device."""
        types = {block.c1.kept for block in self.causal_blocks}
        return self.width, types.pop() if len(types) == 1 else torch.float32, self.predictor.weight.device

    def features(self, state: State, h: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """The state's features, of which h are the ``rows_of`` all tiles, at positions (y, x): (T, n or 1, width)."""
        if h.shape[1] == 1:
            return h
        factor = state.stride // self.stride
        cell = (y // factor) * state.h.shape[3] + x // factor
        return h.index_select(1, cell.flatten())

    def network(self, known: Tensor, h: Tensor, neighbours: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
        """What the head gives, and the bases (N, 13 K), from what is known (N, 3 n) and the ``features`` of N = T n
        positions."""
        bases = self.bases(known)
        f = run(self.embed, self.seen(known, bases))
        f.view(len(h), -1, f.shape[1]).add_(h)
        for block, near in zip(self.causal_blocks, neighbours):
            f = block.rows(f, near)
        return torch.cat([full(run(self.head, f)), bases.flatten(1)], 1)

    def distribution(self, rows: Tensor) -> JointMixture:
        """Of N pixels, from rows (N, 13 K): all of its tensors are (1, ..., 1, N)."""
        columns = rows.t().contiguous()[None, :, None]  # (1, 13 K, 1, N)
        split = 10 * self.mixtures
        return self.mixture(columns[:, :split], columns[:, split:].view(1, self.mixtures, 3, 1, -1))

    @property
    def causal_blocks(self) -> list[CausalBlock]:
        return [block for block in self.blocks if isinstance(block, CausalBlock)]

    def bases(self, known: Tensor) -> Tensor:
        """Linear predictions (B, K, 3, ...) in pixel levels from what is known (B, 3 n, ...), in full precision."""
        with torch.autocast(known.device.type, enabled=False):
            bases = run(self.predictor, (known - 128) * 2.0**-PIXEL_EXPONENT) + 128
            split: Tensor = bases.view(len(bases), self.mixtures, 3, *bases.shape[2:])
            return split

    def seen(self, known: Tensor, bases: Tensor) -> Tensor:
        """What the network takes in: (B, 3 n + 3, ...)."""
        base = mean(bases)
        n = len(self.taps)
        relative = known.view(len(known), n, 3, *known.shape[2:]) - base[:, None]
        return torch.cat([relative.flatten(1, 2) * 2.0**-4, (base - 128) * 2.0**-6], 1)

    def mixture(self, out: Tensor, bases: Tensor) -> JointMixture:
        """The distribution that the head's channels ``out`` (B, 10 K, h, w) describe."""
        b, _, height, width = out.shape
        k = self.mixtures
        loc, log_sigma, coupling = out[:, k:].reshape(b, 3, k, 3, height, width).unbind(1)  # each (B, K, 3, h, w)
        return JointMixture(out[:, :k], loc, log_sigma.clamp(*LOG_SIGMA_RANGE), bases, coupling)


def run(conv: Conv, x: Tensor) -> Tensor:
    """A 1x1 convolution of an image (B, cin, h, w), or of rows (N, cin)."""
    y: Tensor = conv.rows(conv.take_rows(x)) if x.ndim == 2 else conv(x)
    return y


def rows_of(h: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h w, C)"""
    return h.permute(0, 2, 3, 1).flatten(1, 2)


def causal_taps(reach: int) -> list[Offset]:
    """(dy, dx) of the pixels within ``reach`` that have a smaller x + 2 y and come earlier."""
    rows = range(-reach, 1)
    return [(dy, dx) for dy in rows for dx in range(-reach, reach + 1) if dx + 2 * dy < 0 and (dy, dx) < (0, 0)]


"""Tiles that are coded together: which of their pixels, in which order, and what the network is shown of the others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vdvae_codec.exact.wavefront import wave_order
from vdvae_codec.model.layers.base import PixelLayer
from vdvae_codec.model.layers.causal import CausalLayer
from vdvae_codec.model.vdvae import VDVAE
from vdvae_codec.transforms.chroma import OTHERS, between


class Group:
    """Tiles (B, 3, H, W) of one shape, coded together; channels in G, R, B order.

    ``coded_mask`` (B, 1 or 2, H, W) bool marks what is coded: of the first colour, and of the later ones. Grey images
    code the first colour alone, which the others copy. Elsewhere the network is shown a fill: beyond the border of an
    image FILL, and for later colours that are not coded those of the first pixels of 2x2 blocks: ``between`` them, or,
    of a causal model, which has not seen the next ones, those of the block itself.
    """

    def __init__(self, coded_mask: Tensor):
        self.coded_mask, self.channels = coded_mask, 1 if coded_mask.shape[1] == 1 else 3
        self._positions: dict[PixelLayer, list[Tensor | None]] = {}

    @cached_property
    def masked(self) -> Tensor | None:
        """(B, 1, H, W) bool: pixels whose later colours are not coded though the first is; None for none."""
        first, later = self.coded_mask[:, :1], self.coded_mask[:, -1:]
        found = first & ~later
        return found if bool(found.any()) else None

    def positions(self, layer: PixelLayer) -> list[Tensor | None]:
        """Indices (N,) of each coded colour's positions in the flattened (B, h, w) of a layer; None for all.

        Those of a causal layer are in the order of its wavefronts.
        """
        if layer not in self._positions:
            mask = layer.plane(self.coded_mask)
            first, later = mask[:, 0].flatten(), mask[:, -1].flatten()
            if isinstance(layer, CausalLayer):
                order = torch.from_numpy(self.order(layer)[0]).to(mask.device)
                at: list[Tensor | None] = [order[own[order]] for own in (first, later)]
            else:
                at = [None if bool(own.all()) else own.nonzero()[:, 0] for own in (first, later)]
            self._positions[layer] = [at[0], *[at[1]] * (self.channels - 1)]
        return self._positions[layer]

    def order(self, layer: PixelLayer) -> tuple[np.ndarray, np.ndarray]:
        """As ``wave_order``, of this group's tiles."""
        count, _, height, width = layer.plane(self.coded_mask).shape
        return wave_order(count, height, width)

    def sizes(self, layer: PixelLayer) -> list[int]:
        """Number of coded sub-pixels of each colour of a layer."""
        whole = layer.plane(self.coded_mask[:, :1]).numel()
        return [whole if at is None else len(at) for at in self.positions(layer)]

    def values(self, layer: PixelLayer, order: Sequence[int], x: Tensor) -> list[np.ndarray]:
        """The coded sub-pixels (N,) of each colour of a layer, as they are coded, from the image x (B, 3, H, W)."""
        plane = layer.plane(x).to(torch.int32)
        flat = [plane[:, c].flatten() for c in order[: self.channels]]
        chosen = zip(flat, self.positions(layer))
        return [(values if at is None else values[at]).cpu().numpy() for values, at in chosen]

    def fill(self, x: Tensor, layer: PixelLayer | None = None) -> None:
        """Writes the colours that are not coded into x (B, 3, H, W), or into the pixels of one layer."""
        if self.masked is None:
            return
        for dy, dx in OTHERS:
            step = 2
            if layer is not None:
                if (layer.offset[0] % 2, layer.offset[1] % 2) != (dy, dx):
                    continue
                step, (dy, dx) = layer.stride, layer.offset
            first = x[:, 1:, ::2, ::2] - x[:, :1, ::2, ::2]  # (B, 2, H/2, W/2)
            means = between(first, (dy % 2, dx % 2))[:, :, dy // 2 :: step // 2, dx // 2 :: step // 2]
            pixels = x[:, :, dy::step, dx::step]
            here = self.masked[:, :, dy::step, dx::step]
            pixels[:, 1:] = torch.where(here, (pixels[:, :1] + means) % 256, pixels[:, 1:])


def fill_causally(group: Group, x: Tensor) -> None:
    """Writes the colours that are not coded into x (B, 3, H, W): those of their block's first pixel."""
    if group.masked is not None:
        first = (x[:, 1:, ::2, ::2] - x[:, :1, ::2, ::2]).repeat_interleave(2, 2).repeat_interleave(2, 3)
        x[:, 1:] = torch.where(group.masked, (x[:, :1] + first) % 256, x[:, 1:])


def fill(model: VDVAE, group: Group, x: Tensor) -> None:
    """Writes what is not coded into x (B, 3, H, W), as the model is shown it."""
    if model.config.causal:
        fill_causally(group, x)
    else:
        group.fill(x)


def codes_first_pixels_first(model: VDVAE) -> bool:
    """Whether the first pixels of all 2x2 blocks are coded before the others, as ``Group.fill`` needs."""
    layers = model.pixel_layers
    if model.config.causal:
        return layers[0].channels == 3
    odd = [bool(dy % 2 or dx % 2) for dy, dx in (layer.offset for layer in layers)]
    return all(layer.stride % 2 == 0 and layer.channels == 3 for layer in layers) and odd == sorted(odd)

"""Codec of the colours of some pixels, each under its distribution given those before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from vdvae_codec.entropy.codec import Codec, chain, support_codec
from vdvae_codec.exact.cdf import ByteMixture
from vdvae_codec.model.distributions.logistics import Colours


class Coded:
    """N pixels of which the first colour is coded, and of those ``later`` (n,) the others too; None is all.

    ``colours`` are the distributions of the N pixels; ``channels`` is how many colours there are.
    """

    def __init__(self, colours: Colours, later: np.ndarray | None, channels: int):
        self.colours, self.later, self.channels = colours, later, channels
        self.rest = colours if later is None or channels == 1 else colours.select(later)
        rest = self.rest.scale.shape[-1]
        self.sizes = [colours.scale.shape[-1], rest, rest][:channels]

    def mixture(self, place: int, rows: Sequence[np.ndarray]) -> ByteMixture:
        """Of the colour coded at ``place``, given the coded bytes of those before it."""
        if place == 0:
            return self.colours.mixture(0, ())
        first = rows[0] if self.later is None else rows[0][self.later]
        return self.rest.mixture(place, [first, *rows[1:place]])

    def codec(self) -> Codec:
        """Of bytes (N + ...,), colour after colour."""

        def colour(n: int) -> Callable[[list[np.ndarray]], Codec]:
            return lambda rows: support_codec(self.mixture(n, rows))

        return chain([colour(n) for n in range(self.channels)], self.sizes)


def among(first: Tensor | None, later: Tensor | None) -> np.ndarray | None:
    """Where sorted positions ``later`` lie among the sorted ``first``, None being all; None if they are the same."""
    if later is None or later is first or (first is not None and len(first) == len(later)):
        return None
    at = later.cpu().numpy()
    found: np.ndarray = at if first is None else np.searchsorted(first.cpu().numpy(), at)
    return found


def scatter(x: Tensor, channel: int, positions: Tensor | None, values: np.ndarray) -> None:
    """Writes values (N,) at the positions (None: all) of one channel of x (B, C, h, w)."""
    plane = torch.from_numpy(values).to(x.device, torch.float32)
    if positions is not None:
        plane = x[:, channel].flatten().index_copy(0, positions, plane)
    x[:, channel] = plane.view(x[:, channel].shape)

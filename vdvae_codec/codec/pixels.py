"""Codec of the colours of some pixels, each under its mixture given those before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from vdvae_codec.entropy.codec import Codec, chain, support_codec
from vdvae_codec.exact.cdf import Tables
from vdvae_codec.images.tiling import FILL
from vdvae_codec.model.distributions.logistics import Mixture


def pixel_codec(tables: Tables, p: Mixture, positions: Sequence[Tensor | None], channels: int) -> Codec:
    """Codec of sub-pixels (N,) in 0..255 under p, which is ``on_grid``: colour after colour in p's order.

    ``positions`` (N,) of each of the first ``channels`` colours are those in p's flattened (B, h, w); None is all.
    """
    whole = p.log_sigma[:, 0, 0].numel()

    def colour(n: int) -> Callable[[list[np.ndarray]], Codec]:
        def given(rows: list[np.ndarray]) -> Codec:
            x = torch.full_like(p.log_sigma[:, 0], FILL)  # (B, 3, h, w)
            for known, at, row in zip(p.order, positions, rows):
                scatter(x, known, at, row)
            return support_codec(p.integers(tables, p.order[n], x, positions[n]))

        return given

    return chain([colour(n) for n in range(channels)], [whole if at is None else len(at) for at in positions])


def scatter(x: Tensor, channel: int, positions: Tensor | None, values: np.ndarray) -> None:
    """Writes values (N,) at the positions (None: all) of one channel of x (B, C, h, w)."""
    plane = torch.from_numpy(values).to(x.device, torch.float32)
    if positions is not None:
        plane = x[:, channel].flatten().index_copy(0, positions, plane)
    x[:, channel] = plane.view(x[:, channel].shape)

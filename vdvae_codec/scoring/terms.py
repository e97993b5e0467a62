"""The terms that all scores are made of: bits of every layer, image by image, from the same walk as everything else.

Models are float or exact ones; the numbers are floats in bits. What is drawn depends on an image's pixels alone, so
that neither the batch nor the order matters.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from vdvae_codec.exact.arithmetic import plain
from vdvae_codec.images.tiling import Place, cut_tiles, tile_boxes
from vdvae_codec.model.distributions.gaussian import Gaussian, gaussian_kl
from vdvae_codec.model.distributions.logistics import Mixture
from vdvae_codec.model.layers.base import Acts, PixelLayer, Visitor
from vdvae_codec.model.layers.latent import LatentLayer
from vdvae_codec.model.vdvae import VDVAE

BATCH_PIXELS = {"cpu": 2**17, "cuda": 2**21}  # of tiles that are scored at a time: bounds the memory
NATS = math.log(2)  # of a bit
CELLS = (1, 2, 4, 8)  # sides of the cells over which bits are averaged, in pixels


@dataclass(frozen=True)
class Terms:
    """Of one image, in bits. Layers in the order of the walk; latent layers without active channels count, as 0."""

    kl_bits: tuple[float, ...]  # of each latent layer
    pixel_bits: tuple[float, ...]  # of each pixel layer
    colour_bits: tuple[float, ...]  # of each colour given those before it, over all pixel layers: one or three
    expected_bits: tuple[float, ...]  # of each pixel layer for pixels drawn from its own distribution
    prior_bits: tuple[float, ...]  # of L^{>k}, k = 1, 2, ... active latent layers from their priors; if asked for
    squares: tuple[float, ...]  # for each of CELLS the sum, over pixels, of the squared mean bits of the cell, bits^2
    bound_bits: float  # negative ELBO, or the importance weighted bound of several samples


class Noise:
    """Chance that depends on an image's pixels (B, 3, h, w) uint8 and the number of the sample alone."""

    def __init__(self, x: np.ndarray, sample: int, device: torch.device):
        self.device = device
        self.generators = [torch.Generator().manual_seed(zlib.crc32(tile.tobytes(), sample)) for tile in x]

    def uniform(self, like: Tensor) -> Tensor:
        return torch.stack([torch.rand(like.shape[1:], generator=g) for g in self.generators]).to(self.device)

    def normal(self, like: Tensor) -> Tensor:
        return torch.stack([torch.randn(like.shape[1:], generator=g) for g in self.generators]).to(self.device)


class Itemise(Visitor):
    """Visitor that counts the bits of each layer and image.

    ``coded_mask`` (B, H, W) float marks the pixels that belong to an image; of ``active`` latent layers with active
    channels the last ``below`` come from their priors. ``heat`` (B, H, W) are the bits of each pixel.
    """

    def __init__(self, acts: Acts, coded_mask: Tensor, channels: int, noise: Noise, active: int, below: int):
        self.acts, self.coded_mask, self.channels, self.noise = acts, coded_mask, channels, noise
        self.left, self.below = active, below
        self.heat = torch.zeros_like(coded_mask)
        self.kl_bits: list[Tensor] = []  # (B,) of each latent layer
        self.ratio_bits = torch.zeros(len(coded_mask), device=coded_mask.device)  # log2 q(z) - log2 p(z) of the drawn z
        self.pixel_bits: list[Tensor] = []
        self.colour_bits = [torch.zeros_like(self.ratio_bits) for _ in range(channels)]
        self.expected_bits: list[Tensor] = []

    @property
    def layer_bits(self) -> list[Tensor]:
        """(B,) of each layer."""
        return self.kl_bits + self.pixel_bits

    def latent(self, layer: LatentLayer, p: Gaussian, posterior: Callable[[Acts], Gaussian]) -> Tensor:
        if not layer.active.any():
            self.kl_bits.append(torch.zeros_like(self.ratio_bits))
            return p.mean
        self.left -= 1
        active, noise = layer.active[:, None, None], self.noise.normal(p.mean)
        q = p if self.left < self.below else posterior(self.acts)
        z = q.mean + noise * q.log_sigma.exp()
        kl = gaussian_kl(q, p) * active / NATS  # (B, zdim, h, w)
        self.kl_bits.append(kl.sum((1, 2, 3)))
        log_q, log_p = ((-0.5 * ((z - d.mean) / d.log_sigma.exp()) ** 2 - d.log_sigma) * active for d in (q, p))
        self.ratio_bits = self.ratio_bits + (log_q - log_p).sum((1, 2, 3)) / NATS
        spread = kl.sum(1).repeat_interleave(layer.stride, 1).repeat_interleave(layer.stride, 2)
        self.heat += spread[:, : self.heat.shape[1], : self.heat.shape[2]] / layer.stride**2
        return torch.where(active, z, p.mean)

    def pixels(self, layer: PixelLayer, p: Mixture, x: Tensor) -> None:
        coded_mask = layer.plane(self.coded_mask[:, None])  # (B, 1, h, w)
        plane = layer.plane(x)

        def bits_of(plane: Tensor, channels: int) -> Tensor:  # (B, 1 or channels, h, w)
            return p.nll_nats(plane, channels) * coded_mask / NATS

        bits = bits_of(plane, self.channels)
        self.pixel_bits.append(bits.sum((1, 2, 3)))
        layer.plane(self.heat[:, None]).add_(bits.sum(1, keepdim=True))
        if self.below:
            return
        if bits.shape[1] == self.channels:
            colours = list(bits.sum((2, 3)).unbind(1))
        else:  # components span the colours: what each one adds
            first, two = (bits_of(plane, n).sum((1, 2, 3)) for n in (1, 2))
            colours = [first, two - first, self.pixel_bits[-1] - two]
        self.colour_bits = [total + added for total, added in zip(self.colour_bits, colours)]
        drawn = p.sample(uniform=self.noise.uniform)
        self.expected_bits.append(bits_of(drawn, self.channels).sum((1, 2, 3)))


@plain()
def tile_terms(
    model: VDVAE, x: np.ndarray, coded_mask: np.ndarray, channels: int, samples: int, llr: bool
) -> tuple[list[Terms], np.ndarray]:
    """Terms of tiles x (B, 3, h, w) uint8, G, R, B, and the bits (B, h, w) float32 of each of their pixels.

    coded_mask: (B, h, w) bool; channels: 3, or 1 of grey images; samples: K of the importance weighted bound; llr:
    whether ``prior_bits`` are wanted.
    """
    device = model.bias.device
    image = torch.from_numpy(x).to(device).float().contiguous(memory_format=torch.channels_last)
    mask = torch.from_numpy(coded_mask).to(device).float()
    active = sum(bool(layer.active.any()) for layer in model.latent_layers)
    acts = model.encode(image) if active else {}

    def walk(sample: int, below: int = 0) -> Itemise:
        visit = Itemise(acts, mask, channels, Noise(x, sample, device), active, below)
        model.walk(image, visit)
        return visit

    walks = [walk(sample) for sample in range(samples)]
    names = ("kl_bits", "pixel_bits", "colour_bits", "expected_bits")
    parts = {name: np.mean([_array(getattr(w, name), len(x)) for w in walks], 0) for name in names}  # (layers, B)
    prior = [walk(0, below).layer_bits for below in range(1, active + 1 if llr else 1)]
    parts["prior_bits"] = np.array([_array(bits, len(x)).sum(0) for bits in prior]).reshape(-1, len(x))
    heat: np.ndarray = torch.stack([w.heat for w in walks]).mean(0).cpu().numpy()
    own = heat * coded_mask
    parts["squares"] = np.array([squares(own, side) for side in CELLS])
    bound = parts["kl_bits"].sum(0) + parts["pixel_bits"].sum(0) if samples == 1 else weighted_bound(walks)
    rows = [
        Terms(**{name: tuple(part[:, n].tolist()) for name, part in parts.items()}, bound_bits=float(bound[n]))
        for n in range(len(x))
    ]
    return rows, heat


def squares(heat: np.ndarray, side: int) -> np.ndarray:
    """``Terms.squares`` of the bits of pixels (B, H, W) for cells of one side: (B,) float64. Cut cells are left out."""
    count, height, width = heat.shape[0], heat.shape[1] // side, heat.shape[2] // side
    cells = heat[:, : height * side, : width * side].reshape(count, height, side, width, side).mean((2, 4), np.float64)
    found: np.ndarray = (cells**2).sum((1, 2)) * side**2
    return found


def _array(rows: Sequence[Tensor], count: int) -> np.ndarray:
    """(layers, B) float64 of tensors (B,), B = ``count``, of each layer."""
    array: np.ndarray = torch.stack(list(rows)).double().cpu().numpy() if rows else np.zeros((0, count))
    return array


def weighted_bound(walks: Sequence[Itemise]) -> np.ndarray:
    """(B,) bits: the importance weighted bound of walks with a sample each (Burda 2016, arXiv 1509.00519, eq. 8)."""
    weights = torch.stack([-w.ratio_bits - torch.stack(w.pixel_bits).sum(0) for w in walks]).double()
    bound: np.ndarray = -((torch.logsumexp(weights * NATS, 0) - math.log(len(walks))) / NATS).cpu().numpy()
    return bound


def image_terms(
    model: VDVAE, images: Sequence[np.ndarray], samples: int = 1, llr: bool = False
) -> tuple[list[Terms], list[np.ndarray]]:
    """Terms of images (H, W, 1 or 3) uint8, and the bits (H, W) float32 of each of their pixels.

    Images are cut into the tiles that coding would use; those of one shape are scored together. Raises ModelError if
    the model is for images of another size.
    """
    config, device = model.config, model.bias.device
    tiles: dict[tuple[tuple[int, int], int], list[Place]] = {}
    for n, image in enumerate(images):
        height, width, channels = image.shape
        tile = config.tile_of(height, width)
        tiles.setdefault((tile, channels), []).extend((n, box) for box in tile_boxes(height, width, tile))
    parts: list[list[Terms]] = [[] for _ in images]
    heat = [np.zeros(image.shape[:2], np.float32) for image in images]
    for (tile, channels), places in tiles.items():
        size = max(1, BATCH_PIXELS[device.type] // (tile[0] * tile[1]))
        for some in (places[start : start + size] for start in range(0, len(places), size)):
            x, coded_mask = cut_tiles(images, some, tile)
            terms, bits = tile_terms(model, x, coded_mask, channels, samples, llr)
            for (n, (y0, x0, y1, x1)), term, part in zip(some, terms, bits):
                parts[n].append(term)
                heat[n][y0:y1, x0:x1] = part[: y1 - y0, : x1 - x0]
    return [_total(part) for part in parts], heat


def _total(parts: Sequence[Terms]) -> Terms:
    """Of an image, from those of its tiles."""
    *names, _ = (f.name for f in fields(Terms))
    sums = {name: tuple(map(sum, zip(*(getattr(part, name) for part in parts)))) for name in names}
    return Terms(**sums, bound_bits=sum(part.bound_bits for part in parts))

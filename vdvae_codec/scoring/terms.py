"""The terms that all scores are made of: bits of every layer, image by image, from the same walk as everything else.

Models are float or exact ones; the numbers are floats in bits. What is drawn depends on an image's pixels alone, so
that neither the batch nor the order matters.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vdvae_codec.distributions import Gaussian, Mixture, gaussian_kl
from vdvae_codec.images import Place, cut_tiles, tile_boxes, tile_grid
from vdvae_codec.model.layers import Acts, LatentLayer, PixelLayer
from vdvae_codec.model.vdvae import VDVAE

BATCH_PIXELS = {"cpu": 2**17, "cuda": 2**21}  # of tiles that are scored at a time: bounds the memory
NATS = math.log(2)  # of a bit


@dataclass(frozen=True)
class Terms:
    """Of one image, in bits. Layers in the order of the walk; dead latent layers cost nothing and count as layers."""

    kl_bits: tuple[float, ...]  # of each latent layer
    pixel_bits: tuple[float, ...]  # of each pixel layer
    colour_bits: tuple[float, ...]  # of each colour given those before it, over all pixel layers: one or three
    expected_bits: tuple[float, ...]  # of each pixel layer for pixels drawn from its own distribution
    prior_bits: tuple[float, ...]  # of the bound L^{>k}, k = 1, 2, ... live latent layers drawn from their priors
    bound_bits: float  # negative ELBO, or the importance weighted bound of several samples


class Noise:
    """Chance that depends on an image's pixels (B, 3, h, w) uint8 and the number of the sample alone."""

    def __init__(self, x: np.ndarray, sample: int, device: torch.device):
        self.device = device
        self.generators = [
            torch.Generator().manual_seed(zlib.crc32(tile.tobytes(), sample)) for tile in x
        ]

    def uniform(self, like: Tensor) -> Tensor:
        return torch.stack([torch.rand(like.shape[1:], generator=g) for g in self.generators]).to(self.device)

    def normal(self, like: Tensor) -> Tensor:
        return torch.stack([torch.randn(like.shape[1:], generator=g) for g in self.generators]).to(self.device)


class Surprise:
    """Visitor that counts bits of each layer and image; the last ``below`` live latents come from their priors.

    ``inside`` (B, H, W) float marks the pixels that belong to an image; ``heat`` (B, H, W) takes the bits of each.
    """

    def __init__(self, acts: Acts, inside: Tensor, channels: int, noise: Noise, live: int, below: int, heat: Tensor):
        self.acts, self.inside, self.channels, self.noise, self.heat = acts, inside, channels, noise, heat
        self.left, self.below = live, below
        self.kl_bits: list[Tensor] = []  # (B,) of each latent layer
        self.ratio_bits = torch.zeros(len(inside), device=inside.device)  # log2 q(z) - log2 p(z) of what was drawn
        self.pixel_bits: list[Tensor] = []
        self.colour_bits = [torch.zeros_like(self.ratio_bits) for _ in range(channels)]
        self.expected_bits: list[Tensor] = []

    def latent(self, layer: LatentLayer, p: Gaussian, posterior: Callable[[Acts], Gaussian]) -> Tensor:
        if not layer.alive.any():
            self.kl_bits.append(torch.zeros_like(self.ratio_bits))
            return p.mean
        self.left -= 1
        alive, noise = layer.alive[:, None, None], self.noise.normal(p.mean)
        q = p if self.left < self.below else posterior(self.acts)
        z = q.mean + noise * q.log_sigma.exp()
        kl = gaussian_kl(q, p) * alive / NATS  # (B, zdim, h, w)
        self.kl_bits.append(kl.sum((1, 2, 3)))
        log_q, log_p = ((-0.5 * ((z - d.mean) / d.log_sigma.exp()) ** 2 - d.log_sigma) * alive for d in (q, p))
        self.ratio_bits = self.ratio_bits + (log_q - log_p).sum((1, 2, 3)) / NATS
        spread = kl.sum(1).repeat_interleave(layer.stride, 1).repeat_interleave(layer.stride, 2)
        self.heat += spread / layer.stride**2
        return torch.where(alive, z, p.mean)

    def pixels(self, layer: PixelLayer, p: Mixture, x: Tensor) -> None:
        inside = layer.plane(self.inside[:, None])  # (B, 1, h, w)
        plane = layer.plane(x)
        bits = p.nll_nats(plane, self.channels) * inside / NATS  # (B, 1 or channels, h, w)
        self.pixel_bits.append(bits.sum((1, 2, 3)))
        layer.plane(self.heat[:, None]).add_(bits.sum(1, keepdim=True))
        if not self.below:
            if bits.shape[1] == self.channels:
                colours = bits.sum((2, 3)).unbind(1)
            else:  # components span the colours: what each one adds
                first, two = ((p.nll_nats(plane, n) * inside / NATS).sum((1, 2, 3)) for n in (1, 2))
                colours = (first, two - first, self.pixel_bits[-1] - two)
            self.colour_bits = [total + added for total, added in zip(self.colour_bits, colours)]
            drawn = p.nll_nats(p.sample(uniform=self.noise.uniform), self.channels) * inside / NATS
            self.expected_bits.append(drawn.sum((1, 2, 3)))


def live_latents(model: VDVAE) -> list[LatentLayer]:
    return [m for m in model.layers if isinstance(m, LatentLayer) and bool(m.alive.any())]


@torch.inference_mode()
def tile_terms(
    model: VDVAE, x: np.ndarray, inside: np.ndarray, channels: int, samples: int
) -> tuple[list[Terms], np.ndarray]:
    """Terms of tiles x (B, 3, h, w) uint8, G, R, B, and the bits (B, h, w) float32 of each of their pixels.

    inside: (B, h, w) bool; channels: 3, or 1 of grey images; samples: K of the importance weighted bound (Burda 2016,
    arXiv 1509.00519, eq. 8).
    """
    device = next(model.buffers()).device
    image = torch.from_numpy(x).to(device).float().contiguous(memory_format=torch.channels_last)
    mask = torch.from_numpy(inside).to(device).float()
    live = len(live_latents(model))
    acts = model.encoder(image) if model.encoder is not None and live else {}

    def walk(sample: int, below: int = 0) -> Surprise:
        noise = Noise(x, sample, device)
        visit = Surprise(acts, mask, channels, noise, live, below, torch.zeros_like(mask))
        model.walk(image, visit)
        return visit

    walks = [walk(sample) for sample in range(samples)]

    def mean(name: str) -> np.ndarray:  # (layers, B)
        rows = [torch.stack(getattr(w, name)) for w in walks if getattr(w, name)]
        return torch.stack(rows).double().mean(0).cpu().numpy() if rows else np.zeros((0, len(x)))

    kl, pixel, colour, expected = map(mean, ("kl_bits", "pixel_bits", "colour_bits", "expected_bits"))
    bound = kl.sum(0) + pixel.sum(0)
    if samples > 1:
        weights = torch.stack([-w.ratio_bits - torch.stack(w.pixel_bits).sum(0) for w in walks]).double()
        bound = -((torch.logsumexp(weights * NATS, 0) - math.log(samples)) / NATS).cpu().numpy()
    prior = np.zeros((live, len(x)))
    for below in range(1, live + 1):
        visit = walk(0, below)
        prior[below - 1] = torch.stack(visit.kl_bits + visit.pixel_bits).double().sum(0).cpu().numpy()

    def column(part: np.ndarray, n: int) -> tuple[float, ...]:
        return tuple(part[:, n].tolist())

    rows = [
        Terms(
            column(kl, n), column(pixel, n), column(colour, n), column(expected, n), column(prior, n), float(bound[n])
        )
        for n in range(len(x))
    ]
    heat: np.ndarray = torch.stack([w.heat for w in walks]).mean(0).cpu().numpy()
    return rows, heat


def image_terms(
    model: VDVAE, images: Sequence[np.ndarray], samples: int = 1
) -> tuple[list[Terms], list[np.ndarray]]:
    """Terms of images (H, W, 1 or 3) uint8, and the bits (H, W) float32 of each of their pixels.

    Images are cut into the tiles that coding would use; those of one shape are scored together.
    """
    config, device = model.config, next(model.buffers()).device
    tiles: dict[tuple[tuple[int, int], int], list[Place]] = {}
    for n, image in enumerate(images):
        height, width, channels = image.shape
        tile = tile_grid(height, width, config.tile, config.max_stride)
        tiles.setdefault((tile, channels), []).extend((n, box) for box in tile_boxes(height, width, tile))
    sums: list[list[Terms]] = [[] for _ in images]
    heat = [np.zeros(image.shape[:2], np.float32) for image in images]
    for (tile, channels), places in tiles.items():
        size = max(1, BATCH_PIXELS[device.type] // (tile[0] * tile[1]))
        for some in (places[start : start + size] for start in range(0, len(places), size)):
            x, inside = cut_tiles(images, some, tile)
            terms, bits = tile_terms(model, x, inside, channels, samples)
            for (n, (y0, x0, y1, x1)), term, part in zip(some, terms, bits):
                sums[n].append(term)
                heat[n][y0:y1, x0:x1] = part[: y1 - y0, : x1 - x0]
    return [_total(part) for part in sums], heat


def _total(parts: list[Terms]) -> Terms:
    def sums(columns: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
        return tuple(map(sum, zip(*columns)))

    return Terms(
        sums(p.kl_bits for p in parts), sums(p.pixel_bits for p in parts), sums(p.colour_bits for p in parts),
        sums(p.expected_bits for p in parts), sums(p.prior_bits for p in parts), sum(p.bound_bits for p in parts),
    )

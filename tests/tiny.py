"""Small models and images in memory, as many tests need them."""

from __future__ import annotations

import numpy as np
import torch

from vdvae_codec.codec.quantise import quantise_model
from vdvae_codec.model.config import ModelConfig
from vdvae_codec.model.encoder import EncoderStage, ResidualConfig, StyleConfig
from vdvae_codec.model.layers.causal import CausalConfig
from vdvae_codec.model.layers.latent import LatentConfig
from vdvae_codec.model.layers.phase import PhaseConfig
from vdvae_codec.model.vdvae import VDVAE

TINY = ModelConfig(
    layers=(
        LatentConfig(8, 16, 16, zdim=4),
        PhaseConfig(8, 16, 16, ((0, 0), (4, 4), (0, 4), (4, 0)), blocks=1, mixtures=2, joint=True, predictor=3),
        LatentConfig(4, 16, 12, zdim=4),
        PhaseConfig(4, 16, 12, ((2, 2), (0, 2), (2, 0)), blocks=1, mixtures=2, joint=True, predictor=3),
        PhaseConfig(2, 12, 12, ((1, 1), (0, 1), (1, 0)), blocks=1, mixtures=2, joint=True, predictor=3),
    ),
    encoder=ResidualConfig((EncoderStage(8, 16, 16, blocks=1), EncoderStage(4, 16, 12, blocks=1))),
    tile=32,
)
CAUSAL = ModelConfig(
    layers=(LatentConfig(16, 16, 16, zdim=4, kernel=1), CausalConfig(16, 12, blocks=2, mixtures=2)),
    encoder=StyleConfig((EncoderStage(16, 16, 8, blocks=1),)),
    tile=32,
)


class Arrays:
    """A set of images that are in memory; see ``training.data.Images``."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.names, self.arrays = list(arrays), list(arrays.values())
        self.sizes = np.array([a.shape[:2] for a in self.arrays])

    def __getitem__(self, n: int) -> np.ndarray:
        return self.arrays[n]


def random_crops(image: np.ndarray, count: int, side: int, key: tuple[int, ...]) -> torch.Tensor:
    """(count, 3, side, side) float32 in pixel levels, G, R, B, of an image (H, W, 3) uint8."""
    rng = np.random.default_rng(key)
    corners = rng.integers(0, [image.shape[0] - side + 1, image.shape[1] - side + 1], (count, 2))
    crops = np.stack([image[y : y + side, x : x + side, [1, 0, 2]] for y, x in corners])
    return torch.from_numpy(crops).permute(0, 3, 1, 2).float()


def untrained(config: ModelConfig) -> VDVAE:
    """A float model whose priors and posteriors differ from position to position, so that its latents are active."""
    torch.manual_seed(0)
    model = VDVAE(config).requires_grad_(False).eval()
    torch.nn.init.normal_(model.bias)
    for layer in model.latent_layers:
        torch.nn.init.normal_(layer.prior.c4.weight, std=0.2)
        torch.nn.init.normal_(layer.posterior.c4.weight, std=0.2)
    return model


def quantised(model: VDVAE, batches: list[torch.Tensor]) -> VDVAE:
    """Its exact twin, every latent of both active: those of an untrained model would not pay for themselves."""
    exact = quantise_model(model, batches)
    for layer in (*model.latent_layers, *exact.latent_layers):
        layer.active.fill_(True)
    return exact

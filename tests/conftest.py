from pathlib import Path

import numpy as np
import pytest
import torch

from vdvae_codec.config import ModelConfig, StageConfig, TrainConfig, write_config
from vdvae_codec.exact.quantise import quantise_model
from vdvae_codec.images import read_rgb
from vdvae_codec.model.layers import LatentLayer
from vdvae_codec.model.vdvae import VDVAE
from vdvae_codec.released import Released, load_released, save_released
from vdvae_codec.training.data import Crops

torch.set_num_threads(1)  # the networks here are too small for more
COARSE = ((0, 0), (4, 4), (0, 4), (4, 0))
TINY = ModelConfig(
    mixtures=2,
    stages=(
        StageConfig(8, 16, 16, latents=1, zdim=4, encoder_blocks=1, pixels=COARSE, blocks=(1,) * 4),
        StageConfig(4, 16, 12, latents=1, zdim=4, encoder_blocks=1, pixels=((2, 2), (0, 2), (2, 0)), blocks=(1,) * 3),
        StageConfig(2, 12, 12, pairs=True, pixels=((1, 1), (0, 1), (1, 0)), blocks=(1,) * 3),
    ),
    joint=True,
    predictor=3,
    texture=True,
    tile=32,
)  # fmt: skip


class Arrays:
    """A set of images that are in memory; see ``training.data.Images``."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.names, self.arrays = list(arrays), list(arrays.values())
        self.sizes = np.array([a.shape[:2] for a in self.arrays])

    def __getitem__(self, n: int) -> np.ndarray:
        return self.arrays[n]


def random_crops(image: np.ndarray, count: int, side: int, key: tuple[int, ...]) -> torch.Tensor:
    """(count, 3, side, side) float32 in pixel levels, G, R, B."""
    return Crops(Arrays({"": image}), side, "none").batch(key, 0, count).float()


@pytest.fixture(scope="session")
def photo_png() -> Path:
    """A small photograph, 160x120."""
    return Path(__file__).parent / "data" / "photo.png"


@pytest.fixture(scope="session")
def photo(photo_png: Path) -> np.ndarray:
    """Its pixels (120, 160, 3) uint8."""
    return read_rgb(photo_png)


def untrained(config: ModelConfig) -> VDVAE:
    """A float model whose priors and posteriors differ from position to position, so that its latents are alive."""
    torch.manual_seed(0)
    model = VDVAE(config).requires_grad_(False).eval()
    torch.nn.init.normal_(model.bias)
    for layer in model.layers:
        if isinstance(layer, LatentLayer):
            torch.nn.init.normal_(layer.prior.c4.weight, std=0.2)
            torch.nn.init.normal_(layer.posterior.c4.weight, std=0.2)
    return model


def quantised(model: VDVAE, batches: list[torch.Tensor]) -> VDVAE:
    """Its exact twin, every latent of both alive: those of an untrained model would not pay for themselves."""
    exact = quantise_model(model, batches)
    for layer in (*model.layers, *exact.layers):
        if isinstance(layer, LatentLayer):
            layer.alive.fill_(True)
    return exact


@pytest.fixture(scope="session")
def tiny_float() -> VDVAE:
    return untrained(TINY)


@pytest.fixture(scope="session")
def tiny_folder(tiny_float: VDVAE, photo: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exact twin of ``tiny_float`` as a released model, every latent alive."""
    crops = random_crops(photo, 9, 64, (0,))
    exact = quantised(tiny_float, list(crops[:8].split(4)))
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    write_config(folder / "config.toml", TINY, TrainConfig(steps=1))
    save_released(folder, TINY, exact, crops[8].to(torch.uint8))
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> Released:
    return load_released(str(tiny_folder), "cpu")

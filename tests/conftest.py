from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CAUSAL, TINY, quantised, random_crops, untrained

from vdvae_codec.codec.store import Released, load_released, save_released
from vdvae_codec.images.files import read_rgb
from vdvae_codec.model.config import to_dict, write_tables
from vdvae_codec.model.vdvae import VDVAE

torch.set_num_threads(1)  # the networks here are too small for more


@pytest.fixture(scope="session")
def photo_png() -> Path:
    """A small photograph, 160x120."""
    return Path(__file__).parent / "data" / "photo.png"


@pytest.fixture(scope="session")
def photo(photo_png: Path) -> np.ndarray:
    """Its pixels (120, 160, 3) uint8."""
    return read_rgb(photo_png)


@pytest.fixture(scope="session")
def tiny_float() -> VDVAE:
    return untrained(TINY)


@pytest.fixture(scope="session")
def tiny_folder(tiny_float: VDVAE, photo: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exact twin of ``tiny_float`` as a released model, every latent active."""
    return released(tiny_float, tmp_path_factory.mktemp("models") / "tiny", photo)


def released(model: VDVAE, folder: Path, photo: np.ndarray) -> Path:
    """The folder of a float model's exact twin."""
    crops = random_crops(photo, 9, 64, (0,))
    exact = quantised(model, list(crops[:8].split(4)))
    folder.mkdir()
    write_tables(folder / "config.toml", to_dict(model.config))
    save_released(folder, model.config, exact, crops[8].to(torch.uint8))
    return folder


@pytest.fixture(scope="session")
def causal_float() -> VDVAE:
    return untrained(CAUSAL)


@pytest.fixture(scope="session")
def causal_model(
    causal_float: VDVAE, photo: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> Released:
    """Likewise of ``causal_float``, already loaded."""
    folder = released(causal_float, tmp_path_factory.mktemp("causal") / "causal", photo)
    return load_released(str(folder), "cpu")


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> Released:
    return load_released(str(tiny_folder), "cpu")

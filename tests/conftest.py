from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TINY, quantised, random_crops, untrained

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
    crops = random_crops(photo, 9, 64, (0,))
    exact = quantised(tiny_float, list(crops[:8].split(4)))
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    write_tables(folder / "config.toml", to_dict(TINY))
    save_released(folder, TINY, exact, crops[8].to(torch.uint8))
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> Released:
    return load_released(str(tiny_folder), "cpu")

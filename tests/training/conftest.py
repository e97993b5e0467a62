"""What whole trainings are given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import TINY
from training_worker import RECIPE, write_images

from vdvae_codec.training.recipe import write_config


@pytest.fixture(scope="session")
def folder(photo: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, photo)
    return folder


@pytest.fixture(scope="session")
def toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    write_config(path, TINY, RECIPE)
    return path

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from vdvae_codec.codec.store import load_released
from vdvae_codec.scoring.calibration import FILE, calibrate
from vdvae_codec.scoring.score import named, score_images


def crops(photo: np.ndarray, count: int, seed: int) -> list[np.ndarray]:
    """Random crops (32, 32, 3) uint8."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, [photo.shape[0] - 31, photo.shape[1] - 31], (count, 2))
    return [photo[y : y + 32, x : x + 32] for y, x in corners]


@pytest.fixture(scope="session")
def calibrated(tiny_folder: Path, photo: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny model, calibrated on 80 crops of a photograph."""
    folder = tmp_path_factory.mktemp("scoring") / "tiny"
    shutil.copytree(tiny_folder, folder)
    released = load_released(str(folder), "cpu")
    scored = list(score_images(released.model, named(crops(photo, 80, seed=7))))
    calibrate(scored, released.config, released.digest.hex(), "crops", 1).save(folder / FILE)
    return folder


@pytest.fixture
def mixed(photo: np.ndarray, tmp_path: Path) -> Path:
    """A folder of twelve crops of the photograph, three images that do not belong, and a file that is none."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    found = crops(photo, 12, seed=8)
    for n, crop in enumerate(found):
        Image.fromarray(crop).save(folder / f"photo{n:02}.png")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / "odd-noise.png")
    Image.fromarray(np.full((32, 32, 3), 77, np.uint8)).save(folder / "odd-flat.png")
    Image.fromarray(found[0]).filter(ImageFilter.GaussianBlur(4)).save(folder / "odd-blur.png")
    (folder / "broken.png").write_text("no image")
    return folder

"""The tutorial's program: a VAE that knows nothing of this package, trained for seconds, to a file and back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vdvae_codec.images.files import read_rgb

PROGRAM = Path(__file__).parents[2] / "examples" / "own_vae.py"
BITS = {"grey": 8, "binary": 1}


@pytest.fixture(scope="module")
def patches(photo_png: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patches of 28x28 of a photograph."""
    grey = read_rgb(photo_png)[..., 1]
    x = np.lib.stride_tricks.sliding_window_view(grey, (28, 28))[::5, ::5].reshape(-1, 28, 28)
    file = tmp_path_factory.mktemp("own") / "patches.npz"
    np.savez(file, x_train=x[50:], x_test=x[:50])
    return file


@pytest.mark.parametrize("kind", BITS)
def test_a_vae_of_ones_own_codes_at_its_elbo(kind: str, patches: Path, tmp_path: Path) -> None:
    def run(*args: object) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "error", PROGRAM, *map(str, args)], cwd=tmp_path, capture_output=True, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("train", patches, "vae.pt", "--minutes", "0.05", *(["--binary"] if kind == "binary" else []))
    said = run("compress", patches, "vae.pt", "file.bb")
    run("decompress", "file.bb", "vae.pt", "back.npy")
    x = np.load(patches)["x_test"]
    assert np.array_equal(np.load(tmp_path / "back.npy"), x if kind == "grey" else x >= 128)
    elbo, bpd = (float(word.rstrip(",")) for word in said.split() if word[0].isdigit())
    assert bpd == pytest.approx(8 * (tmp_path / "file.bb").stat().st_size / x.size, abs=1e-4)
    initial_bpd = 16 * 48 * 8 / x.size  # sixteen images' latents, of less than eight bits each
    assert abs(bpd - elbo) < initial_bpd + 0.02 * elbo

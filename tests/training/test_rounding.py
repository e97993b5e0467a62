import copy

import numpy as np
import pytest
import torch
from tiny import TINY, Arrays, random_crops
from torch import Tensor

from vdvae_codec.codec.quantise import quantise_model
from vdvae_codec.model.blocks import Conv
from vdvae_codec.model.elbo import elbo
from vdvae_codec.model.vdvae import VDVAE
from vdvae_codec.training.data import Crops
from vdvae_codec.training.export import exact_elbo_bpd
from vdvae_codec.training.rounding import rounded, tune


@pytest.fixture(scope="module")
def crops(photo: np.ndarray) -> Tensor:
    return random_crops(photo, 8, 32, (3,))


def nats(model: VDVAE, x: Tensor) -> float:
    torch.manual_seed(0)
    terms = elbo(model, x)
    return float(sum(t.sum() for t in (*terms.kl_nats, *terms.nll_nats)))


def coarse(model: VDVAE, crops: Tensor, monkeypatch: pytest.MonkeyPatch) -> VDVAE:
    monkeypatch.setattr("vdvae_codec.codec.quantise.WEIGHT_LEVELS", 6)
    return quantise_model(model, [crops])


def test_the_rounded_model_is_its_exact_twin(
    tiny_float: VDVAE, crops: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy.deepcopy(tiny_float)
    exact = coarse(model, crops, monkeypatch)
    plain = nats(model, crops)
    with rounded(model, exact):
        near = nats(model, crops)
    cost = abs(nats(exact, crops) - plain)
    assert cost > 1e-4 * plain and abs(near - nats(exact, crops)) < cost / 20
    assert nats(model, crops) == plain  # and nothing of it is left
    assert not any({"take", "weights"} & set(vars(m)) for m in model.modules() if isinstance(m, Conv))


def test_tuning_trains_the_exact_model(photo: np.ndarray, crops: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vdvae_codec.training.rounding.LEARNING_RATE", 1e-3)
    monkeypatch.setattr("vdvae_codec.training.rounding.PIXELS", 8 * 32**2)
    torch.manual_seed(4)
    model = VDVAE(TINY)
    images = Crops(Arrays({"photo": photo}), 32, "none")
    state = torch.get_rng_state()
    before = coarse(model, crops, monkeypatch)
    after = quantise_model(model, [crops], lambda exact: tune(model, exact, images, 0, 20))
    assert torch.equal(torch.get_rng_state(), state)
    assert exact_elbo_bpd(after, [crops]) < exact_elbo_bpd(before, [crops])

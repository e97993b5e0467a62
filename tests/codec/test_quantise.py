import math

import numpy as np
import pytest
import torch
from laws import TABLES
from tiny import TINY, quantised, random_crops, untrained
from torch import Tensor

from vdvae_codec.codec.group import Group
from vdvae_codec.codec.quantise import elbo_nats, quantise_model
from vdvae_codec.codec.store import Released
from vdvae_codec.codec.visitors import exact_elbo
from vdvae_codec.exact.conv import ExactConv
from vdvae_codec.exact.quantise import INPUT_LEVELS
from vdvae_codec.model.blocks import Conv
from vdvae_codec.model.vdvae import VDVAE, float_state


@pytest.fixture(scope="module")
def crops(photo: np.ndarray) -> Tensor:
    return random_crops(photo, 4, 64, (1,))


def exact_bits(model: VDVAE, x: Tensor) -> float:
    group = Group(torch.ones_like(x[:, :2], dtype=torch.bool))
    terms = exact_elbo(model, TABLES, group, x.clone())
    return sum(terms.kl_bits) + sum(terms.pixel_bits)


def test_the_exact_twin_is_close(tiny_float: VDVAE, tiny_model: Released, crops: Tensor) -> None:
    trained_bits = elbo_nats(tiny_float, [crops]) / math.log(2)
    assert exact_bits(tiny_model.model, crops) == pytest.approx(trained_bits, rel=0.01)


def test_latents_that_do_not_pay_stay_at_their_mean(crops: Tensor) -> None:
    model = untrained(TINY)
    costly_bits = elbo_nats(model, [crops]) / math.log(2)
    exact = quantise_model(model, [crops])
    assert not any(layer.active.any() for layer in (*model.latent_layers, *exact.latent_layers))
    terms = exact_elbo(exact, TABLES, Group(torch.ones_like(crops[:, :2], dtype=torch.bool)), crops.clone())
    assert terms.kl_bits == [0, 0]
    assert exact_bits(exact, crops) < costly_bits


def test_convolutions_take_in_what_they_declare(tiny_float: VDVAE, tiny_model: Released) -> None:
    kinds = set()
    for name, exact in tiny_model.model.named_modules():
        if not isinstance(exact, ExactConv):
            continue
        conv = tiny_float.get_submodule(name)
        assert isinstance(conv, Conv)
        exponent, low, high, _ = exact.grid.tolist()
        if conv.takes is None:
            assert -2 * INPUT_LEVELS <= low <= 0 <= high <= 2 * INPUT_LEVELS
        else:
            assert (exponent, low, high) == conv.takes and name.endswith((".predictor", ".z_proj"))
        kinds.add(conv.takes is None)
    assert kinds == {False, True}


def test_quantising_is_repeatable_and_leaves_the_random_state(crops: Tensor) -> None:
    torch.manual_seed(9)
    before = torch.get_rng_state()
    model = VDVAE(TINY)
    torch.set_rng_state(before)
    first, second = (quantise_model(model, [crops]) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for ours, again in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(ours, again)


def test_a_float_model_from_integers_has_the_same_integers(tiny_model: Released, crops: Tensor) -> None:
    model = VDVAE(TINY).requires_grad_(False).eval()
    model.load_state_dict(float_state(tiny_model.model, model))
    assert all(layer.active.all() for layer in model.latent_layers)
    exact = quantised(model, [crops])
    assert exact_bits(exact, crops) == pytest.approx(exact_bits(tiny_model.model, crops), rel=5e-3)

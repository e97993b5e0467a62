from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import TINY, random_crops
from torch import Tensor

from vdvae_codec.codec.store import Released
from vdvae_codec.exact.conv import ExactConv
from vdvae_codec.model.blocks import Conv, Gives, pool, upsample
from vdvae_codec.model.elbo import elbo
from vdvae_codec.model.sampling import samples
from vdvae_codec.model.vdvae import VDVAE, exact_twin, float_state, muon_weights


@pytest.fixture(scope="module")
def x(photo: np.ndarray) -> Tensor:
    return random_crops(photo, 2, 32, (0,))


def test_the_elbo_counts_every_sub_pixel_once(tiny_float: VDVAE, x: Tensor) -> None:
    terms = elbo(tiny_float, x)
    assert terms.dims == x.numel()
    assert [kl.shape for kl in terms.kl_nats] == [(2, 4)] * 2 and [n.shape for n in terms.nll_nats] == [(2,)] * 10
    assert all(bool((t >= 0).all()) for t in terms.kl_nats + terms.nll_nats)


def test_images_of_a_batch_do_not_see_each_other(tiny_float: VDVAE, x: Tensor) -> None:
    layers = tiny_float.latent_layers
    try:
        for layer in layers:
            layer.active.fill_(False)  # then nothing is drawn
        both, alone = elbo(tiny_float, x), [elbo(tiny_float, part) for part in x.split(1)]
    finally:
        for layer in layers:
            layer.active.fill_(True)
    for n, nll in enumerate(both.nll_nats):
        assert torch.allclose(nll, torch.cat([terms.nll_nats[n] for terms in alone]), rtol=1e-4)
    assert not any(kl.any() for kl in both.kl_nats)


@torch.no_grad()
def test_models_of_grey_images_count_one_colour(photo: np.ndarray) -> None:
    """The others are copies: they cost nothing, change no gradient, and are drawn as copies."""
    torch.manual_seed(0)
    model = VDVAE(replace(TINY, channels=1))
    grey = torch.from_numpy(photo[:32, :32, 1].copy())[None, None].float().expand(1, 3, -1, -1)
    torch.manual_seed(1)
    terms = elbo(model, grey)
    assert terms.dims == 32 * 32
    one = sum(float(t) for t in terms.nll_nats)
    assert 4 < one / np.log(2) / terms.dims < 10  # bits per dim of one colour, untrained
    three = VDVAE(TINY)
    three.load_state_dict(model.state_dict())
    torch.manual_seed(1)
    assert one < sum(float(t) for t in elbo(three, grey).nll_nats)
    drawn = samples(model, 2, 32, 32, 1.0)
    assert torch.equal(drawn[:, 0], drawn[:, 1]) and torch.equal(drawn[:, 0], drawn[:, 2])


def test_muon_trains_what_gives_features(tiny_float: VDVAE) -> None:
    muon = {id(weight) for weight in muon_weights(tiny_float)}
    for name, module in tiny_float.named_modules():
        if isinstance(module, Conv):
            parameters = name.endswith((".head", ".predictor", "prior.c4", "posterior.c4"))
            assert (module.gives is Gives.PARAMETERS) == parameters == (id(module.weight) not in muon), name


def test_an_exact_twin_has_integers_in_the_place_of_every_convolution(tiny_float: VDVAE) -> None:
    twin = exact_twin(tiny_float)
    names = {name for name, m in tiny_float.named_modules() if isinstance(m, Conv)}
    assert names == {name for name, m in twin.named_modules() if isinstance(m, ExactConv)}
    assert not any(isinstance(m, Conv) for m in twin.modules()) and any(True for _ in names)
    assert any(isinstance(m, Conv) for m in tiny_float.modules())  # which is left as it was


def test_a_float_state_has_the_weights_of_the_integers(tiny_model: Released, tiny_float: VDVAE) -> None:
    state = float_state(tiny_model.model, VDVAE(TINY))
    for name, value in tiny_float.state_dict().items():
        if name.endswith("weight"):
            assert float((state[name] - value).abs().max()) <= 2.0**-6 * float(value.abs().max()), name
    assert not any(value.is_inference() for value in state.values())


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_pooling_and_upsampling(factor: int) -> None:
    torch.manual_seed(0)
    x = torch.randint(-99, 99, (2, 3, 8, 16)).float()
    assert torch.equal(pool(x, factor), F.avg_pool2d(x, factor))
    assert torch.equal(pool(upsample(x, factor), factor), x)
    assert upsample(x, factor).shape == (2, 3, 8 * factor, 16 * factor)

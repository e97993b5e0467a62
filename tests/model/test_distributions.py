import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from laws import TABLES, check_frequencies, check_nibbles

from vdvae_codec.exact.cdf import FURTHEST, STEPS
from vdvae_codec.model.distributions.gaussian import Gaussian, gaussian_kl
from vdvae_codec.model.distributions.joint import JointMixture
from vdvae_codec.model.distributions.logistics import COUPLED
from vdvae_codec.model.distributions.separate import SeparateMixture


def moderate_mixture(components: int) -> SeparateMixture:
    """Parameters as networks give them: (1, K, 3, 40, 40)."""
    torch.manual_seed(components)
    shape = (1, components, 3, 40, 40)
    return SeparateMixture(
        torch.randn(shape), 10 * torch.randn(shape), 1.5 + torch.randn(shape), 128 + 50 * torch.randn(1, 3, 40, 40),
        torch.randn(1, 3, 40, 40) / 2,
    )  # fmt: skip


ORDERS = [(0, 1, 2), (1, 0, 2)]


def moderate_joint(components: int, order: tuple[int, int, int]) -> JointMixture:
    """The same, of components that span the colours, each with a base of its own; or, in the order R, G, B, with one
    base, as published models have it."""
    torch.manual_seed(components)
    shape, published = (1, components, 3, 40, 40), order[0] == 1
    base = torch.full((1, 1, 3, 1, 1), 127.5) if published else 128 + 50 * torch.randn(shape)
    return JointMixture(
        torch.randn(1, components, 40, 40), 10 * torch.randn(shape), 1.5 + torch.randn(shape).clamp(-2, 2), base,
        torch.rand(shape) * 2 - 1, order,
    )  # fmt: skip


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("components", [1, 3, 5])
def test_integer_pixels_of_joint_components_cost_what_training_thinks(
    components: int, order: tuple[int, int, int]
) -> None:
    p = moderate_joint(components, order)
    x = p.sample()
    values = x[0].flatten(1).int().numpy()
    rows = [values[c] for c in order]
    exact = [p.integers(TABLES, None).mixture(n, rows).bits(row).mean() for n, row in enumerate(rows)]
    assert sum(exact) == pytest.approx(float(p.nll_nats(x).mean()) / math.log(2), rel=0.01)
    assert exact[0] == pytest.approx(float(p.nll_nats(x, channels=1).mean()) / math.log(2), rel=0.01)


def test_sharp_components_that_are_coupled_far_from_their_base_cost_what_training_thinks() -> None:
    """Without a linear prediction the base is mid grey: there a coupling's error is multiplied by a hundred levels."""
    torch.manual_seed(0)
    shape = (1, 1, 3, 40, 40)
    base, loc = torch.full((1, 1, 3, 40, 40), 128.0), 100 * torch.rand(shape) - 50
    p = JointMixture(torch.zeros(1, 1, 40, 40), loc, torch.full(shape, -2.0), base, torch.rand(shape) - 0.5)
    x = p.sample()
    rows = [x[0, c].flatten().int().numpy() for c in range(3)]
    exact = sum(p.integers(TABLES, None).mixture(n, rows).bits(rows[n]).mean() for n in range(3))
    assert exact == pytest.approx(float(p.nll_nats(x).mean()) / math.log(2), rel=0.02)


def test_what_green_was_tells_the_component() -> None:
    """Two components, one sharp and one wide: a green far off leaves the wide one, and red is coded by that."""
    shape = (1, 2, 3, 1, 1)
    log_sigma = torch.tensor([-2.0, 4.0]).view(1, 2, 1, 1, 1).expand(shape)
    p = JointMixture(
        torch.zeros(1, 2, 1, 1), torch.zeros(shape), log_sigma, torch.full(shape, 100.0), torch.zeros(shape)
    )
    colours = p.integers(TABLES, None)
    bits = [colours.mixture(1, [np.array([green])]).bits(np.array([100]))[0] for green in (100, 180)]
    assert bits[0] < 0.6 and bits[1] > 7  # log2(4 exp(4)) = 7.8


@pytest.mark.parametrize("components", [1, 3, 5])
def test_integer_pixels_cost_what_training_thinks(components: int) -> None:
    p = moderate_mixture(components)
    x = p.sample()
    positions = torch.arange(1600)
    values = x[0].flatten(1).int().numpy()
    exact = [p.integers(TABLES, positions).mixture(c, values).bits(values[c]).mean() for c in range(3)]
    trained = p.nll_nats(x)[0].mean((1, 2)) / math.log(2)
    assert exact == pytest.approx(trained.tolist(), rel=0.01)


def test_only_the_positions_asked_for_are_coded() -> None:
    positions = torch.tensor([3, 100, 1599])
    for p in (moderate_mixture(2), moderate_joint(2, (0, 1, 2))):
        rows = list(p.sample()[0].flatten(1).int().numpy())
        some = [row[positions] for row in rows]
        every = p.integers(TABLES, None)
        for n in range(3):
            expected = every.mixture(n, rows).within()[positions]
            assert np.array_equal(p.integers(TABLES, positions).mixture(n, some).within(), expected)
            assert np.array_equal(every.select(positions.numpy()).mixture(n, some).within(), expected)


def test_integer_latents_cost_what_training_thinks() -> None:
    torch.manual_seed(0)
    p = Gaussian(torch.randn(2, 3, 8, 8) * 2, torch.randn(2, 3, 8, 8) / 2 - 1)
    k = (p.sample() * 2**4).round().clamp(-128, 127)
    active = torch.tensor([0, 2])
    bits = p.integers(TABLES, 4, active).bits((k[:, active].transpose(0, 1).flatten() + 128).int().numpy())
    nats = -torch.distributions.Normal(p.mean, p.log_sigma.exp()).log_prob(k / 16)[:, active].mean()
    assert bits.mean() == pytest.approx(float(nats) / math.log(2) + 4, rel=0.01)  # the grid is 2^-4 wide


@pytest.mark.parametrize("extreme", [-1e30, -1e4, 1e4, 1e30])
def test_extreme_parameters_still_code(extreme: float) -> None:
    shape = (1, 2, 3, 4, 4)
    x = torch.full((1, 3, 4, 4), 255.0)
    p = SeparateMixture(*(torch.full(shape, extreme) for _ in range(3)), torch.full_like(x, extreme), -x * extreme)
    for c in range(3):
        check_frequencies(p.integers(TABLES, torch.arange(16)).mixture(c, [np.full(16, 255, np.int32)] * c))
    z = Gaussian(torch.full((1, 2, 2, 2), extreme), torch.full((1, 2, 2, 2), extreme))
    for exponent in (-3, 0, 9):
        check_nibbles(z.integers(TABLES, exponent, torch.arange(2)))


def test_locations_are_within_a_step_of_real_arithmetic() -> None:
    """They are single operations of numpy on float32, so that every machine rounds alike."""
    torch.manual_seed(0)
    shape = (1, 3, 3, 40, 40)
    wide = SeparateMixture(
        torch.randn(shape), 4096 * torch.randn(shape), torch.randn(shape), 2000 * torch.randn(1, 3, 40, 40),
        8 * torch.randn(1, 3, 40, 40),
    )  # fmt: skip
    joint = moderate_joint(3, (0, 1, 2))
    far = replace(joint, loc=4096 * torch.randn(shape), base=2000 * torch.randn(shape), coupling=8 * torch.randn(shape))
    for p in (wide, moderate_mixture(3), joint, far, moderate_joint(3, (1, 0, 2))):
        q, rows = p.integers(TABLES, None), list(np.random.default_rng(0).integers(0, 256, (3, 1600), np.int32))
        for n, c in enumerate(q.order):
            loc, base, coupling = (t.astype(np.float64) for t in (q.loc, q.base, q.coupling))
            expected = loc[:, c] + base[:, c]
            for m, k in zip(range(n), COUPLED[n]):
                expected += coupling[:, k] * (rows[m] - base[:, q.order[m]])
            expected = np.rint(expected * STEPS).clip(-FURTHEST, FURTHEST)
            off = np.abs(q.mixture(n, rows).location - expected)
            assert off.max() <= 1 and (off > 0).mean() < 0.002
        assert q.loc.dtype == q.base.dtype == q.coupling.dtype == np.float32


def test_gaussian_kl() -> None:
    torch.manual_seed(0)
    q, p = (Gaussian(torch.randn(2, 3, 4, 4).double(), torch.randn(2, 3, 4, 4).double()) for _ in range(2))
    normals = (torch.distributions.Normal(g.mean, g.log_sigma.exp()) for g in (q, p))
    assert torch.allclose(gaussian_kl(q, p), torch.distributions.kl_divergence(*normals))
    assert torch.allclose(gaussian_kl(q, q), torch.zeros(1).double())


def mixture() -> SeparateMixture:
    """Two components, far apart; the second is the more likely one."""
    shape = (1, 2, 3, 40, 40)
    logits, loc = torch.zeros(shape), torch.zeros(shape)
    logits[:, 1], loc[:, 0], loc[:, 1] = 1.0, -60.0, 30.0
    base, coupling = torch.full((1, 3, 40, 40), 100.0), torch.zeros(1, 3, 40, 40)
    return SeparateMixture(logits, loc, torch.full(shape, 1.0), base, coupling)


def test_temperature_of_latents() -> None:
    q = Gaussian(torch.randn(1, 4, 30, 30), torch.full((1, 4, 30, 30), 0.7))
    torch.manual_seed(3)
    expected = q.mean + torch.randn_like(q.mean) * q.log_sigma.exp()  # each draw of training
    torch.manual_seed(3)
    assert torch.equal(q.sample(), expected)
    assert torch.equal(q.sample(0), q.mean)
    for temperature in (0.3, 1.5):
        spread = float((q.sample(temperature) - q.mean).std())
        assert spread == pytest.approx(temperature * math.exp(0.7), rel=0.1)


def test_temperature_of_pixels() -> None:
    p = mixture()
    assert torch.equal(p.sample(0), torch.full((1, 3, 40, 40), 130.0))
    for temperature in (0.25, 1.0, 2.0):
        drawn = p.sample(temperature)
        likely = drawn > 85
        assert float(likely.float().mean()) == pytest.approx(1 / (1 + math.exp(-1 / temperature)), abs=0.03)
        sigma = math.e * temperature * math.pi / math.sqrt(3)  # of a logistic of scale e times the temperature
        assert float((drawn[likely] - 130).std()) == pytest.approx(sigma, rel=0.15)

import itertools
import math

import numpy as np
import pytest
import torch
from laws import TABLES, check_frequencies, gaussian, logistics

from vdvae_codec.exact.cdf import ONE, STEPS, WEIGHT_ONE, ByteMixture, make_tables, nearest_scale


@pytest.mark.parametrize("table", ["logistic", "gaussian"])
def test_frequencies_of_every_scale_and_location(table: str) -> None:
    scales = range(len(TABLES.inverse_scale))
    locations = [-(2**15), -4096, -17, -8, -7, 0, 1, 8, 1000, 2047, 2048, 4072, 4088, 4089, 9000, 2**15]
    pairs = torch.tensor(list(itertools.product(scales, locations)))
    check_frequencies(
        ByteMixture(
            getattr(TABLES, table), pairs[None, :, 1].float(), TABLES.inverse_scale[pairs[None, :, 0]],
            torch.full((1, len(pairs)), WEIGHT_ONE, dtype=torch.int32),
        )
    )  # fmt: skip


@pytest.mark.parametrize("components", [1, 2, 3])
def test_frequencies_of_mixtures(components: int) -> None:
    check_frequencies(logistics(500, components))


def test_tables() -> None:
    assert [len(t) for t in TABLES] == [24577, 24577, 129, 513, 256]
    for table in (TABLES.logistic, TABLES.gaussian):
        assert table[0] == 0 and table[-1] == ONE and table[12288] == ONE // 2
        assert bool((table[1:] >= table[:-1]).all())
    assert TABLES.weight[0] == WEIGHT_ONE and TABLES.weight[-1] == 0
    for ours, again in zip(TABLES, make_tables(), strict=True):
        assert torch.equal(ours, again)


def test_the_table_of_scales_is_evenly_spaced() -> None:
    log_sigma = np.linspace(-4, 6, 1001).astype(np.float32)
    scale = nearest_scale(TABLES.inverse_scale, log_sigma)
    sigma = np.log(1 / scale) + math.log(64)  # 1024 entries a unit, 16 steps a pixel level
    wrong = np.abs(sigma - log_sigma.clip(-3, 5))
    assert 0.4 / 16 < wrong.max() < 0.5 / 16 + 2**-10


@pytest.mark.parametrize("components", [1, 2, 5])
def test_responsibilities_are_those_of_bayes(components: int) -> None:
    rng = np.random.default_rng(components)
    shape = (components, 500)
    location = torch.from_numpy(rng.normal(128, 10, shape) * STEPS).round().float()
    scale = TABLES.inverse_scale[torch.from_numpy(rng.integers(80, 100, shape))]  # sigma of 7 to 27
    weight = torch.from_numpy(rng.integers(1, WEIGHT_ONE + 1, shape)).int()
    weight[0] = WEIGHT_ONE
    x = rng.integers(100, 156, 500).astype(np.int32)
    found = ByteMixture(TABLES.logistic, location, scale, weight).responsibilities(x)
    assert found.shape == shape and found.dtype == np.int32 and found.max() <= WEIGHT_ONE
    sigma = 64 / scale.numpy()  # 1024 table entries a unit, 16 steps a level
    standard = (x - location.numpy() / STEPS) / sigma
    bayes = weight.numpy() * np.exp(-standard) / sigma / (1 + np.exp(-standard)) ** 2
    assert np.abs(found / found.sum(0) - bayes / bayes.sum(0)).max() < 0.02


def test_a_location_at_a_value_makes_it_the_likeliest() -> None:
    values = np.arange(256)
    d = gaussian(values, 0.0)
    all_bits = np.stack([d.bits(np.full(256, x)) for x in values])  # (x, location)
    assert np.array_equal(all_bits.argmin(0), values)
    peak = math.erf(0.5 / math.sqrt(2))
    assert np.allclose(np.diagonal(all_bits)[1:-1], -math.log2(peak), atol=1e-3)
    assert np.allclose(np.diagonal(all_bits)[[0, -1]], -math.log2(0.5 + peak / 2), atol=1e-3)  # open end bins

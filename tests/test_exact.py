import copy
import itertools
import math
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, quantised, random_crops, untrained
from laws import TABLES, gaussian, logistics
from safetensors.torch import load_file, save_file
from torch import Tensor

from vdvae_codec.config import ModelConfig, StageConfig, read_config
from vdvae_codec.distributions import Gaussian, JointMixture, PixelMixture
from vdvae_codec.errors import ConfigError, ExactnessError, ModelError
from vdvae_codec.exact.conv import LIMIT, ExactConv, bytes_are_exact, partial_sum_bound, unfused_hard_swish
from vdvae_codec.exact.quantise import prepare, quantise_conv, quantise_model
from vdvae_codec.exact.tables import (
    ONE,
    STEPS,
    WEIGHT_ONE,
    WINDOW,
    ByteHalves,
    ByteMixture,
    inverse_scale,
    latent_distribution,
    make_tables,
    pixel_distribution,
    quantise,
)
from vdvae_codec.export import exact_elbo_bpd, float_elbo_bpd
from vdvae_codec.hierarchy import Group, exact_elbo
from vdvae_codec.model.blocks import Conv
from vdvae_codec.model.layers import LatentLayer
from vdvae_codec.model.vdvae import VDVAE
from vdvae_codec.released import WEIGHTS, Released, digest, load_released

HIGH = np.arange(16)


def check_halves(d: ByteHalves) -> None:
    for f in (d.coarse(), *(d.fine(np.full(len(d.low), h)) for h in range(16))):
        assert f.shape == (len(d.low), 16) and f.dtype == np.float32
        assert np.all(f / f.sum(1, keepdims=True) > 2**-23)  # the coder resolves 2^-24


def probabilities(d: ByteHalves | ByteMixture, count: int) -> np.ndarray:
    """Sum over the 256 values, of each of the N distributions."""
    total: np.ndarray = sum(2.0 ** -d.bits(np.full(count, x, np.int32)) for x in range(256))
    return total


def check_frequencies(d: ByteMixture) -> None:
    """Every frequency is positive, and the probabilities of the 256 values add up to one, with windows and without."""
    inside, start = d.inside(), d.start()
    assert start.min() >= 0 and start.max() <= 256 - WINDOW
    assert inside.shape == (len(start), 16) and np.all(inside / inside.sum(1, keepdims=True) > 2**-23)
    check_halves(d.halves())
    for above in (False, True):
        check_halves(d.outside(np.arange(len(start)), np.full(len(start), above)))
    assert np.abs(probabilities(d.halves(), len(start)) - 1).max() < 1e-6
    # What is left out is the least share that half bytes which cannot occur are given beside a window.
    total = probabilities(d, len(start))
    assert total.max() < 1 + 1e-6 and total.min() > 1 - 1e-2 and total.mean() > 1 - 1e-3


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
    assert [len(t) for t in TABLES] == [24577, 24577, 129, 256]
    for table in (TABLES.logistic, TABLES.gaussian):
        assert table[0] == 0 and table[-1] == ONE and table[12288] == ONE // 2
        assert bool((table[1:] >= table[:-1]).all())
    assert TABLES.weight[0] == WEIGHT_ONE and TABLES.weight[-1] == 0
    for ours, again in zip(TABLES, make_tables(), strict=True):
        assert torch.equal(ours, again)


@pytest.mark.parametrize("per_nat", [8, 16], ids=["as first released", "as made today"])
def test_the_length_of_a_table_of_scales_says_its_steps(per_nat: int) -> None:
    tables = TABLES._replace(inverse_scale=TABLES.inverse_scale[:: 16 // per_nat])
    log_sigma = torch.linspace(-4, 6, 1001)
    sigma = (1 / inverse_scale(tables, log_sigma)).log() + math.log(64)  # 1024 entries a unit, 16 steps a pixel level
    wrong = (sigma - log_sigma.clamp(-3, 5)).abs()
    assert 0.4 / per_nat < wrong.max() < 0.5 / per_nat + 2**-10


def test_a_location_at_a_value_makes_it_the_likeliest() -> None:
    values = np.arange(256)
    d = gaussian(values, 0.0)
    all_bits = np.stack([d.bits(np.full(256, x)) for x in values])  # (x, location)
    assert np.array_equal(all_bits.argmin(0), values)
    peak = math.erf(0.5 / math.sqrt(2))
    assert np.allclose(np.diagonal(all_bits)[1:-1], -math.log2(peak), atol=1e-3)
    assert np.allclose(np.diagonal(all_bits)[[0, -1]], -math.log2(0.5 + peak / 2), atol=1e-3)  # open end bins


def moderate_mixture(components: int) -> PixelMixture:
    """Parameters as networks give them: (1, K, 3, 40, 40)."""
    torch.manual_seed(components)
    shape = (1, components, 3, 40, 40)
    return PixelMixture(
        torch.randn(shape), 10 * torch.randn(shape), 1.5 + torch.randn(shape), 128 + 50 * torch.randn(1, 3, 40, 40),
        torch.randn(1, 3, 40, 40) / 2,
    )  # fmt: skip


ORDERS = [(0, 1, 2), (1, 0, 2)]


def moderate_joint(components: int, order: tuple[int, int, int]) -> JointMixture:
    """The same, of components that span the colours, each with a base of its own; or, in the order R, G, B, with one
    base and the finer coupling of published models."""
    torch.manual_seed(components)
    shape, published = (1, components, 3, 40, 40), order[0] == 1
    base = torch.full((1, 1, 3, 1, 1), 127.5) if published else 128 + 50 * torch.randn(shape)
    return JointMixture(
        torch.randn(1, components, 40, 40), 10 * torch.randn(shape), 1.5 + torch.randn(shape).clamp(-2, 2), base,
        torch.rand(shape) * 2 - 1, order, coupling_steps=2**12 if published else 64,
    )  # fmt: skip


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("components", [1, 3, 5])
def test_integer_pixels_of_joint_components_cost_what_training_thinks(
    components: int, order: tuple[int, int, int]
) -> None:
    p = moderate_joint(components, order)
    x = p.sample()
    values = x[0].flatten(1).int().numpy()
    exact = [pixel_distribution(TABLES, quantise(p), c, x, None).bits(values[c]).mean() for c in order]
    assert sum(exact) == pytest.approx(float(p.nll_nats(x).mean()) / math.log(2), rel=0.01)
    assert exact[0] == pytest.approx(float(p.nll_nats(x, channels=1).mean()) / math.log(2), rel=0.01)


def test_what_green_was_tells_the_component() -> None:
    """Two components, one sharp and one wide: a green far off leaves the wide one, and red is coded by that."""
    shape = (1, 2, 3, 1, 1)
    log_sigma = torch.tensor([-2.0, 4.0]).view(1, 2, 1, 1, 1).expand(shape)
    p = quantise(JointMixture(
        torch.zeros(1, 2, 1, 1), torch.zeros(shape), log_sigma, torch.full(shape, 100.0), torch.zeros(shape)
    ))
    near, far = (torch.tensor([g, 100.0, 100.0]).view(1, 3, 1, 1) for g in (100.0, 180.0))
    bits = [pixel_distribution(TABLES, p, 1, x, None).bits(np.array([100]))[0] for x in (near, far)]
    assert bits[0] < 0.6 and bits[1] > 7  # log2(4 exp(4)) = 7.8


@pytest.mark.parametrize("components", [1, 3, 5])
def test_integer_pixels_cost_what_training_thinks(components: int) -> None:
    p = moderate_mixture(components)
    x = p.sample()
    inside = torch.arange(1600)
    values = x[0].flatten(1).int().numpy()
    exact = [pixel_distribution(TABLES, quantise(p), c, x, inside).bits(values[c]).mean() for c in range(3)]
    trained = p.nll_nats(x)[0].mean((1, 2)) / math.log(2)
    assert exact == pytest.approx(trained.tolist(), rel=0.01)


def test_only_positions_inside_are_coded() -> None:
    p = quantise(moderate_mixture(2))
    x = p.sample()
    inside = torch.tensor([3, 100, 1599])
    every = pixel_distribution(TABLES, p, 2, x, None).inside()
    assert np.array_equal(pixel_distribution(TABLES, p, 2, x, inside).inside(), every[inside])


def test_integer_latents_cost_what_training_thinks() -> None:
    torch.manual_seed(0)
    p = Gaussian(torch.randn(2, 3, 8, 8) * 2, torch.randn(2, 3, 8, 8) / 2 - 1)
    k = (p.sample() * 2**4).round().clamp(-128, 127)
    alive = torch.tensor([0, 2])
    bits = latent_distribution(TABLES, p, 4, alive).bits((k[:, alive].transpose(0, 1).flatten() + 128).int().numpy())
    nats = -torch.distributions.Normal(p.mean, p.log_sigma.exp()).log_prob(k / 16)[:, alive].mean()
    assert bits.mean() == pytest.approx(float(nats) / math.log(2) + 4, rel=0.01)  # the grid is 2^-4 wide


@pytest.mark.parametrize("extreme", [-1e30, -1e4, 1e4, 1e30])
def test_extreme_parameters_still_code(extreme: float) -> None:
    shape = (1, 2, 3, 4, 4)
    x = torch.full((1, 3, 4, 4), 255.0)
    p = PixelMixture(*(torch.full(shape, extreme) for _ in range(3)), torch.full_like(x, extreme), -x * extreme)
    for c in range(3):
        check_frequencies(pixel_distribution(TABLES, quantise(p), c, x, torch.arange(16)))
    z = Gaussian(torch.full((1, 2, 2, 2), extreme), torch.full((1, 2, 2, 2), extreme))
    for exponent in (-3, 0, 9):
        check_halves(latent_distribution(TABLES, z, exponent, torch.arange(2)))


def test_locations_are_exact() -> None:
    torch.manual_seed(0)
    shape = (1, 3, 3, 40, 40)
    wide = PixelMixture(
        torch.randn(shape), 4096 * torch.randn(shape), torch.randn(shape), 2000 * torch.randn(1, 3, 40, 40),
        8 * torch.randn(1, 3, 40, 40),
    )  # fmt: skip
    joint = moderate_joint(3, (0, 1, 2))
    far = replace(joint, loc=4096 * torch.randn(shape), base=2000 * torch.randn(shape), coupling=8 * torch.randn(shape))
    for p in (wide, moderate_mixture(3), joint, far, moderate_joint(3, (1, 0, 2))):
        q, x = quantise(p), torch.randint(0, 256, (1, 3, 40, 40)).float()
        double = replace(q, **{k: v.double() for k, v in vars(q).items() if isinstance(v, Tensor)})
        for c in range(3):
            assert torch.equal(q.location(c, x).double(), double.location(c, x.double()))
        assert float((q.loc - p.loc).abs().max()) <= 0.5 / STEPS or p in (wide, far)


@pytest.fixture(scope="module")
def crops(photo: np.ndarray) -> Tensor:
    return random_crops(photo, 4, 64, (1,))


@pytest.fixture(scope="module")
def net(crops: Tensor) -> VDVAE:
    """An exact model wide enough for its sums to be long."""
    pixels = ((0, 0), (1, 1), (0, 1), (1, 0))
    stage = StageConfig(2, 64, 48, latents=1, zdim=4, encoder_blocks=1, pixels=pixels, blocks=(1,) * 4)
    return quantised(untrained(ModelConfig(3, (stage,), tile=64)), [crops])


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


Product = Callable[[Tensor, Tensor, int], Tensor]  # of integers (B, cin, h, w) and weights (cout, cin, k, k)


def double(a: Tensor, weight: Tensor, padding: int) -> Tensor:
    return F.conv2d(a.double(), weight.double(), padding=padding)


def unfold(a: Tensor, weight: Tensor, padding: int) -> Tensor:
    columns = F.unfold(a.contiguous(), weight.shape[2], padding=padding)  # (B, cin k k, h w)
    return (weight.flatten(1) @ columns).view(len(a), len(weight), *a.shape[2:])


def shuffled(a: Tensor, weight: Tensor, padding: int) -> Tensor:
    order = torch.randperm(a.shape[1])
    return F.conv2d(a[:, order], weight[:, order], padding=padding)


def integers(conv: ExactConv, x: Tensor) -> Tensor:
    x = unfused_hard_swish(x) if conv.act else x
    return (x * 2.0**conv.input_exponent).round().clamp(conv.low, conv.high)


def by(product: Product, conv: ExactConv, x: Tensor) -> Tensor:
    """What the convolution should give, computed in another way."""
    weights = conv._weights
    parts = [product(a, w, conv.padding) for a, w in zip(integers(conv, x).chunk(conv.parts, 1), weights, strict=True)]
    parts[0] = parts[0] + conv._bias[:, None, None].to(parts[0].dtype)
    return torch.stack([p.float() for p in parts]).sum(0)


def check_exact(conv: ExactConv, x: Tensor) -> None:
    y = conv(x)
    for product in (double, unfold, shuffled):
        assert torch.equal(by(product, conv, x), y)
    for count in (1, 2):
        with threads(count):
            assert torch.equal(conv(x), y)
    assert torch.equal(conv(x.contiguous(memory_format=torch.channels_last)), y)
    assert torch.equal(conv(x.contiguous()), y)
    assert torch.equal(torch.cat([conv(part) for part in x.split(1)]), y)


def test_every_convolution_is_exact_in_every_way(net: VDVAE, crops: Tensor) -> None:
    seen: list[tuple[ExactConv, Tensor]] = []
    convs = [m for m in net.modules() if isinstance(m, ExactConv)]
    hooks = [m.register_forward_pre_hook(lambda m, args: seen.append((m, args[0].clone()))) for m in convs]
    group = Group(torch.ones(len(crops), 64, 64, dtype=torch.bool), 3)
    exact_elbo(net, TABLES, group, crops)
    for hook in hooks:
        hook.remove()
    assert {id(conv) for conv, _ in seen} == {id(conv) for conv in convs}
    assert any(conv.of_bytes for conv in convs) and not all(conv.of_bytes for conv in convs)
    for conv, x in seen:
        check_exact(conv, x)
        assert float(conv(x).abs().max()) > 0


@pytest.mark.parametrize("kernel, channels", [(1, 48), (3, 16), (3, 64), (5, 33)])
def test_sums_at_the_bound_are_exact(kernel: int, channels: int) -> None:
    torch.manual_seed(0)
    conv = Conv(channels, 20, kernel)
    torch.nn.init.normal_(conv.bias)
    exact = ExactConv(conv)
    quantise_conv(conv, exact, 7, -1000, 1023)
    exact.prepare("conv")
    assert exact.parts == {16: 1, 48: 1, 64: 2, 33: 3}[channels]
    pick = exact.weight.float()
    worst = torch.where(pick > 0, 1023.0, -1000.0)  # (cout, cin, k, k): one image for each output channel
    worst = torch.cat([worst, torch.where(pick > 0, -1000.0, 1023.0), worst * 2.0**20]) * 2.0**-7
    check_exact(exact, worst)
    middle = exact(worst)[:, :, kernel // 2, kernel // 2].double()
    grid = 2.0 ** (exact.weight_exponent.double() + exact.input_exponent)
    sums = (integers(exact, worst).long()[:, None] * exact.weight.long()).sum((2, 3, 4)) + exact.bias.long()
    if exact.parts == 1:
        assert torch.equal((middle * grid).long(), sums)
    limit = partial_sum_bound(exact.weight, exact.bias, -1000, 1023, exact.parts)
    assert bool((limit < LIMIT).all()) and float(limit.max()) > LIMIT / 4
    assert float(sums.abs().max()) > LIMIT / 4


@pytest.mark.parametrize("kernel, channels", [(1, 48), (3, 16), (3, 48)])
def test_bytes_at_their_ends_are_exact(kernel: int, channels: int) -> None:
    torch.manual_seed(0)
    conv = Conv(channels, 20, kernel)
    torch.nn.init.normal_(conv.bias)
    exact = ExactConv(conv)
    quantise_conv(conv, exact, 4, -12, 243, 127)
    exact.prepare("conv")
    assert exact.of_bytes and (exact._bytes is not None) == bytes_are_exact()
    positive = exact.weight > 0  # (cout, cin, k, k): one image for each output channel
    ends = torch.cat([torch.where(positive, 243.0, -12.0), torch.where(positive, -12.0, 243.0)])
    check_exact(exact, torch.cat([ends, ends * 2.0**20]) * 2.0**-4)
    assert torch.equal(copy.deepcopy(exact)(ends), exact(ends))


def test_inputs_of_more_than_a_byte_are_not_taken_for_bytes() -> None:
    conv = Conv(16, 20, 3)
    exact = ExactConv(conv)
    for low, high, levels in ((-12, 244, 127), (-12, 243, 1000), (1, 200, 127)):
        quantise_conv(conv, exact, 4, low, high, levels)
        exact.prepare("conv")
        assert not exact.of_bytes and exact._bytes is None


def test_the_exact_twin_is_close(tiny_float: VDVAE, tiny_model: Released, crops: Tensor) -> None:
    exact, trained = exact_elbo_bpd(tiny_model.model, [crops]), float_elbo_bpd(tiny_float, [crops])
    assert exact == pytest.approx(trained, rel=0.01)


def test_latents_that_do_not_pay_stay_at_their_mean(crops: Tensor) -> None:
    model = untrained(TINY)
    costly = float_elbo_bpd(model, [crops])
    exact = quantise_model(model, [crops])
    assert not any(layer.alive.any() for layer in exact.layers if isinstance(layer, LatentLayer))
    group = Group(torch.ones(len(crops), 64, 64, dtype=torch.bool), 3)
    assert exact_elbo(exact, TABLES, group, crops).kl_bits == [0, 0]
    assert exact_elbo_bpd(exact, [crops]) < costly


def test_latents_that_pay_are_alive() -> None:
    layers = [layer for layer in load_released("photo", "cpu").model.layers if isinstance(layer, LatentLayer)]
    assert any(layer.alive.any() for layer in layers)


@pytest.mark.parametrize("change", ["high", "weight", "bias", "parts"])
def test_a_broken_bound_is_refused(tiny_model: Released, change: str) -> None:
    model = copy.deepcopy(tiny_model.model)
    conv = next(m for m in model.modules() if isinstance(m, ExactConv) and m.weight.shape[1] == 16)
    if change == "high":
        conv.grid[2] *= 1000
    elif change == "weight":
        conv.weight[3] = 2**15 - 1
    elif change == "bias":
        conv.bias[3] = -(2**24)
    else:
        conv.grid[3] = 3
    with pytest.raises(ExactnessError, match=r"^encoder\.\S+: .*(2\^24|cannot be split)"):
        prepare(model)


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Changes a model's tensors and gives it the digest that they have."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    config, _ = read_config(folder / "config.toml")
    save_file(tensors, folder / WEIGHTS, {"digest": digest(config, tensors).hex()})


def test_released_model(tiny_model: Released, tiny_folder: Path, tmp_path: Path) -> None:
    folder = copied(tiny_folder, tmp_path)
    rewrite(folder, lambda tensors: None)
    again = load_released(str(folder), "cpu")
    assert (again.name, again.digest, again.config) == ("copy", tiny_model.digest, tiny_model.config)
    assert tiny_model.name == "tiny" and len(tiny_model.digest) == 16


def test_damaged_weights_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    data = (tiny_folder / WEIGHTS).read_bytes()
    for place in [*range(0, len(data), len(data) // 60), len(data) // 2]:
        folder = copied(tiny_folder, tmp_path / str(place))
        damaged = bytearray(data)
        damaged[place] ^= 1
        (folder / WEIGHTS).write_bytes(damaged)
        with pytest.raises(ModelError) as error:
            load_released(str(folder), "cpu")
        assert "\n" not in str(error.value) and str(folder) in str(error.value)
    (folder / WEIGHTS).write_bytes(data[:-1])
    with pytest.raises(ModelError, match="cannot be read"):
        load_released(str(folder), "cpu")


@pytest.mark.parametrize(
    "old, new, kind",
    [
        ("tile = 32", "tile = 64", ModelError),
        ("zdim = 4", "zdim = 8", ModelError),
        ("tile = 32", "tile = 33", ConfigError),
        ("tile = 32", "tiles = 32", ConfigError),
        ("tile = 32", "tile = ", ConfigError),
    ],
)
def test_another_configuration_is_refused(
    tiny_folder: Path, tmp_path: Path, old: str, new: str, kind: type[Exception]
) -> None:
    folder = copied(tiny_folder, tmp_path)
    text = (folder / "config.toml").read_text()
    assert old in text
    (folder / "config.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(kind):
        load_released(str(folder), "cpu")


def test_the_recipe_is_no_part_of_a_model(tiny_folder: Path, tmp_path: Path, tiny_model: Released) -> None:
    folder = copied(tiny_folder, tmp_path)
    text = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(text.replace("steps = 1\n", "steps = 2\n"))
    assert load_released(str(folder), "cpu").digest == tiny_model.digest


@pytest.mark.parametrize("name", ["known.answer", "known.image", "model.encoder.stem.weight", "tables.weight"])
def test_inexact_arithmetic_is_refused(tiny_folder: Path, tmp_path: Path, name: str) -> None:
    folder = copied(tiny_folder, tmp_path)

    rewrite(folder, lambda tensors: tensors.update({name: tensors[name] ^ 1}))
    with pytest.raises(ExactnessError, match="known answer"):
        load_released(str(folder), "cpu")


def test_absent_models_are_named(tmp_path: Path) -> None:
    for name in ("no-such-model", str(tmp_path)):
        with pytest.raises(ModelError, match=rf"{re.escape(name)}.*photo"):
            load_released(name)

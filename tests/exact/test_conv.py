import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from laws import TABLES
from tiny import quantised, random_crops, untrained
from torch import Tensor

from vdvae_codec.codec.group import Group
from vdvae_codec.codec.visitors import exact_elbo
from vdvae_codec.errors import ExactnessError
from vdvae_codec.exact.activations import unfused_hard_swish
from vdvae_codec.exact.conv import LIMIT, ExactConv, bytes_are_exact, partial_sum_bound
from vdvae_codec.exact.quantise import quantise_conv
from vdvae_codec.model.blocks import Conv
from vdvae_codec.model.config import ModelConfig
from vdvae_codec.model.encoder import EncoderStage, ResidualConfig
from vdvae_codec.model.layers.latent import LatentConfig
from vdvae_codec.model.layers.phase import PhaseConfig
from vdvae_codec.model.vdvae import VDVAE


@pytest.fixture(scope="module")
def crops(photo: np.ndarray) -> Tensor:
    return random_crops(photo, 4, 64, (1,))


@pytest.fixture(scope="module")
def net(crops: Tensor) -> VDVAE:
    """An exact model wide enough for its sums to be long."""
    pixels = ((0, 0), (1, 1), (0, 1), (1, 0))
    layers = LatentConfig(2, 64, 48, zdim=4), PhaseConfig(2, 64, 48, pixels, blocks=1, mixtures=3)
    config = ModelConfig(layers, ResidualConfig((EncoderStage(2, 64, 48, blocks=1),)), tile=64)
    return quantised(untrained(config), [crops])


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


def bias_of(conv: Conv) -> Tensor:
    assert conv.bias is not None
    return conv.bias.detach()


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
    group = Group(torch.ones(len(crops), 2, 64, 64, dtype=torch.bool))
    exact_elbo(net, TABLES, group, crops)
    for hook in hooks:
        hook.remove()
    assert {id(conv) for conv, _ in seen} == {id(conv) for conv in convs}
    for conv, x in seen:
        check_exact(conv, x)
        assert float(conv(x).abs().max()) > 0


@pytest.mark.parametrize("kernel, channels", [(1, 48), (3, 16), (3, 64), (5, 33)])
def test_sums_at_the_bound_are_exact(kernel: int, channels: int) -> None:
    torch.manual_seed(0)
    conv = Conv(channels, 20, kernel)
    torch.nn.init.normal_(bias_of(conv))
    exact = conv.twin()
    quantise_conv(exact, conv.weight.detach(), bias_of(conv), (7, -1000, 1023))
    exact.prepare("conv")
    assert exact.parts == {16: 2, 48: 1, 64: 4, 33: 3}[channels]
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


@pytest.mark.parametrize("channels", [16, 48])
def test_bytes_at_their_ends_are_exact(channels: int) -> None:
    torch.manual_seed(0)
    conv = Conv(channels, 20, 1)
    torch.nn.init.normal_(bias_of(conv))
    exact = conv.twin()
    quantise_conv(exact, conv.weight.detach(), bias_of(conv), (4, 0, 255), 127)
    exact.prepare("conv")
    assert exact.of_bytes and (exact.kept == torch.uint8) == bytes_are_exact()
    positive = exact.weight[:, :, 0, 0] > 0  # (cout, cin): one position for each output channel
    ends = torch.cat([torch.where(positive, 255.0, 0.0), torch.where(positive, 0.0, 255.0)])
    x = torch.cat([ends, ends * 2.0**20]) * 2.0**-4
    expected = exact(x.t()[None, :, None])[0, :, 0].t()
    for each in (exact, copy.deepcopy(exact)):
        assert torch.equal(each.rows(each.take_rows(x)), expected)


def test_inputs_of_more_than_a_byte_are_not_taken_for_bytes() -> None:
    conv = Conv(16, 20, 1)
    exact = conv.twin()
    for low, high, levels in ((0, 256, 127), (-12, 243, 127), (0, 255, 1000)):
        quantise_conv(exact, conv.weight.detach(), bias_of(conv), (4, low, high), levels)
        exact.prepare("conv")
        assert not exact.of_bytes and exact.kept == torch.float32


@pytest.mark.parametrize(
    "change, message", [("weight", r"^net\.c2: .*2\^24"), ("grid", r"^net\.c2: .*2\^24"), ("parts", "^net.c2: .*split")]
)
def test_a_broken_bound_is_refused(change: str, message: str) -> None:
    conv = Conv(16, 4, 3)
    exact = conv.twin()
    quantise_conv(exact, conv.weight.detach(), bias_of(conv), (7, -1000, 1023))
    exact.prepare("net.c2")
    if change == "weight":
        exact.weight[3] = 2**15 - 1
    elif change == "grid":
        exact.grid[2] *= 1000
    else:
        exact.grid[3] = 3
    with pytest.raises(ExactnessError, match=message):
        exact.prepare("net.c2")


def test_float_weights_are_the_integers_on_their_grids() -> None:
    torch.manual_seed(0)
    conv = Conv(16, 20, 3)
    torch.nn.init.normal_(bias_of(conv))
    exact = conv.twin()
    quantise_conv(exact, conv.weight.detach(), bias_of(conv), (7, -1000, 1023))
    weight, bias = exact.float_weights()
    steps = 2.0**-exact.weight_exponent
    assert bool(((weight - conv.weight).abs().amax((1, 2, 3)) <= steps / 2).all())
    assert bool(((bias - bias_of(conv)).abs() <= steps * 2.0**-7 / 2).all())
    exact.prepare("conv")
    x = (torch.randint(-1000, 1024, (1, 16, 8, 8)) * 2.0**-7)
    assert torch.equal(F.conv2d(x, weight, bias, padding=1), exact(x))

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from laws import TABLES, check_inverse, random_stack
from tiny import TINY, quantised, random_crops, untrained

from vdvae_codec.codec.group import Group, codes_first_pixels_first
from vdvae_codec.codec.schedule import MIN_BITS
from vdvae_codec.codec.store import Released
from vdvae_codec.codec.visitors import Pushed, draw, exact_elbo, pop_group, push_group
from vdvae_codec.entropy.ans import Stack
from vdvae_codec.images.tiling import FILL, Place, cut_tiles, tile_boxes, tile_grid
from vdvae_codec.model.distributions.gaussian import Gaussian
from vdvae_codec.model.layers.phase import PhaseConfig
from vdvae_codec.model.vdvae import VDVAE
from vdvae_codec.transforms.chroma import blocks_between

CPU = torch.device("cpu")
LATENTS = 4 * (16 + 64)  # of a tile of 32x32: channels, positions at both strides
BITS_AT_MODE = -math.log2(math.erf(math.sqrt(2)))  # of N(0, 1) on a grid of 4, at most: -2 to 2 is one point
SIZES = [(1, 1), (1, 17), (47, 33), (64, 64), (100, 9)]


def cut(pixels: np.ndarray, places: list[Place], tile: tuple[int, int]) -> tuple[torch.Tensor, Group]:
    """Tiles of pixels (H, W, 1 or 3) and what of them is coded."""
    x, mask = cut_tiles([pixels], places, tile)
    coded_mask = torch.from_numpy(mask)[:, None].expand(-1, 1 if pixels.shape[2] == 1 else 2, -1, -1)
    return torch.from_numpy(x).float(), Group(coded_mask)


def whole(pixels: np.ndarray, released: Released) -> tuple[torch.Tensor, Group]:
    """All tiles of pixels (H, W, C) as one group."""
    height, width = pixels.shape[:2]
    tile = tile_grid(height, width, released.config.tile, released.config.multiple)
    return cut(pixels, [(0, box) for box in tile_boxes(height, width, tile)], tile)


def push(released: Released, group: Group, x: torch.Tensor, stack: Stack, direct: bool) -> Pushed | None:
    return push_group(released.model, released.tables, group, x.clone(), stack, direct)


def check_group(released: Released, group: Group, x: torch.Tensor, direct: bool, words: int) -> Pushed:
    """The law of inverses, and the tiles' bits add up to what the stack grew by; returns what it cost."""
    costs: list[Pushed] = []

    def pushing(stack: Stack, x: np.ndarray) -> None:
        cost = push(released, group, torch.from_numpy(x), stack, direct)
        assert cost is not None
        costs.append(cost)

    def popping(stack: Stack) -> np.ndarray:
        return pop_group(released.model, released.tables, group, stack, direct).numpy()

    bits = check_inverse(pushing, popping, x.numpy(), words)
    (cost,) = costs
    assert cost.tile_bits.shape == (len(x),) and cost.tile_bits.sum() == pytest.approx(bits, rel=1e-9, abs=1e-6)
    assert (cost.initial_bits > 0) == direct and bits > 0
    return cost


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("direct, words", [(True, 0), (True, 7), (False, 2000)])
def test_groups(
    tiny_model: Released, photo: np.ndarray, size: tuple[int, int], channels: int, direct: bool, words: int
) -> None:
    x, group = whole(photo[: size[0], : size[1], :channels], tiny_model)
    check_group(tiny_model, group, x, direct, words)


def test_groups_of_noise_and_extremes(tiny_model: Released) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    for pixels in (noise, noise // 128 * 255, np.zeros_like(noise), np.full_like(noise, 255)):
        x, group = whole(pixels, tiny_model)
        for direct in (True, False):
            check_group(tiny_model, group, x, direct, words=4000)


def test_borrowing_is_cheaper_than_paying(tiny_model: Released, photo: np.ndarray) -> None:
    assert all(layer.active.all() for layer in tiny_model.model.latent_layers)
    x, group = whole(photo[:64, :64], tiny_model)
    borrowed, direct = (check_group(tiny_model, group, x, d, 4000).tile_bits.sum() for d in (False, True))
    assert borrowed < direct - 0.3 * 4 * LATENTS


@pytest.mark.parametrize("words", [0, 1, 2, 20])
def test_a_group_that_wants_more_than_there_is_changes_nothing(
    tiny_model: Released, photo: np.ndarray, words: int
) -> None:
    x, group = cut(photo, [(0, (0, 0, 32, 32)), (0, (32, 0, 64, 32))], (32, 32))
    stack = random_stack(words)
    before = stack.words()
    assert push(tiny_model, group, x, stack, direct=False) is None
    assert np.array_equal(stack.words(), before)
    wanted = push(tiny_model, group, x, random_stack(200), direct=False)
    assert wanted is not None and wanted.borrowed_bits > 32 * words - MIN_BITS
    assert push(tiny_model, group, x, stack, direct=True) is not None


@pytest.mark.parametrize("sigma", [0.8, 2.0, 9.0])
def test_what_is_drawn_is_as_spread_as_the_posterior(sigma: float) -> None:
    """Rounding to the grid adds nothing, and hardly any of what is drawn lies where it would spoil what follows."""
    count, exponent = 600_000, 3
    mean = torch.linspace(-1, 1, count).view(1, 1, 1, count)
    q = Gaussian(mean, torch.full_like(mean, math.log(sigma * 2.0**-exponent)))
    k = draw(q.integers(TABLES, exponent, torch.tensor([0])), np.random.default_rng(0)) - 128
    off = (k - mean.numpy().ravel() * 2**exponent) / sigma
    assert abs(off.mean()) < 0.01 and (np.abs(off) > 8).mean() < 2e-5
    assert off[np.abs(off) < 8].std() == pytest.approx(1, abs=0.012)  # scales: to 1/64 nat


@pytest.fixture(scope="module")
def idle_model(photo: np.ndarray) -> Released:
    """A model whose posteriors are its priors, N(0, 1) on a grid of 1/2."""
    model = untrained(TINY)
    for net in [net for layer in model.latent_layers for net in (layer.prior, layer.posterior)]:
        net.c4.weight.zero_()
        net.c4.bias.zero_()
    exact = quantised(model, [random_crops(photo, 4, 64, (0,))])
    return Released("idle", bytes(16), TINY, exact, TABLES, CPU, Path("idle"))


def test_latents_whose_posterior_is_the_prior_cost_nothing(idle_model: Released, photo: np.ndarray) -> None:
    x, group = whole(photo, idle_model)
    terms = exact_elbo(idle_model.model, idle_model.tables, group, x.clone())
    assert terms.kl_bits == [0, 0]
    cost = check_group(idle_model, group, x, direct=True, words=0)
    assert 0 < cost.initial_bits <= len(x) * LATENTS * BITS_AT_MODE
    assert cost.tile_bits.sum() - cost.initial_bits == pytest.approx(sum(terms.pixel_bits), rel=3e-3)
    borrowed = check_group(idle_model, group, x, direct=False, words=4000)
    assert borrowed.tile_bits.sum() == pytest.approx(sum(terms.pixel_bits), rel=3e-3)


def test_groups_cost_the_elbo(tiny_model: Released, photo: np.ndarray) -> None:
    x, group = whole(photo, tiny_model)
    terms = exact_elbo(tiny_model.model, tiny_model.tables, group, x.clone())
    elbo_bits = sum(terms.kl_bits) + sum(terms.pixel_bits)
    assert (len(terms.kl_bits), len(terms.pixel_bits)) == (2, 10)
    assert sum(terms.kl_bits) > 0.01 * elbo_bits  # more than the difference allowed below
    # Both sides draw their own latents.
    assert check_group(tiny_model, group, x, False, 20_000).tile_bits.sum() == pytest.approx(elbo_bits, rel=3e-3)


def test_tile_bits_rank_noise_above_flat_tiles(tiny_model: Released, photo: np.ndarray) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    pixels = np.concatenate([np.full((32, 32, 3), 90, np.uint8), noise, photo[:32, :32]])
    x, group = whole(pixels, tiny_model)
    for direct in (True, False):
        flat, noisy, photograph = check_group(tiny_model, group, x, direct, 4000).tile_bits
        assert flat < photograph < noisy and noisy > 3 * 32 * 32 * 7.5
    alone = [push(tiny_model, *reversed(cut(pixels, [(0, (32 * n, 0, 32 * n + 32, 32))], (32, 32))), random_stack(4000),
                  direct=False) for n in range(3)]
    bits = [float(cost.tile_bits[0]) for cost in alone if cost is not None]
    assert [flat, noisy, photograph] == pytest.approx(bits, rel=0.05, abs=300)


def masked_group(photo: np.ndarray, share: float = 0.5) -> tuple[torch.Tensor, Group, torch.Tensor]:
    """Two tiles with a border, half of whose 2x2 blocks are marked, and those blocks' other pixels, (B, 1, h, w)."""
    x, mask = cut_tiles([photo], [(0, (0, 0, 32, 32)), (0, (64, 96, 90, 117))], (32, 32))
    blocks = np.random.default_rng(0).random((2, 1, 16, 16)) < share
    other = np.repeat(np.repeat(blocks, 2, 2), 2, 3)
    other[:, :, ::2, ::2] = False
    other = torch.from_numpy(other & mask[:, None])
    inside = torch.from_numpy(mask[:, None])
    return torch.from_numpy(x).float(), Group(torch.cat([inside, inside & ~other], 1)), other


@pytest.mark.parametrize("direct", [False, True])
def test_colours_that_are_not_coded_are_filled_in(tiny_model: Released, photo: np.ndarray, direct: bool) -> None:
    x, group, other = masked_group(photo)
    assert other.any() and codes_first_pixels_first(tiny_model.model)
    stack = random_stack(4000)
    before = stack.words()
    assert push(tiny_model, group, x, stack, direct) is not None
    popped = pop_group(tiny_model.model, tiny_model.tables, group, stack, direct)
    assert np.array_equal(stack.words(), before)
    inside = group.coded_mask[:, :1]
    coded = torch.cat([inside, group.coded_mask[:, 1:].expand(-1, 2, -1, -1)], 1)
    assert torch.equal(popped[coded], x[coded])
    beyond = ~inside.expand_as(x)
    assert bool((popped[beyond] == FILL).all())
    filled = x.clone()
    group.fill(filled)
    assert torch.equal(popped, filled)
    assert torch.equal(filled[:, :1], x[:, :1]) and not torch.equal(filled, x)


def test_the_fill_is_what_the_transform_calls_between(photo: np.ndarray) -> None:
    x, group, _ = masked_group(photo, share=1.0)
    group.fill(x)
    tile = x[0].permute(1, 2, 0)[..., [1, 0, 2]].byte().numpy()
    assert blocks_between(tile).all()
    assert float(x.min()) >= 0 and float(x.max()) <= 255 and torch.equal(x, x.round())


def test_uncoded_colours_cost_nothing(tiny_model: Released, photo: np.ndarray) -> None:
    x, masked, _ = masked_group(photo, share=1.0)
    masked.fill(x)
    full = Group(masked.coded_mask[:, :1].expand(-1, 2, -1, -1))
    terms = [exact_elbo(tiny_model.model, tiny_model.tables, group, x.clone()) for group in (masked, full)]
    assert terms[0].kl_bits == terms[1].kl_bits
    less, more = (sum(term.pixel_bits) for term in terms)
    assert 0.4 * more < less < 0.7 * more  # half of the sub-pixels
    bits = [check_group(tiny_model, group, x, True, 0).tile_bits.sum() for group in (masked, full)]
    assert bits[1] - bits[0] == pytest.approx(more - less, rel=0.02)


def test_models_of_all_pixels_at_once_cannot_leave_colours_out(tiny_float: VDVAE) -> None:
    assert codes_first_pixels_first(tiny_float)
    layers = tuple(layer for layer in TINY.layers if layer.stride == 8 and not layer.holds)
    once = PhaseConfig(1, 12, 12, ((0, 0),), blocks=1, mixtures=2)
    assert not codes_first_pixels_first(VDVAE(replace(TINY, layers=(*layers, once))))
    mixed = PhaseConfig(2, 12, 12, ((0, 0), (1, 1), (0, 1), (1, 0)), blocks=1, mixtures=2)
    assert codes_first_pixels_first(VDVAE(replace(TINY, layers=(*layers, mixed))))
    late = replace(mixed, offsets=((1, 1), (0, 0), (0, 1), (1, 0)))
    assert not codes_first_pixels_first(VDVAE(replace(TINY, layers=(*layers, late))))
    assert not codes_first_pixels_first(VDVAE(replace(TINY, channels=1)))

"""Coding of causal layers: bulk push against wavefronts, whatever of the pixels is coded."""

import numpy as np
import pytest
import torch
from laws import TABLES, check_codec, logistics, random_stack
from tiny import random_crops

from vdvae_codec.codec import pipeline
from vdvae_codec.codec.group import Group, codes_first_pixels_first, fill
from vdvae_codec.codec.store import Released
from vdvae_codec.codec.visitors import exact_elbo, pop_group, push_group
from vdvae_codec.codec.waves import wave_codec
from vdvae_codec.entropy.ans import Stack
from vdvae_codec.entropy.codec import Bytes, push_parts, support_codec
from vdvae_codec.images.files import picture_of
from vdvae_codec.images.tiling import wave_tile
from vdvae_codec.model.layers.base import State
from vdvae_codec.model.layers.causal import CausalLayer

SIDE = 24


def masked(kind: str, count: int) -> torch.Tensor:
    """(count, 1 or 2, SIDE, SIDE) bool: what is coded."""
    mask = torch.ones(count, 1 if kind == "grey" else 2, SIDE, SIDE, dtype=torch.bool)
    if kind != "all":
        mask[-1, :, 20:], mask[-1, :, :, 17:] = False, False
    if kind == "chroma":
        blocks = torch.rand(count, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(0)) < 0.5
        others = blocks.repeat_interleave(2, 1).repeat_interleave(2, 2)
        others[:, ::2, ::2] = False
        mask[:, 1] &= ~others
    return mask


@pytest.mark.parametrize("kind", ["all", "part", "chroma", "grey"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_groups_come_back(causal_model: Released, photo: np.ndarray, count: int, kind: str) -> None:
    model, mask = causal_model.model, masked(kind, count)
    x = torch.where(mask[:, :1], random_crops(photo, count, SIDE, (0,)), 128.0)
    x = x[:, :1].repeat(1, 3, 1, 1) if kind == "grey" else x
    group, stack = Group(mask), random_stack(200)
    before = stack.words()
    costs = [push_group(model, TABLES, group, x.clone(), stack, direct) for direct in (True, False)]
    shown = x.clone()
    fill(model, group, shown)
    for direct in (False, True):
        assert torch.equal(pop_group(model, TABLES, group, stack, direct), shown)
    assert np.array_equal(stack.words(), before)
    counted = exact_elbo(model, TABLES, group, x.clone())
    bits = sum(counted.kl_bits) + sum(counted.pixel_bits)
    for cost in costs:
        assert cost is not None and cost.tile_bits.shape == (count,)
    assert costs[1] is not None and costs[1].tile_bits.sum() == pytest.approx(bits, rel=0.02)


def test_the_codec_of_a_layer(causal_model: Released, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """The law of inverses, also where the pixels are pushed in several arrays."""
    layer = causal_model.model.layers[-1]
    assert isinstance(layer, CausalLayer)
    group = Group(masked("chroma", 3))
    x = torch.where(group.coded_mask[:, :1], random_crops(photo, 3, SIDE, (0,)), 128.0)
    fill(causal_model.model, group, x)
    state = State(torch.randn(3, 16, 2, 2), 16, x.clone())
    values = np.concatenate(group.values(layer, (0, 1, 2), x))
    words = []
    for size in (2**17, 100):
        monkeypatch.setattr("vdvae_codec.codec.waves.PUSHED_PIXELS", size)
        check_codec(wave_codec(TABLES, group, layer, state), values)
        stack = Stack()
        wave_codec(TABLES, group, layer, state).push(stack, values)
        words.append(stack.words())
        assert torch.equal(state.x, x)
    assert np.array_equal(*words)


def test_parts_are_popped_one_after_the_other() -> None:
    """``push_parts`` of two colours is what ``support_codec`` pops part by part."""
    rng = np.random.default_rng(0)
    sizes = [[5, 0, 40, 1], [3, 2, 30, 0]]
    colours = []
    for n, own in enumerate(sizes):
        x = rng.integers(0, 256, sum(own)).astype(np.int32)
        colours.append(Bytes(logistics(sum(own), 3, n), x, np.repeat(np.arange(4), own)))
    stack = random_stack(100)
    before, bits = stack.words(), stack.bits
    costs = push_parts(stack, colours)
    assert sum(float(cost.sum()) for cost in costs) == pytest.approx(stack.bits - bits, abs=64)
    for part in range(4):
        for colour in colours:
            here = np.flatnonzero(colour.part == part)
            d = colour.distribution
            own = type(d)(d.table, d.location[:, here], d.inverse_scale[:, here], d.weight[:, here])  # type: ignore
            assert np.array_equal(support_codec(own).pop(stack), colour.x[here])
    assert np.array_equal(stack.words(), before)


@pytest.mark.parametrize("size", [(1, 1), (1, 17), (47, 33), (64, 64), (100, 9), (90, 130)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_come_back(causal_model: Released, photo: np.ndarray, size: tuple[int, int], channels: int) -> None:
    pixels = np.ascontiguousarray(photo[: size[0], : size[1], :channels])
    pictures = [picture_of(pixels, "a"), picture_of(pixels[::-1].copy(), "b")]
    encoded = pipeline.encode(pictures, causal_model, fallback=False)
    pipeline.verify(pictures, encoded.segment, causal_model)
    assert encoded.segment.entries[0].coded and encoded.segment.direct >= 1


def test_colours_between_others_are_not_coded(causal_model: Released, photo: np.ndarray) -> None:
    assert codes_first_pixels_first(causal_model.model)
    grey = np.repeat(photo[..., :1], 3, 2)
    bits = [
        pipeline.encode([picture_of(image, "a")], causal_model, fallback=False).segment.word_bytes
        for image in (grey, photo)
    ]
    pipeline.verify(
        [picture_of(grey, "a")], pipeline.encode([picture_of(grey, "a")], causal_model, fallback=False).segment,
        causal_model,
    )
    assert bits[0] < 0.6 * bits[1]


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (512, 768), (2000, 3000), (4300, 5800), (20, 5000), (10000, 30)])
def test_tiles_of_wavefronts(size: tuple[int, int]) -> None:
    height, width = wave_tile(*size, 256, 2)
    assert height % 2 == width % 2 == 0 and height <= 308 + 2 and width <= 410 + 2
    assert -(-size[0] // height) * height - size[0] < 2 * -(-size[0] // height) + 1
    larger, wider = wave_tile(2 * size[0], 2 * size[1], 256, 2)
    assert larger * wider >= height * width / 2

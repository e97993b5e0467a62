"""What holds for every codec, and what the tests of codecs share."""

import math

import numpy as np
import torch

from vdvae_codec.coding.codec import Codec
from vdvae_codec.coding.stack import Stack
from vdvae_codec.exact.tables import STEPS, WEIGHT_ONE, ByteHalves, ByteMixture, inverse_scale, make_tables

TABLES = make_tables()


def random_stack(words: int, seed: int = 0) -> Stack:
    content = np.random.default_rng(seed).integers(0, 1 << 32, words, np.uint32)
    content[-1:] |= 1  # a stack's last word is not zero
    return Stack(content)


def check_codec(codec: Codec, x: np.ndarray, words: int = 1000) -> int:
    """pop(push(stack, x)) gives back x and the stack, also through its words; returns the net bits of x."""
    stack = random_stack(words)
    before, bits = stack.words(), stack.bits
    codec.push(stack, x)
    after = Stack(stack.words())
    popped = codec.pop(after)
    assert popped.shape == x.shape and np.array_equal(popped, x)
    assert np.array_equal(after.words(), before)
    return stack.bits - bits


def gaussian(mean: np.ndarray, log_sigma: float) -> ByteHalves:
    """Discretised Gaussians over 0..255 with the means (N,)."""
    location = torch.from_numpy(np.round(mean * STEPS)).float()[None]
    scale = inverse_scale(TABLES, torch.full_like(location, log_sigma))
    weight = torch.full(location.shape, WEIGHT_ONE, dtype=torch.int32)
    return ByteMixture(TABLES.gaussian, location, scale, weight).halves()


def logistics(count: int, components: int, seed: int = 0) -> ByteMixture:
    """Mixtures of logistics with random parameters, some of them far outside of 0..255."""
    rng = np.random.default_rng(seed)
    location = torch.from_numpy(rng.normal(128, 120, (components, count)) * STEPS).round().float()
    scale = TABLES.inverse_scale[torch.from_numpy(rng.integers(0, len(TABLES.inverse_scale), (components, count)))]
    index = rng.integers(0, len(TABLES.weight), (components, count))
    index[0] = 0  # the heaviest component
    return ByteMixture(TABLES.logistic, location, scale, TABLES.weight[torch.from_numpy(index)])


def normal_bits(x: np.ndarray, mean: float, sigma: float) -> float:
    """-log2 of the density of x (N,) under a Gaussian, summed."""
    nats = 0.5 * ((x - mean) / sigma) ** 2 + math.log(sigma * math.sqrt(2 * math.pi))
    return float(nats.sum() / math.log(2))

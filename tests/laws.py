"""What holds for every codec, and what the tests of codecs share."""

import math
from collections.abc import Callable

import numpy as np
import torch

from vdvae_codec.entropy.ans import Stack
from vdvae_codec.entropy.codec import Codec
from vdvae_codec.exact.cdf import STEPS, SUPPORT, WEIGHT_ONE, ByteMixture, ByteNibbles, make_tables, nearest_scale

TABLES = make_tables()


def random_stack(words: int, seed: int = 0) -> Stack:
    content = np.random.default_rng(seed).integers(0, 1 << 32, words, np.uint32)
    content[-1:] |= 1  # a stack's last word is not zero
    return Stack(content)


def check_inverse(
    push: Callable[[Stack, np.ndarray], object], pop: Callable[[Stack], np.ndarray], x: np.ndarray, words: int = 1000
) -> int:
    """pop(push(stack, x)) gives back x and the stack, also through its words; returns the net bits of x."""
    stack = random_stack(words)
    before, bits = stack.words(), stack.bits
    push(stack, x)
    after = Stack(stack.words())
    popped = pop(after)
    assert popped.shape == x.shape and np.array_equal(popped, x)
    assert np.array_equal(after.words(), before)
    return stack.bits - bits


def check_codec(codec: Codec, x: np.ndarray, words: int = 1000, rounding: float = 0) -> int:
    """The law of inverses; and what push says of each symbol adds up to the net bits of x, which are returned.

    Within two words, and the share ``rounding`` where probabilities are so small that the coder's 24 bits round them.
    """
    costs = []

    def push(stack: Stack, x: np.ndarray) -> None:
        costs.append(codec.push(stack, x))

    bits = check_inverse(push, codec.pop, x, words)
    assert costs[0].shape == x.shape and costs[0].dtype == np.float32
    assert abs(costs[0].sum(dtype=np.float64) - bits) <= 64 + rounding * bits
    return bits


def gaussian(mean: np.ndarray, log_sigma: float) -> ByteNibbles:
    """Discretised Gaussians over 0..255 with the means (N,)."""
    location = np.round(mean * STEPS).astype(np.float32)[None]
    scale = nearest_scale(TABLES.inverse_scale, np.full_like(location, log_sigma))
    weight = np.full(location.shape, WEIGHT_ONE, np.int32)
    return ByteMixture(TABLES.gaussian.numpy(), location, scale, weight).nibbles()


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


def check_nibbles(d: ByteNibbles) -> None:
    for f in (d.coarse(), *(d.fine(np.full(len(d.low), h)) for h in range(16))):
        assert f.shape == (len(d.low), 16) and f.dtype == np.float32
        assert np.all(f / f.sum(1, keepdims=True) > 2**-23)  # the coder resolves 2^-24


def probabilities(d: ByteNibbles | ByteMixture, count: int) -> np.ndarray:
    """Sum over the 256 values, of each of the N distributions."""
    total: np.ndarray = sum(2.0 ** -d.bits(np.full(count, x, np.int32)) for x in range(256))
    return total


def check_frequencies(d: ByteMixture) -> None:
    """Every frequency is positive, and the probabilities of the 256 values add up to one, with supports and without."""
    within, start = d.within(), d.start()
    assert start.min() >= 0 and start.max() <= 256 - SUPPORT
    assert within.shape == (len(start), 16) and np.all(within / within.sum(1, keepdims=True) > 2**-23)
    check_nibbles(d.nibbles())
    for above in (False, True):
        check_nibbles(d.beyond(np.arange(len(start)), np.full(len(start), above)))
    assert np.abs(probabilities(d.nibbles(), len(start)) - 1).max() < 1e-6
    # What is left out is the least share that nibbles which cannot occur are given beside a support.
    total = probabilities(d, len(start))
    assert total.max() < 1 + 1e-6 and total.min() > 1 - 1e-2 and total.mean() > 1 - 1e-3

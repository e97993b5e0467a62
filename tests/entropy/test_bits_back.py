import numpy as np
import pytest
from laws import check_inverse, gaussian, normal_bits, random_stack

from vdvae_codec.entropy.ans import Stack
from vdvae_codec.entropy.bits_back import Receiver, Sender
from vdvae_codec.entropy.codec import Codec, nibbles_codec
from vdvae_codec.exact.cdf import ByteNibbles

N = 4000


class Toy:
    """z1 ~ N(128, s^2), z2 ~ N(z1, s^2), x ~ N(z2, s^2), and their true posteriors."""

    LOG_S = 2.5

    def __init__(self, direct: bool):
        self.direct = direct

    def prior(self, mean: np.ndarray) -> Codec:
        return nibbles_codec(gaussian(mean, self.LOG_S))

    def q1(self, x: np.ndarray) -> ByteNibbles:
        return gaussian(128 + (x - 128) / 3, self.LOG_S + 0.5 * np.log(2 / 3))

    def q1_point(self, x: np.ndarray) -> np.ndarray:
        return (128 + (x - 128) / 3).round().astype(np.int32)

    def q2(self, z1: np.ndarray, x: np.ndarray) -> ByteNibbles:
        return gaussian((z1 + x) / 2, self.LOG_S + 0.5 * np.log(1 / 2))

    def pop_latents(self, stack: Stack, x: np.ndarray) -> Sender:
        sender = Sender(stack, self.direct)
        z1 = sender.latent(self.prior(np.full(N, 128.0)), nibbles_codec(self.q1(x)), lambda: self.q1_point(x))
        z2 = sender.latent(self.prior(z1), nibbles_codec(self.q2(z1, x)), lambda: (z1 + x) // 2)
        sender.observed(self.prior(z2), x)
        return sender

    def push(self, stack: Stack, x: np.ndarray) -> None:
        self.pop_latents(stack, x).finish()

    def pop(self, stack: Stack) -> np.ndarray:
        receiver = Receiver(stack, self.direct)
        z1 = receiver.latent(self.prior(np.full(N, 128.0)), lambda: nibbles_codec(self.q1(x)))
        z2 = receiver.latent(self.prior(z1), lambda: nibbles_codec(self.q2(z1, x)))
        x = receiver.observed(self.prior(z2))
        receiver.finish()
        return x


TOY_X = np.random.default_rng(2).normal(128, np.exp(Toy.LOG_S) * 3**0.5, N).round().clip(0, 255).astype(np.int32)


def test_bits_back_costs_the_marginal_likelihood() -> None:
    toy = Toy(direct=False)
    bits = check_inverse(toy.push, toy.pop, TOY_X, words=4 * N)
    assert bits == pytest.approx(normal_bits(TOY_X, 128, np.exp(Toy.LOG_S) * 3**0.5), rel=5e-3)


@pytest.mark.parametrize("words", [0, 1, 1000])
def test_direct_coding_pays_for_its_latents(words: int) -> None:
    toy = Toy(direct=True)
    bits = check_inverse(toy.push, toy.pop, TOY_X, words)
    marginal = normal_bits(TOY_X, 128, np.exp(Toy.LOG_S) * 3**0.5)
    entropy = 2 * N * (Toy.LOG_S / np.log(2) + 2.05)  # of two latents under their priors
    assert marginal + 0.5 * entropy < bits < marginal + entropy


def test_borrowing_from_a_dry_stack_is_still_undone() -> None:
    toy = Toy(direct=False)
    check_inverse(toy.push, toy.pop, TOY_X, words=10)


@pytest.mark.parametrize("words", [0, 2, 4 * N])
@pytest.mark.parametrize("direct", [False, True])
def test_give_back_restores_the_stack(words: int, direct: bool) -> None:
    stack = random_stack(words)
    before = stack.words()
    sender = Toy(direct).pop_latents(stack, TOY_X)
    assert direct or stack.bits < 32 * max(words, 1)
    sender.give_back()
    assert np.array_equal(stack.words(), before)
    sender.finish()  # nothing is left to do
    assert np.array_equal(stack.words(), before)


def test_latents_whose_posterior_is_the_prior_cost_nothing() -> None:
    stack = random_stack(4 * N)
    before = stack.words()
    sender = Sender(stack, direct=False)
    z = np.full(N, 128)
    for _ in range(2):
        prior, posterior = (nibbles_codec(gaussian(z, 3.0)) for _ in range(2))
        z = sender.latent(prior, posterior, lambda: np.zeros(N, np.int32))
    assert len(stack.words()) < len(before) - N / 4  # bits were borrowed
    sender.finish()
    assert np.array_equal(stack.words(), before)


@pytest.mark.parametrize("direct", [False, True])
def test_finish_itemises_what_was_pushed_in_the_order_of_events(direct: bool) -> None:
    stack = random_stack(4 * N)
    sender = Toy(direct).pop_latents(stack, TOY_X)
    before = stack.bits
    bits = sender.finish()
    assert [b.shape for b in bits] == [(N,)] * 3
    assert sum(float(b.sum(dtype=np.float64)) for b in bits) == pytest.approx(stack.bits - before, abs=64)
    one = Toy(direct)
    prior = one.prior(np.full(N, 128.0))
    z1 = one.q1_point(TOY_X) if direct else nibbles_codec(one.q1(TOY_X)).pop(random_stack(4 * N))
    assert np.array_equal(bits[0], prior.push(Stack(), z1))

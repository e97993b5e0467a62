from collections.abc import Callable

import numpy as np
import pytest
from laws import check_codec, gaussian, logistics, normal_bits, random_stack

from vdvae_codec.coding.bits_back import Receiver, Sender
from vdvae_codec.coding.codec import Codec, chain, halves_codec, window_codec
from vdvae_codec.coding.schedule import code_groups
from vdvae_codec.coding.stack import Stack
from vdvae_codec.errors import FormatError
from vdvae_codec.exact.tables import ByteHalves, ByteMixture
from vdvae_codec.hierarchy import draw

N = 4000


def frequencies(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 1 << 20, (count, 16)).astype(np.float32)


def symbols(count: int, high: int = 16) -> np.ndarray:
    return np.random.default_rng(1).integers(0, high, count, np.int32)


def stack_codec(f: np.ndarray) -> Codec:
    return Codec(lambda stack, x: stack.push(x, f), lambda stack: stack.pop(f))


@pytest.mark.parametrize("words", [0, 1, 2, 1000])
@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_stack(count: int, words: int) -> None:
    check_codec(stack_codec(frequencies(count)), symbols(count), words)


def test_stack_costs_the_entropy() -> None:
    f = frequencies(N)
    p = f.astype(float) / f.sum(1, keepdims=True).astype(float)
    x = symbols(N)
    expected = -np.log2(p[np.arange(N), x]).sum()
    assert check_codec(stack_codec(f), x) == pytest.approx(expected, rel=1e-4)


def test_certain_symbols_cost_nothing_and_others_are_possible() -> None:
    f = np.ones((N, 16), np.float32)
    f[:, 4] = 2.0**22
    assert check_codec(stack_codec(f), np.full(N, 4, np.int32)) <= 1 + N * 15 * 2**-22 * 1.5
    assert check_codec(stack_codec(f), symbols(N)) == pytest.approx(22 * N * 15 / 16, rel=0.02)


def test_golden_words() -> None:
    f = np.array([[1 + i * j % 7 for i in range(16)] for j in range(1, 9)], np.float32)
    stack = Stack()
    stack.push(np.array([0, 3, 15, 7, 8, 1, 14, 5]), f)
    assert stack.words().tolist() == [0xF9030422, 0xD2EB4]
    stack = Stack()
    stack.push(np.arange(40) * 7 % 16, np.repeat(f, 5, 0))
    assert stack.words().tolist() == [0x2B591795, 0xB7C93D4F, 0x7FC34532, 0xD429C9BD, 0xF301C31F, 0x316F72]


def test_golden_words_of_certain_symbols() -> None:
    f = np.ones((3, 16), np.float32)
    f[:, 4] = 2.0**22
    stack = Stack()
    stack.push(np.array([4, 0, 15]), f)
    assert stack.words().tolist() == [0x108004B6, 0x4000]


@pytest.mark.parametrize("words", [[], [5], [5, 77], [1 << 31, 1], [0, 0, 0, 1]])
@pytest.mark.parametrize("count", [1, 5, 200])
def test_what_a_dry_stack_gave_can_be_pushed_back(words: list[int], count: int) -> None:
    stack = Stack(np.array(words, np.uint32))
    f = frequencies(count)
    popped = stack.pop(f)
    assert stack.bits <= 32 * len(words)
    if count == 200:
        assert stack.bits < 64 and popped[-1] == 0
    stack.push(popped, f)
    assert stack.words().tolist() == words
    assert stack.empty == (not words)


def test_stack_refuses_words_that_it_cannot_write() -> None:
    with pytest.raises(FormatError, match="last word"):
        Stack(np.array([1, 0], np.uint32))


def check_bytes(codec: Codec, d: ByteHalves | ByteMixture, likely: np.ndarray) -> None:
    any_byte = symbols(N, 256)
    assert check_codec(codec, likely) == pytest.approx(d.bits(likely).sum(), rel=1e-3, abs=1)
    assert check_codec(codec, any_byte) == pytest.approx(d.bits(any_byte).sum(), rel=5e-3)


@pytest.mark.parametrize("components", [1, 2, 3, 10])
def test_logistic_bytes(components: int) -> None:
    d = logistics(N, components)
    likely = draw(d.halves(), np.random.default_rng(0))
    check_bytes(halves_codec(d.halves()), d.halves(), likely)
    check_bytes(window_codec(d), d, likely)
    assert d.bits(likely).sum() == pytest.approx(d.halves().bits(likely).sum(), rel=2e-3)


@pytest.mark.parametrize("words", [0, 3, 8000])
def test_pushing_undoes_popping_of_any_bits(words: int) -> None:
    stack = random_stack(words)
    before = stack.words()
    codec = halves_codec(logistics(N, 2).halves())
    codec.push(stack, codec.pop(stack))
    assert np.array_equal(stack.words(), before)


@pytest.mark.parametrize("log_sigma", [-3.0, 0.0, 2.0, 5.0])
def test_gaussian_bytes(log_sigma: float) -> None:
    d = gaussian(np.linspace(-100, 400, N), log_sigma)
    check_bytes(halves_codec(d), d, draw(d, np.random.default_rng(0)))
    assert check_codec(halves_codec(gaussian(np.zeros(0), 0)), symbols(0)) == 0


def test_chain_of_dependent_codecs() -> None:
    def link(n: int) -> Callable[[list[np.ndarray]], Codec]:
        def given(rows: list[np.ndarray]) -> Codec:
            assert len(rows) == n
            return halves_codec(gaussian(sum(rows, np.full(N, 128)) / (n + 1), 2.0))

        return given

    steps = np.random.default_rng(0).normal(0, 8, (3, N)).cumsum(0)
    x = (128 + steps).round().clip(0, 255).astype(np.int32)
    bits = check_codec(chain([link(n) for n in range(3)], [N] * 3), x.ravel())
    rows = [gaussian((128 + x[:n].sum(0)) / (n + 1), 2.0).bits(x[n]).sum() for n in range(3)]
    assert bits == pytest.approx(sum(rows), rel=1e-3)


def test_parts_of_a_chain_may_differ_in_size() -> None:
    sizes = [5, 0, 3]
    x = np.arange(100, 108).astype(np.int32)
    codec = chain([lambda parts, n=n: halves_codec(gaussian(np.full(n, 100 + len(parts)), 2.0)) for n in sizes], sizes)
    assert check_codec(codec, x) > 0


class Toy:
    """z1 ~ N(128, s^2), z2 ~ N(z1, s^2), x ~ N(z2, s^2), and their true posteriors."""

    LOG_S = 2.5

    def __init__(self, direct: bool):
        self.direct = direct

    def prior(self, mean: np.ndarray) -> Codec:
        return halves_codec(gaussian(mean, self.LOG_S))

    def q1(self, x: np.ndarray) -> ByteMixture:
        return gaussian(128 + (x - 128) / 3, self.LOG_S + 0.5 * np.log(2 / 3))

    def q2(self, z1: np.ndarray, x: np.ndarray) -> ByteMixture:
        return gaussian((z1 + x) / 2, self.LOG_S + 0.5 * np.log(1 / 2))

    def pop_latents(self, stack: Stack, x: np.ndarray) -> Sender:
        sender = Sender(stack, self.direct)
        prior, mean = self.prior(np.full(N, 128.0)), 128 + (x - 128) / 3
        z1 = sender.latent(prior, halves_codec(self.q1(x)), lambda: mean.round().astype(np.int32))
        z2 = sender.latent(self.prior(z1), halves_codec(self.q2(z1, x)), lambda: (z1 + x) // 2)
        sender.observed(self.prior(z2), x)
        return sender

    def push(self, stack: Stack, x: np.ndarray) -> None:
        self.pop_latents(stack, x).finish()

    def pop(self, stack: Stack) -> np.ndarray:
        receiver = Receiver(stack, self.direct)
        z1 = receiver.latent(self.prior(np.full(N, 128.0)), lambda: halves_codec(self.q1(x)))
        z2 = receiver.latent(self.prior(z1), lambda: halves_codec(self.q2(z1, x)))
        x = receiver.observed(self.prior(z2))
        receiver.finish()
        return x


TOY_X = np.random.default_rng(2).normal(128, np.exp(Toy.LOG_S) * 3**0.5, N).round().clip(0, 255).astype(np.int32)


def test_bits_back_costs_the_marginal_likelihood() -> None:
    toy = Toy(direct=False)
    bits = check_codec(Codec(toy.push, toy.pop), TOY_X, words=4 * N)
    assert bits == pytest.approx(normal_bits(TOY_X, 128, np.exp(Toy.LOG_S) * 3**0.5), rel=5e-3)


@pytest.mark.parametrize("words", [0, 1, 1000])
def test_direct_coding_pays_for_its_latents(words: int) -> None:
    toy = Toy(direct=True)
    bits = check_codec(Codec(toy.push, toy.pop), TOY_X, words)
    marginal = normal_bits(TOY_X, 128, np.exp(Toy.LOG_S) * 3**0.5)
    entropy = 2 * N * (Toy.LOG_S / np.log(2) + 2.05)  # of two latents under their priors
    assert marginal + 0.5 * entropy < bits < marginal + entropy


def test_borrowing_from_a_dry_stack_is_still_undone() -> None:
    toy = Toy(direct=False)
    check_codec(Codec(toy.push, toy.pop), TOY_X, words=10)


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
        z = sender.latent(halves_codec(gaussian(z, 3.0)), halves_codec(gaussian(z, 3.0)), lambda: symbols(N))
    assert len(stack.words()) < len(before) - N / 4  # bits were borrowed
    sender.finish()
    assert np.array_equal(stack.words(), before)


def test_groups_grow_while_the_bits_last() -> None:
    coded: list[tuple[int, int]] = []

    def attempt(start: int, size: int, direct: bool) -> bool:
        """Every tile pays for three others."""
        assert direct == (start == 0)
        if start and 3 * start < size:
            return False
        coded.append((start, size))
        return True

    assert code_groups(100, lambda start: (100 - start, 16), attempt) == [1, 2, 4, 8, 16, 16, 16, 16, 16, 5]
    assert [start for start, _ in coded] == [0, 1, 3, 7, 15, 31, 47, 63, 79, 95]
    assert code_groups(1, lambda start: (1 - start, 16), attempt) == [1]
    assert code_groups(3, lambda start: (3 - start, 1), attempt) == [1, 1, 1]


def test_refused_groups_are_halved() -> None:
    tried: list[tuple[int, int]] = []

    def attempt(start: int, size: int, direct: bool) -> bool:
        tried.append((start, size))
        return size <= 3

    assert code_groups(12, lambda start: (12 - start, 16), attempt) == [1, 2, 2, 2, 2, 3]
    assert tried[:5] == [(0, 1), (1, 2), (3, 4), (3, 2), (5, 4)]


@pytest.mark.parametrize("needed", [2, 3, 4, 5, 50])
def test_a_first_group_that_pays_too_little_is_enlarged(needed: int) -> None:
    first = 0

    def attempt(start: int, size: int, direct: bool) -> bool:
        nonlocal first
        first = size if start == 0 else first
        assert direct == (start == 0)
        return direct or first >= needed

    sizes = code_groups(11, lambda start: (11 - start, 4), attempt)
    assert sum(sizes) == 11
    assert sizes[0] == first == {2: 2, 3: 4, 4: 4, 5: 8, 50: 11}[needed]


def test_groups_hold_tiles_of_one_shape() -> None:
    ends = [1, 2, 9]
    coded: list[tuple[int, int, bool]] = []

    def room(start: int) -> tuple[int, int]:
        return min(e for e in ends if e > start) - start, 4

    def attempt(start: int, size: int, direct: bool) -> bool:
        """The first three tiles pay for nothing."""
        if start == 0:
            coded.clear()
        if not direct and sum(s for _, s, d in coded if d) < 4:
            return False
        coded.append((start, size, direct))
        return True

    assert code_groups(9, room, attempt) == [1, 1, 2, 4, 1]
    assert coded == [(0, 1, True), (1, 1, True), (2, 2, True), (4, 4, False), (8, 1, False)]

import numpy as np
import pytest
from laws import check_codec

from vdvae_codec.entropy.ans import Stack
from vdvae_codec.entropy.codec import Codec
from vdvae_codec.errors import FormatError

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
    assert check_codec(stack_codec(f), symbols(N), rounding=0.02) == pytest.approx(22 * N * 15 / 16, rel=0.02)


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


def test_an_empty_stack_gives_as_many_symbols_as_it_may() -> None:
    f = frequencies(5)
    stack = Stack(free=8)
    assert not stack.pop(f).any() and stack.empty
    with pytest.raises(FormatError, match="ends before the last pixel"):
        stack.pop(f)
    assert not Stack().pop(frequencies(N)).any()

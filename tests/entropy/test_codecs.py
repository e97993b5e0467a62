from collections.abc import Callable

import numpy as np
import pytest
from laws import check_codec, gaussian, logistics, random_stack

from vdvae_codec.codec.visitors import draw
from vdvae_codec.entropy.ans import Stack
from vdvae_codec.entropy.codec import Codec, chain, nibbles_codec, support_codec
from vdvae_codec.errors import FormatError
from vdvae_codec.exact.cdf import ByteMixture, ByteNibbles

N = 4000


def any_bytes(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, count, np.int32)


def check_bytes(codec: Codec, d: ByteNibbles | ByteMixture, likely: np.ndarray) -> None:
    any_byte = any_bytes(N)
    assert check_codec(codec, likely) == pytest.approx(d.bits(likely).sum(), rel=1e-3, abs=1)
    assert check_codec(codec, any_byte, rounding=5e-3) == pytest.approx(d.bits(any_byte).sum(), rel=5e-3)


@pytest.mark.parametrize("components", [1, 2, 3, 10])
def test_logistic_bytes(components: int) -> None:
    d = logistics(N, components)
    likely = draw(d.nibbles(), np.random.default_rng(0))
    check_bytes(nibbles_codec(d.nibbles()), d.nibbles(), likely)
    check_bytes(support_codec(d), d, likely)
    assert d.bits(likely).sum() == pytest.approx(d.nibbles().bits(likely).sum(), rel=2e-3)


@pytest.mark.parametrize("words", [0, 3, 8000])
def test_pushing_undoes_popping_of_any_bits(words: int) -> None:
    stack = random_stack(words)
    before = stack.words()
    codec = nibbles_codec(logistics(N, 2).nibbles())
    codec.push(stack, codec.pop(stack))
    assert np.array_equal(stack.words(), before)


@pytest.mark.parametrize("log_sigma", [-3.0, 0.0, 2.0, 5.0])
def test_gaussian_bytes(log_sigma: float) -> None:
    d = gaussian(np.linspace(-100, 400, N), log_sigma)
    check_bytes(nibbles_codec(d), d, draw(d, np.random.default_rng(0)))
    assert check_codec(nibbles_codec(gaussian(np.zeros(0), 0)), any_bytes(0)) == 0


def test_chain_of_dependent_codecs() -> None:
    def link(n: int) -> Callable[[list[np.ndarray]], Codec]:
        def given(rows: list[np.ndarray]) -> Codec:
            assert len(rows) == n
            return nibbles_codec(gaussian(sum(rows, np.full(N, 128)) / (n + 1), 2.0))

        return given

    steps = np.random.default_rng(0).normal(0, 8, (3, N)).cumsum(0)
    x = (128 + steps).round().clip(0, 255).astype(np.int32)
    bits = check_codec(chain([link(n) for n in range(3)], [N] * 3), x.ravel())
    rows = [gaussian((128 + x[:n].sum(0)) / (n + 1), 2.0).bits(x[n]).sum() for n in range(3)]
    assert bits == pytest.approx(sum(rows), rel=1e-3)


def test_parts_of_a_chain_may_differ_in_size() -> None:
    sizes = [5, 0, 3]
    x = np.arange(100, 108).astype(np.int32)
    codec = chain([lambda parts, n=n: nibbles_codec(gaussian(np.full(n, 100 + len(parts)), 2.0)) for n in sizes], sizes)
    assert check_codec(codec, x) > 0


def test_a_value_of_the_support_is_coded_as_no_other() -> None:
    d = logistics(1, 1)
    inside = d.start() + 3
    for place in (0, 15):
        stack = Stack()
        nibbles_codec(d.beyond(np.array([0]), np.array([place > 0]))).push(stack, inside)
        stack.push(np.array([place], np.int32), d.within())
        with pytest.raises(FormatError, match="damaged"):
            support_codec(d).pop(stack)

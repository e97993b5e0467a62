"""Codecs: pairs of functions with one law, ``pop(push(stack, x))`` gives back stack and x.

After craystack (arXiv 1901.04866): what is coded under what is decided by composing pairs, never by writing an encoder
and a decoder that must agree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vdvae_codec.coding.stack import SYMBOLS, Stack


class Codec(NamedTuple):
    """``push(stack, x)`` puts an integer array on the stack, ``pop(stack)`` takes it off again."""

    push: Callable[[Stack, np.ndarray], None]
    pop: Callable[[Stack], np.ndarray]


class ByteDistribution(NamedTuple):
    """Distributions of N symbols in 0..255 as frequencies, for coding them as two halves of a byte.

    coarse() -> (N, 16) frequencies of the high halves; fine(high (N,)) -> (N, 16) of the low halves, given the high.
    """

    coarse: Callable[[], np.ndarray]
    fine: Callable[[np.ndarray], np.ndarray]


def byte_codec(distribution: ByteDistribution) -> Codec:
    """Codes arrays (N,) in 0..255 as high and low halves: 2 x 15 values of the cdf instead of 255."""

    def push(stack: Stack, x: np.ndarray) -> None:
        high, low = np.divmod(x, SYMBOLS)
        stack.push(low, distribution.fine(high))
        stack.push(high, distribution.coarse())

    def pop(stack: Stack) -> np.ndarray:
        high = stack.pop(distribution.coarse())
        x: np.ndarray = high * SYMBOLS + stack.pop(distribution.fine(high))
        return x

    return Codec(push, pop)


def chain(links: list[Callable[[list[np.ndarray]], Codec]]) -> Codec:
    """Codes the rows of an array one after the other, each under a codec that may depend on the rows before it."""

    def push(stack: Stack, x: np.ndarray) -> None:
        rows = list(x)
        for n in reversed(range(len(links))):
            links[n](rows[:n]).push(stack, rows[n])

    def pop(stack: Stack) -> np.ndarray:
        rows: list[np.ndarray] = []
        for link in links:
            rows.append(link(rows).pop(stack))
        return np.stack(rows)

    return Codec(push, pop)

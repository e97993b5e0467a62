"""Codecs: pairs of functions with one law, ``pop(push(stack, x))`` gives back stack and x.

After craystack (arXiv 1901.04866): what is coded under what is decided by composing pairs, never by writing an encoder
and a decoder that must agree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from vdvae_codec.coding.stack import SYMBOLS, Stack


class Codec(NamedTuple):
    """``push(stack, x)`` puts an integer array on the stack, ``pop(stack)`` takes it off again."""

    push: Callable[[Stack, np.ndarray], None]
    pop: Callable[[Stack], np.ndarray]


class Halves(Protocol):
    """Distributions of N bytes as frequencies of their high halves, and of their low halves given the high ones."""

    def coarse(self) -> np.ndarray:
        """(N, 16) float32"""

    def fine(self, high: np.ndarray) -> np.ndarray:
        """(N, 16) float32, given the high halves (N,)"""


class Windows(Protocol):
    """Distributions of N bytes, each with a window of 14 values where it is likely."""

    def start(self) -> np.ndarray:
        """First value of each window: (N,) int32 in 0..242"""

    def inside(self) -> np.ndarray:
        """Frequencies of below, the 14 values, above: (N, 16) float32"""

    def outside(self, rows: np.ndarray, above: np.ndarray) -> Halves:
        """The distributions ``rows`` (n,) given that the byte lies above (n,) bool, or below, their windows."""


WINDOW = SYMBOLS - 2


def halves_codec(distribution: Halves) -> Codec:
    """Codes arrays (N,) int32 in 0..255 as high and low halves: 2 x 15 values of the cdf instead of 255.

    Here push undoes pop as well, whatever bits are popped, as bits-back needs of posteriors.
    """

    def push(stack: Stack, x: np.ndarray) -> None:
        high, low = np.divmod(x, SYMBOLS)
        stack.push(low, distribution.fine(high))
        stack.push(high, distribution.coarse())

    def pop(stack: Stack) -> np.ndarray:
        high = stack.pop(distribution.coarse())
        x: np.ndarray = high * SYMBOLS + stack.pop(distribution.fine(high))
        return x

    return Codec(push, pop)


def window_codec(distribution: Windows) -> Codec:
    """Codes arrays (N,) int32 in 0..255: one symbol says which value of the window, or below, or above it.

    Half the work of ``halves_codec``, which codes only those that miss the window. For data: pop undoes push, but push
    does not undo pop, since bits that were never pushed may say of a byte that it is outside, and then a value inside.
    """

    def push(stack: Stack, x: np.ndarray) -> None:
        place = np.clip(x - distribution.start() + 1, 0, WINDOW + 1)
        rows, missed = misses(place)
        missed.push(stack, x[rows])
        stack.push(place, distribution.inside())

    def pop(stack: Stack) -> np.ndarray:
        place = stack.pop(distribution.inside())
        x: np.ndarray = distribution.start() + place - 1
        rows, missed = misses(place)
        x[rows] = missed.pop(stack)
        return x

    def misses(place: np.ndarray) -> tuple[np.ndarray, Codec]:
        rows = np.flatnonzero((place == 0) | (place == WINDOW + 1))
        return rows, halves_codec(distribution.outside(rows, place[rows] > 0))

    return Codec(push, pop)


def chain(links: list[Callable[[list[np.ndarray]], Codec]], sizes: list[int]) -> Codec:
    """Codes parts of an array (N,) one after the other, each under a codec that may depend on the parts before it."""

    def push(stack: Stack, x: np.ndarray) -> None:
        parts = np.split(x, np.cumsum(sizes)[:-1])
        for n in reversed(range(len(links))):
            links[n](parts[:n]).push(stack, parts[n])

    def pop(stack: Stack) -> np.ndarray:
        parts: list[np.ndarray] = []
        for link in links:
            parts.append(link(parts).pop(stack))
        return np.concatenate(parts)

    return Codec(push, pop)

"""Codecs: pairs of functions with one law, ``pop(push(stack, x))`` gives back stack and x.

After craystack (arXiv 1901.04866): what is coded under what is decided by composing pairs, never by writing an encoder
and a decoder that must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from vdvae_codec.entropy.ans import SYMBOLS, Stack
from vdvae_codec.errors import FormatError


class Codec(NamedTuple):
    """``push(stack, x)`` puts an integer array (N,) on the stack and returns what each integer costs, float32 (N,) in
    bits; ``pop(stack)`` takes the array off again."""

    push: Callable[[Stack, np.ndarray], np.ndarray]
    pop: Callable[[Stack], np.ndarray]


class Nibbles(Protocol):
    """Distributions of N bytes as frequencies of their high nibbles, and of their low nibbles given the high ones."""

    def coarse(self) -> np.ndarray:
        """(N, 16) float32"""

    def fine(self, high: np.ndarray) -> np.ndarray:
        """(N, 16) float32, given the high nibbles (N,)"""


class Supports(Protocol):
    """Distributions of N bytes, each with a support of 14 values where it is likely."""

    def start(self) -> np.ndarray:
        """First value of each support: (N,) int32 in 0..242"""

    def within(self) -> np.ndarray:
        """Frequencies of below, the 14 values, above: (N, 16) float32"""

    def beyond(self, rows: np.ndarray, above: np.ndarray) -> Nibbles:
        """The distributions ``rows`` (n,) given that the byte lies above (n,) bool, or below, their supports."""


SUPPORT = SYMBOLS - 2


class Bytes(NamedTuple):
    """One colour of some pixels: N distributions, the bytes x (N,) int32, and the part that each belongs to (N,)."""

    distribution: Supports
    x: np.ndarray
    part: np.ndarray


def nibbles_codec(distribution: Nibbles) -> Codec:
    """Codes arrays (N,) int32 in 0..255 as high and low nibbles: 2 x 15 values of the cdf instead of 255.

    Here push undoes pop as well, whatever bits are popped, as bits-back needs of posteriors.
    """

    def push(stack: Stack, x: np.ndarray) -> np.ndarray:
        high, low = np.divmod(x, SYMBOLS)
        bits = stack.push(low, distribution.fine(high))
        bits += stack.push(high, distribution.coarse())
        return bits

    def pop(stack: Stack) -> np.ndarray:
        high = stack.pop(distribution.coarse())
        x: np.ndarray = high * SYMBOLS + stack.pop(distribution.fine(high))
        return x

    return Codec(push, pop)


def support_codec(distribution: Supports) -> Codec:
    """Codes arrays (N,) int32 in 0..255: one symbol says which value of the support, or below, or above it.

    Half the work of ``nibbles_codec``, which codes only those that miss the support. For data: pop undoes push, and
    raises FormatError for bits that were never pushed where these say of a byte that it lies beyond, and then a value
    of the support. That is what a stack that has run dry soon says.
    """

    def push(stack: Stack, x: np.ndarray) -> np.ndarray:
        place = places(x, distribution.start())
        rows, missed = misses(place)
        extra_bits = missed.push(stack, x[rows])
        bits = stack.push(place, distribution.within())
        bits[rows] += extra_bits
        return bits

    def pop(stack: Stack) -> np.ndarray:
        place = stack.pop(distribution.within())
        start = distribution.start()
        x: np.ndarray = start + place - 1
        rows, missed = misses(place)
        x[rows] = missed.pop(stack)
        if (places(x[rows], start[rows]) != place[rows]).any():
            raise FormatError("payload: damaged, or it ends before the last pixel")
        return x

    def misses(place: np.ndarray) -> tuple[np.ndarray, Codec]:
        rows = np.flatnonzero((place == 0) | (place == SUPPORT + 1))
        return rows, nibbles_codec(distribution.beyond(rows, place[rows] > 0))

    return Codec(push, pop)


def places(x: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Where bytes (N,) lie in supports that begin at ``start`` (N,): 0 below, 1 to 14 within, 15 above."""
    found: np.ndarray = np.clip(x - start + 1, 0, SUPPORT + 1)
    return found


def push_parts(stack: Stack, colours: Sequence[Bytes]) -> list[np.ndarray]:
    """Pushes what ``pop`` of ``support_codec`` gives back part by part, and in each part colour after colour.

    One array of symbols and frequencies instead of many small ones. Returns what each byte costs, float32 (N,) in
    bits, of each colour.
    """
    rows = [support_rows(colour.distribution, colour.x) for colour in colours]
    stages = 3 * len(rows)
    key = np.concatenate([
        colour.part[owner] * stages + 3 * n + stage
        for n, (colour, (_, _, owner, stage)) in enumerate(zip(colours, rows))
    ])
    order = np.argsort(key, kind="stable")
    symbols, frequencies = (np.concatenate([row[n] for row in rows]) for n in range(2))
    costs = np.empty(len(key), np.float32)
    costs[order] = stack.push(symbols[order], frequencies[order])
    ends = np.cumsum([len(row[0]) for row in rows])[:-1]
    return [
        np.bincount(owner, cost, len(colour.x)).astype(np.float32)
        for colour, (_, _, owner, _), cost in zip(colours, rows, np.split(costs, ends))
    ]


def support_rows(distribution: Supports, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The symbols by which ``support_codec`` codes x (N,): symbols (M,), their frequencies (M, 16), which of x they
    belong to, and the stage at which they are popped: 0 places, 1 and 2 the nibbles of misses."""
    place = places(x, distribution.start())
    missed = np.flatnonzero((place == 0) | (place == SUPPORT + 1))
    beyond = distribution.beyond(missed, place[missed] > 0)
    high, low = np.divmod(x[missed], SYMBOLS)
    stages = [(place, distribution.within()), (high, beyond.coarse()), (low, beyond.fine(high))]
    symbols, frequencies = (np.concatenate([stage[n] for stage in stages]) for n in range(2))
    owner = np.concatenate([np.arange(len(x)), missed, missed])
    return symbols, frequencies, owner, np.repeat(np.arange(3), [len(x), len(missed), len(missed)])


def chain(links: list[Callable[[list[np.ndarray]], Codec]], sizes: list[int]) -> Codec:
    """Codes parts of an array (N,) one after the other, each under a codec that may depend on the parts before it."""

    def push(stack: Stack, x: np.ndarray) -> np.ndarray:
        parts = np.split(x, np.cumsum(sizes)[:-1])
        bits = [links[n](parts[:n]).push(stack, parts[n]) for n in reversed(range(len(links)))]
        return np.concatenate(bits[::-1])

    def pop(stack: Stack) -> np.ndarray:
        parts: list[np.ndarray] = []
        for link in links:
            parts.append(link(parts).pop(stack))
        return np.concatenate(parts)

    return Codec(push, pop)

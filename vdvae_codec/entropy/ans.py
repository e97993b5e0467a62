"""The entropy coder's stack of bits: the only module that knows constriction.

The stack's words are part of the file format: constriction's ``AnsCoder`` with 32-bit words and 24-bit frequencies
(BB-ANS, arXiv 1901.04866; asymmetric numeral systems, arXiv 1311.2540).
"""

from __future__ import annotations

import constriction  # type: ignore[import-untyped]
import numpy as np

from vdvae_codec.errors import FormatError

SYMBOLS = 16  # size of the alphabet: a nibble
FREE = 2**16  # symbols that a file's stack gives once it is empty: the lowest that were pushed first, and cost nothing


def symbol_bits(frequencies: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    """-log2 of the probabilities of symbols (N,) under rows of frequencies (N, 16): float32 (N,)."""
    chosen = np.take_along_axis(frequencies, symbols[:, None], 1)[:, 0]
    bits: np.ndarray = np.log2(frequencies.sum(1) / chosen)
    return bits


class Stack:
    """Last in, first out. ``pop`` under the frequencies that ``push`` used gives the symbols back.

    Popping from an empty stack returns the lowest symbols: that is still undone by pushing them, so nothing is lost,
    but such symbols are no sample of the distribution: look at ``bits`` after popping. ``free`` is how many an empty
    stack gives before ``pop`` raises FormatError; None: any number.
    """

    def __init__(self, words: np.ndarray | None = None, free: int | None = None):
        self._free = free
        if words is None or not len(words):
            self._coder = constriction.stream.stack.AnsCoder()
        else:
            if words[-1] == 0:
                raise FormatError("payload: the last word of an entropy coded payload cannot be zero")
            self._coder = constriction.stream.stack.AnsCoder(np.asarray(words, np.uint32))
        self._model = constriction.stream.model.Categorical(perfect=False)

    def push(self, symbols: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
        """Pushes symbols (N,) in 0..15 in reverse order, each under its row of ``frequencies`` (N, 16) float32.

        Frequencies are positive and need not be normalised; the smallest must exceed 2^-23 of their sum: of smaller
        ones constriction 0.5 may find a probability of zero, and panics. Returns what each symbol costs: float32 (N,)
        in bits. Raises MemoryError where the stack cannot grow.
        """
        if len(symbols):
            np.empty(2 * (self.bits // 32 + len(symbols)), np.uint32)  # constriction would end the process instead
            self._coder.encode_reverse(np.ascontiguousarray(symbols, np.int32), self._model, frequencies)
        return symbol_bits(frequencies, symbols)

    def pop(self, frequencies: np.ndarray) -> np.ndarray:
        """Pops one symbol (int32) for each row of ``frequencies`` (N, 16)."""
        if not len(frequencies):
            return np.zeros(0, np.int32)
        if self._free is not None and self.empty:
            self._free -= len(frequencies)
            if self._free < 0:  # the file claims more pixels than it has words for
                raise FormatError("payload: it ends before the last pixel")
        symbols: np.ndarray = self._coder.decode(self._model, frequencies)
        return symbols

    @property
    def bits(self) -> int:
        """Bits on the stack."""
        return int(self._coder.num_valid_bits())

    @property
    def empty(self) -> bool:
        return bool(self._coder.is_empty())

    def words(self) -> np.ndarray:
        """The content as uint32 words, from which ``Stack(words)`` is made again."""
        words: np.ndarray = self._coder.get_compressed()
        return words

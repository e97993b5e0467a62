"""Bits-back coding of one group under a hierarchical latent variable model (BB-ANS, arXiv 1901.04866, section 2.4).

Sender and receiver see the same events in the same order, that of the model's walk from the top down. The sender pops
every latent under its posterior, then pushes everything under the priors, last first. The receiver pops everything
under the priors, then pushes the latents back under their posteriors, last first, and holds the sender's stack again.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vdvae_codec.entropy.ans import Stack
from vdvae_codec.entropy.codec import Codec


class Sender:
    """Pushes one group; ``direct`` groups borrow nothing: their latents are the points given, and cost their price."""

    def __init__(self, stack: Stack, direct: bool):
        self.stack, self.direct = stack, direct
        self._trace: list[tuple[Codec, np.ndarray]] = []
        self._borrowed: list[tuple[Codec, np.ndarray]] = []

    def latent(self, prior: Codec, posterior: Codec, point: Callable[[], np.ndarray]) -> np.ndarray:
        """Chooses a latent: popped under the posterior, or ``point()`` where nothing is borrowed."""
        if self.direct:
            z = point()
        else:
            z = posterior.pop(self.stack)
            self._borrowed.append((posterior, z))
        self._trace.append((prior, z))
        return z

    def observed(self, codec: Codec, x: np.ndarray) -> None:
        self._trace.append((codec, x))

    @property
    def borrows(self) -> bool:
        """Whether any latent was popped from the stack."""
        return bool(self._borrowed)

    def give_back(self) -> None:
        """Undoes the group: the stack is as it was before, even if it had run dry."""
        self._trace.clear()
        while self._borrowed:
            posterior, z = self._borrowed.pop()
            posterior.push(self.stack, z)

    def finish(self) -> list[np.ndarray]:
        """Pushes the whole group; returns what each latent and each observation cost, in bits, in their order."""
        self._borrowed.clear()
        bits = []
        while self._trace:
            codec, value = self._trace.pop()
            bits.append(codec.push(self.stack, value))
        return bits[::-1]


class Receiver:
    """Pops one group."""

    def __init__(self, stack: Stack, direct: bool):
        self.stack, self.direct = stack, direct
        self._borrowed: list[tuple[Callable[[], Codec], np.ndarray]] = []

    def latent(self, prior: Codec, posterior: Callable[[], Codec]) -> np.ndarray:
        z = prior.pop(self.stack)
        if not self.direct:
            self._borrowed.append((posterior, z))
        return z

    def observed(self, codec: Codec) -> np.ndarray:
        return codec.pop(self.stack)

    def finish(self) -> None:
        """Gives the borrowed bits back; by now the posteriors can be computed."""
        while self._borrowed:
            posterior, z = self._borrowed.pop()
            posterior().push(self.stack, z)

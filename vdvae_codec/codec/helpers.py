"""Who does the work of groups that stand alone: this process, or others with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

A = TypeVar("A")
B = TypeVar("B")


class Helpers(Protocol):
    """Does the same work on several tasks. Work, tasks and results can be pickled, and so can what the work raises."""

    def map(self, work: Callable[[A], B], tasks: Sequence[A]) -> Iterator[B]:
        """The results in the order of the tasks."""


class Alone:
    """Without help."""

    def map(self, work: Callable[[A], B], tasks: Sequence[A]) -> Iterator[B]:
        return map(work, tasks)


ALONE = Alone()

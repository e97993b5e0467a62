"""Who does the work of groups that stand alone: this process, or others with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

A = TypeVar("A")
B = TypeVar("B")
T_co = TypeVar("T_co", covariant=True)


class Tasks(Protocol[T_co]):
    """A list, or what makes each item when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, n: int, /) -> T_co: ...


class Helpers(Protocol):
    """Does the same work on several tasks. Work, tasks and results can be pickled, and so can what the work raises."""

    def map(self, work: Callable[[A], B], tasks: Tasks[A]) -> Iterator[B]:
        """The results in the order of the tasks."""


class Alone:
    """Without help."""

    def map(self, work: Callable[[A], B], tasks: Tasks[A]) -> Iterator[B]:
        return (work(tasks[n]) for n in range(len(tasks)))


ALONE = Alone()

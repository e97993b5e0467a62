"""Processes that share the work of one large image: torch's own threads are of little use in small steps."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from vdvae_codec.codec.helpers import Tasks

from .process import end_with

A = TypeVar("A")
B = TypeVar("B")
MOST = 16  # processes, each of which takes memory of its own
LARGE = 2**15  # bytes of inputs for which helpers get ready at once: fewer are hardly two groups


@contextlib.contextmanager
def helpers(jobs: int, inputs: Sequence[Path], model: str) -> Iterator[Forked]:
    """One process for each core but this one's, or none beside ``--jobs``; to be called before torch is imported.

    If the inputs are large, or folders, they load the model that is probably needed while this process does.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    own = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # OpenMP takes a list of numbers, one a level
    wanted = min(int(own) if own.isdecimal() else cores, MOST) if jobs == 1 else 1
    possible = "fork" in multiprocessing.get_all_start_methods() and "torch" not in sys.modules
    large = any(path.is_dir() for path in inputs) or sum(size_of(path) for path in inputs) >= LARGE
    forked = Forked(wanted - 1 if possible else 0, model if large else None)
    try:
        yield forked
    finally:
        forked.close()


def size_of(path: Path) -> int:
    """Of a file; 0 if there is none."""
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


class Forked:
    """Helpers (``codec.helpers``) that are forked now, and load ``model`` or wait for their first task."""

    def __init__(self, count: int, model: str | None = None):
        fork = multiprocessing.get_context("fork")
        self._connections: list[Connection] = []
        self._threads: list[threading.Thread] = []
        self._processes = []
        for _ in range(count):
            ours, theirs = fork.Pipe()
            own = (theirs, [*self._connections, ours], model, os.getpid())
            process = fork.Process(target=serve, args=own, daemon=True)
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    def close(self) -> None:
        """Ends the processes, whatever they are doing."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()

    def map(self, work: Callable[[A], B], tasks: Tasks[A]) -> Iterator[B]:
        """The results in the order of the tasks, of which this process does its share."""
        if len(tasks) < 2 or not self._processes:
            yield from (work(tasks[n]) for n in range(len(tasks)))
            return
        for thread in self._threads:  # of work that was given up, whose results are still to come
            thread.join()
        shared = Shared(work, tasks)
        self._threads = [threading.Thread(target=shared.hand_out, args=(c,), daemon=True) for c in self._connections]
        for thread in self._threads:
            thread.start()
        torch = sys.modules["torch"]
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield from shared.results()
        finally:
            shared.stop()
            torch.set_num_threads(before)


class Shared:
    """Tasks that several threads take from one list, and their results."""

    def __init__(self, work: Callable[[Any], Any], tasks: Tasks[Any]):
        self.work, self.tasks, self.count = work, tasks, len(tasks)
        self.left = deque(range(self.count))
        self.done: dict[int, tuple[bool, Any]] = {}
        self.changed = threading.Condition()

    def take(self) -> int | None:
        with self.changed:
            return self.left.popleft() if self.left else None

    def put(self, n: int, result: tuple[bool, Any]) -> None:
        with self.changed:
            self.done[n] = result
            self.changed.notify_all()

    def stop(self) -> None:
        with self.changed:
            self.left.clear()

    def hand_out(self, connection: Connection) -> None:
        """Gives tasks to one process; what could not be given or got, as of one that has died, is done by another."""
        while (n := self.take()) is not None:
            try:
                connection.send((self.work, self.tasks[n]))
                self.put(n, connection.recv())
            except Exception:  # such as too little memory: the connection may be in the middle of a message
                connection.close()
                with self.changed:
                    self.left.appendleft(n)
                    self.changed.notify_all()
                return

    def results(self) -> Iterator[Any]:
        """In order; this thread works while the next one is not there."""
        for n in range(self.count):
            while n not in self.done:
                taken = self.take()
                if taken is None:
                    with self.changed:
                        self.changed.wait_for(lambda n=n: n in self.done or self.left)  # type: ignore[misc]
                else:
                    self.put(taken, attempt(self.work, self.tasks[taken]))
            fine, result = self.done.pop(n)
            if not fine:
                raise result
            yield result


def attempt(work: Callable[[Any], Any], task: Any) -> tuple[bool, Any]:
    """Whether the work could be done, and its result or what was raised."""
    try:
        return True, work(task)
    except Exception as error:
        return False, error


def serve(connection: Connection, others: list[Connection], model: str | None, owner: int) -> None:
    """What a helper does until the process that it helps, of the id ``owner``, ends, or ends it."""
    for other in others:  # else this process would keep them open after their owner's end
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the owner's affair
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with(owner)
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    if model is not None:
        with contextlib.suppress(Exception):  # whatever is wrong with it, the owner says it
            from vdvae_codec.codec.store import load_released

            load_released(model, "cpu")
    with contextlib.suppress(EOFError, OSError):
        while True:
            work, task = connection.recv()
            connection.send(attempt(work, task))

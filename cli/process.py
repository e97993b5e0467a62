"""What is set up for a whole process before a command runs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from types import FrameType

SPINS = 5000  # of a waiting thread before it sleeps: as fast as with more, and not stalled beside busy programs
WATCH_SECONDS = 0.5  # between two looks whether the parent is there


def tune_process() -> None:
    """Speeds up what torch will do; to be called before it is imported. Changes no result.

    GNU OpenMP's threads wait actively for each other, but only for some microseconds, or a second busy program would
    stall them many times over (docs/benchmarks.md): a policy of the user's own stays. glibc keeps the memory of big
    tensors instead of having it mapped anew each time.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    with contextlib.suppress(OSError, AttributeError, TypeError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, size in ((-3, 32 << 20), (-1, 512 << 20)):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            mallopt(parameter, size)


@contextlib.contextmanager
def unwound_by_sigterm() -> Iterator[None]:
    """Context in which SIGTERM and SIGHUP end the process as an exception does: unfinished outputs are removed."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    old = {number: signal.signal(number, leave) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, action in old.items():
            signal.signal(number, action)


def end_with(parent: int) -> None:
    """Has this process, a forked child, end as by SIGTERM when its parent, of this id, has ended, however that was."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def open_streams() -> None:
    """Fills the places of closed standard streams, whose numbers files would get, and gives stderr one to write to."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    if sys.stderr is None or sys.stderr.closed:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


@contextlib.contextmanager
def warnings_as(notice: Callable[[str], None]) -> Iterator[None]:
    """Context in which the warnings of libraries, such as Pillow's of odd EXIF, are one line each that is no code."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *place: notice(" ".join(str(message).split()))
        yield

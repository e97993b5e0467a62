"""What is set up for a whole process before a command runs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

SPINS = 5000  # of a waiting thread before it sleeps: as fast as with more, and not stalled beside busy programs


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

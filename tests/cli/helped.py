"""Work that helpers do in tests."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time


def slow_process_id(task: int) -> int:
    time.sleep(0.05)
    return os.getpid()


def endless(task: int) -> int:
    os.write(1, b"begun\n")  # at once, whatever the buffering
    time.sleep(1000)
    return task


def bad_at_five(task: int) -> int:
    if task == 5:
        raise ValueError("five is bad")
    return task


def deadly_for_helpers(task: int) -> int:
    time.sleep(0.05)
    if multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def loaded_modules(task: None) -> set[str]:
    return set(sys.modules)

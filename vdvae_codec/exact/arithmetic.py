"""The settings of torch that exactness depends on, set while we compute and given back afterwards.

Files must not depend on what the program around us has chosen: autocast and reduced precision would round sums, and
another default dtype or device would make other tensors.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")
FULL = "ieee"  # fp32 products are fp32
INHERIT = "none"  # as the backend has it


def eager(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which a caller's ``torch.compile`` leaves as it is."""

    @functools.wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_dynamo_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)  # type: ignore[no-any-return, no-untyped-call]
        return function(*args, **kwargs)

    return inside


@contextmanager
def plain() -> Iterator[None]:
    """Within: no autocast, no gradients, float32, full precision of products, no default device but the CPU."""
    with SHARED.held(), ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


class Shared:
    """Settings of the whole process: the first thread that needs them sets them, the last one gives them back."""

    def __init__(self) -> None:
        self._lock, self._holders, self._undo = threading.Lock(), 0, ExitStack()
        self._forked = False

    def after_fork(self) -> None:
        """In the child: whoever held the settings is not there."""
        self.__init__()  # type: ignore[misc]
        self._forked = True

    @contextmanager
    def held(self) -> Iterator[None]:
        with self._lock:
            if not self._holders:
                set_shared(self._undo)
                if self._forked:  # the threads of the parent's pool are not there, and would be waited for
                    self._undo.callback(torch.set_num_threads, torch.get_num_threads())
                    torch.set_num_threads(1)
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if not self._holders:
                    self._undo.close()


SHARED = Shared()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=SHARED.after_fork)


def set_shared(undo: ExitStack) -> None:
    """Sets them, and puts on ``undo`` what gives them back."""
    if torch.get_default_dtype() != torch.float32:
        undo.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
    if torch.are_deterministic_algorithms_enabled():
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        undo.callback(torch.use_deterministic_algorithms, True, warn_only=warn_only)
        torch.use_deterministic_algorithms(False)
    for owner, backend in precisions():
        before = owner.fp32_precision
        if before != FULL:
            undo.callback(setattr, owner, "fp32_precision", INHERIT if before == backend.fp32_precision else before)
            owner.fp32_precision = FULL


def precisions() -> list[tuple[Any, Any]]:
    """What holds the precision of fp32 convolutions and matrix products, on CPUs and on CUDA, and its backend."""
    backends: Any = torch.backends
    cpu, cuda = backends.mkldnn, backends.cudnn
    return [(cpu.conv, cpu), (cpu.matmul, cpu), (cuda.conv, cuda), (backends.cuda.matmul, cuda)]

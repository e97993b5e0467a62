"""The processes of one training: one, or as many as torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(hours=6)  # the others wait while the first decodes the images


@dataclass(frozen=True)
class Processes:
    """This process's number among all; sums and barriers cost nothing when it is alone."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over processes, the same bits on each; in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Returns when every process has called it."""
        if self.world > 1:
            dist.barrier()


ALONE = Processes()


@contextmanager
def processes(device: torch.device) -> Iterator[tuple[Processes, torch.device]]:
    """Joins the processes that torchrun started, by NCCL on CUDA and gloo on CPUs; yields this one and its device."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE, device
        return
    own: AbstractContextManager[None] = nullcontext()
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        own = torch.cuda.device(device)
    with own:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        try:
            yield Processes(dist.get_rank(), dist.get_world_size()), device
        finally:
            dist.destroy_process_group()

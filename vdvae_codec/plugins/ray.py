"""The jobs of ``vdvae_codec.bulk`` on a Ray cluster.

    from vdvae_codec.bulk.jobs import Compress
    from vdvae_codec.bulk.run import run
    from vdvae_codec.plugins.ray import Cluster

    run(Compress(), ["s3://pictures/shards"], "s3://pictures/archives", engine=Cluster())
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from vdvae_codec.bulk.run import attempt

A = TypeVar("A")
B = TypeVar("B")
RETRIES = 5  # of a task whose process or node was lost
AHEAD = 2  # tasks for each that the cluster can work on: what waits is what an autoscaler sees


class Cluster:
    """An ``Engine``: tasks of the cluster at RAY_ADDRESS or on this machine, or of one that this process starts here.

    Each task takes ``num_cpus`` cores, all of which torch may use, and ``num_gpus``; ``workers`` is the most at a time,
    by default what the cluster has room for. A worker process keeps its model from task to task. The task of a process
    or node that is lost is done again elsewhere.
    """

    def __init__(self, workers: int | None = None, num_cpus: float = 1, num_gpus: float = 0):
        self._workers, self._cpus, self._gpus = workers, num_cpus, num_gpus
        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init(log_to_driver=False, logging_level="error")

    def map(self, work: Callable[[A], B], tasks: Iterable[A]) -> Iterator[tuple[A, B | Exception]]:
        resources = {"num_cpus": self._cpus, "num_gpus": self._gpus}  # one kind of task: processes serve all of them
        remote = ray.remote(**resources, max_retries=RETRIES, max_calls=0)(on_worker)
        threads, left, running = max(1, int(self._cpus)), iter(tasks), dict[Any, A]()
        while True:
            for task in islice(left, max(0, self._most() - len(running))):
                running[remote.remote(work, task, threads)] = task
            if not running:
                return
            (ready, *_), _ = ray.wait(list(running), num_returns=1)
            try:
                result = ray.get(ready)
            except RayError as error:
                result = error
            yield running.pop(ready), result

    def _most(self) -> int:
        """Tasks that are handed out at a time."""
        if self._workers is not None:
            return self._workers
        has = ray.cluster_resources()
        room = has.get("CPU", 1) // max(self._cpus, 0.01)
        if self._gpus:
            room = min(room, has.get("GPU", 0) // self._gpus)
        return max(1, AHEAD * int(room))


def on_worker(work: Callable[[A], B], task: A, threads: int) -> B | Exception:
    import torch

    torch.set_num_threads(threads)
    return attempt(work, task)

"""All pieces of the inputs, by a loop or by whoever else does the same; what an earlier run did is not done again."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from tqdm import tqdm

from vdvae_codec.bulk.inputs import Limit, Source
from vdvae_codec.bulk.jobs import Done, Job, do
from vdvae_codec.bulk.places import joined, read, write_from
from vdvae_codec.errors import VdvaeCodecError

A = TypeVar("A")
B = TypeVar("B")
MANIFEST = "manifest.jsonl"
PART = Limit(10_000, 2**26)


class Engine(Protocol):
    """Does the same work on many tasks, all of which can be pickled."""

    def map(self, work: Callable[[A], B], tasks: Iterable[A]) -> Iterator[tuple[A, B | Exception]]:
        """Tasks and their results, in any order; or what the work raised of VdvaeCodecError and OSError, or what kept
        it from being done. Takes no more of the tasks than it works on."""


class Loop:
    """Does one after the other in this process."""

    def map(self, work: Callable[[A], B], tasks: Iterable[A]) -> Iterator[tuple[A, B | Exception]]:
        return ((task, attempt(work, task)) for task in tasks)


def attempt(work: Callable[[A], B], task: A) -> B | Exception:
    """The result, or the error that a user's data or storage can cause."""
    try:
        return work(task)
    except (VdvaeCodecError, OSError, MemoryError) as error:
        return error


class Task(NamedTuple):
    """A piece, and the name of what it becomes."""

    piece: Source
    name: str


@dataclass
class Summary:
    """What a run did, in sums over its parts."""

    parts: int = 0
    kept: int = 0  # of them, those of an earlier run
    images: int = 0
    input_bytes: int = 0
    output_bytes: int = 0
    errors: list[str] = field(default_factory=list)  # a line for each image, part or input that failed


def run(
    job: Job, inputs: Iterable[str | Path], output: str | Path, *, part: Limit = PART, engine: Engine | None = None,
    failed: Callable[[str], None] = lambda line: None,
) -> Summary:
    """Does a job on all inputs; ``output`` is a folder's path or URL.

    NAME of a folder, shard or archive becomes NAME-00000, NAME-00001, ... of at most ``part`` each: a file with the
    job's suffix, if it makes any, and beside it NAME-00000.jsonl, which says that it is complete. ``manifest.jsonl``
    holds all their rows. The bytes are the same whatever the ``engine``. ``failed`` gets a line for each image, part or
    input that cannot be had; the others are done. Run again, it makes only the parts that are not there, not whole, or
    made of something else. Raises VdvaeCodecError and OSError before any work.
    """
    engine, inputs = engine or Loop(), list(inputs)
    if str(output).rstrip("/") in (str(given).rstrip("/") for given in inputs):
        raise VdvaeCodecError(f"{output}: is an input, and cannot be the output too")
    sources, summary, names = job.sources(inputs), Summary(), list[str]()

    def fail(line: str) -> None:
        summary.errors.append(line)
        failed(line)

    work = functools.partial(work_on, job=job, identity=job.identity(), output=str(output))
    tasks = pieces(sources, part, engine, fail)
    size = sum(source.size for source in sources)
    with tqdm(total=size, unit="B", unit_scale=True, disable=None) as bar:
        for task, done in engine.map(work, tasks):
            if isinstance(done, Exception):
                fail(f"{task.name}: {reason(done)}")
                continue
            for line in done.errors:
                fail(f"{done.name}: {line}")
            names.append(done.name)
            add(summary, done)
            bar.update(done.input_bytes)
            bar.set_postfix(images=summary.images, refresh=False)
    if names:
        gather(str(output), sorted(names))
    return summary


def work_on(task: Task, job: Job, identity: str, output: str) -> Done:
    return do(task.piece, task.name, job, identity, output)


def cut(source: Source, part: Limit) -> list[Source]:
    return list(source.cut(part))


def pieces(sources: list[Source], part: Limit, engine: Engine, fail: Callable[[str], None]) -> Iterator[Task]:
    """What there is to do; inputs that cannot be read ``fail``."""
    for source, found in engine.map(functools.partial(cut, part=part), sources):
        if isinstance(found, Exception):
            fail(f"{source.name}: {reason(found)}")
            continue
        yield from (Task(piece, f"{source.name}-{n:05d}") for n, piece in enumerate(found))


def add(summary: Summary, done: Done) -> None:
    summary.parts += 1
    summary.kept += done.kept
    summary.images += done.images
    summary.input_bytes += done.input_bytes
    summary.output_bytes += done.output_bytes


def reason(error: Exception) -> str:
    """One line."""
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def gather(output: str, names: list[str]) -> None:
    """Writes the rows of all parts to one file."""
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / MANIFEST
        with whole.open("wb") as file:
            for name in names:
                file.write(read(joined(output, f"{name}.jsonl")).partition(b"\n")[2])
        write_from(joined(output, MANIFEST), whole)

"""What the commands share: reading and writing files safely, and errors of one line."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import click

from vdvae_codec.errors import VdvaeCodecError

STREAM = Path("-")

device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
    help="Where the networks run. Files are the same either way.",
)

threads_option = click.option(
    "--threads", type=click.IntRange(1), help="CPU threads of a process; by default all cores.",
)

jobs_option = click.option(
    "--jobs", type=click.IntRange(1), default=1, show_default=True,
    help="Inputs that are worked on at once, in processes that share the cores; each takes its own memory.",
)


def use_threads(threads: int | None) -> None:
    """Limits torch's threads; None leaves them as they are."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def tune_process() -> None:
    """Speeds up what torch will do; to be called before it is imported. Changes no result.

    OpenMP threads stop spinning sooner, or a second busy program would stall them many times over; and glibc keeps the
    memory of big tensors instead of having it mapped anew each time.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, size in ((-3, 32 << 20), (-1, 512 << 20)):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            mallopt(parameter, size)


@contextlib.contextmanager
def one_line_errors(path: Path | None = None) -> Iterator[None]:
    """Turns the package's errors and the system's into click's: one line on stderr, exit status 1."""
    try:
        yield
    except (VdvaeCodecError, OSError, MemoryError) as error:
        text = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.strerror else str(error)
        text = text or type(error).__name__
        if path is not None and str(path) not in text:
            text = f"{path}: {text}"
        raise click.ClickException(text) from error


def collected() -> tuple[list[str], Callable[[str], None]]:
    """A list of errors, and a function that prints one more of them and adds it."""
    failed: list[str] = []

    def fail(line: str) -> None:
        failed.append(line)
        click.echo(f"Error: {line}", err=True)

    return failed, fail


def read_input(path: Path) -> bytes:
    """The bytes of a file, or of stdin for ``-``."""
    return sys.stdin.buffer.read() if path == STREAM else path.read_bytes()


def output_path(source: Path, out: Path | None, suffix: str, many: bool) -> Path:
    """Where the result for ``source`` goes: beside it, into the folder ``out``, or to the file ``out``."""
    if out is None:
        return STREAM if source == STREAM else source.with_suffix(suffix)
    if out.is_dir():
        return out / ("stdin" + suffix if source == STREAM else source.with_suffix(suffix).name)
    if many:
        raise click.UsageError(f"{out}: with several inputs, -o must be an existing folder")
    return out


def refuse_existing(path: Path, force: bool) -> None:
    if path != STREAM and path.exists() and not force:
        raise click.ClickException(f"{path}: exists already; --force overwrites it")


def write_output(path: Path, data: bytes, force: bool) -> None:
    """Writes a whole file, or to stdout."""
    if path == STREAM:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    with output_file(path, force) as file:
        file.write(data)


@contextlib.contextmanager
def output_file(path: Path, force: bool) -> Iterator[BinaryIO]:
    """A file under a temporary name that is renamed at the end: it appears complete or not at all."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        refuse_existing(path, force)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def is_set(path: Path) -> bool:
    """Whether a file is an archive of images."""
    from vdvae_codec.archive import is_archive

    with path.open("rb") as file:
        return is_archive(file.read(12))


def each(inputs: tuple[Path, ...], work: Callable[[Path], None], jobs: int = 1) -> None:
    """Runs ``work`` on every input; errors are printed and the rest goes on; exits with 1 at the end if any failed.

    ``jobs`` inputs at once, in processes that are forked, and so before torch is imported.
    """
    jobs = min(jobs, len(inputs))
    if jobs == 1 or STREAM in inputs or "fork" not in multiprocessing.get_all_start_methods():
        failed = bool(failures(inputs, work))
    else:
        failed = in_processes(inputs, work, jobs)
    if failed:
        raise click.exceptions.Exit(1)


def failures(inputs: Iterable[Path], work: Callable[[Path], None]) -> int:
    """Runs ``work`` on every input and prints the errors; returns their number."""
    failed = 0
    for path in inputs:
        try:
            with one_line_errors(path):
                work(path)
        except click.UsageError:
            raise
        except click.ClickException as error:
            error.show()
            failed += 1
    return failed


def in_processes(inputs: tuple[Path, ...], work: Callable[[Path], None], jobs: int) -> bool:
    """Whether ``work`` failed on any of the inputs, of which each process takes the next one that none has taken."""
    fork = multiprocessing.get_context("fork")
    taken = fork.Value("l", 0)

    def next_inputs() -> Iterator[Path]:
        while True:
            with taken.get_lock():
                n, taken.value = taken.value, taken.value + 1
            if n >= len(inputs):
                return
            yield inputs[n]

    def job() -> None:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
        os.environ["TQDM_DISABLE"] = "1"  # bars of several processes would overwrite each other
        try:
            status = min(1, failures(next_inputs(), work))
        except click.UsageError as error:
            error.show()
            status = error.exit_code
        except KeyboardInterrupt:
            status = 1
        sys.exit(status)

    processes = [fork.Process(target=job) for _ in range(jobs)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join()
    except BaseException:
        for process in processes:  # a terminal's Ctrl-C has reached them already
            process.join(3)
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGINT)
                process.join()
        raise
    for killed in (-process.exitcode for process in processes if process.exitcode and process.exitcode < 0):
        click.echo(f"Error: a process was ended by signal {killed}; what it worked on was not written", err=True)
    if any(process.exitcode == click.UsageError.exit_code for process in processes):
        raise click.exceptions.Exit(click.UsageError.exit_code)
    return any(process.exitcode for process in processes)

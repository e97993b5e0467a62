"""What the commands share: reading and writing files safely, many inputs, and output that a terminal shows as it is."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

import click

from vdvae_codec.errors import VdvaeCodecError
from vdvae_codec.format.whole import replacing

from .helpers import size_of
from .process import end_with, warnings_as

if TYPE_CHECKING:
    from tqdm import tqdm

STREAM = Path("-")
OVER = "\r\x1b[K"  # what empties the line of a terminal
LACK_OF_MEMORY = (  # as libraries put it
    "DefaultCPUAllocator", "Cannot allocate memory", "out of memory", "bad_alloc", "failed to map segment",
    "can't start new thread", "could not create a primitive", "could not create a memory",
)
BAR_SECONDS = 0.2  # between two looks at what the processes of --jobs have done
HELP = getattr(click.exceptions, "NoArgsIsHelpError", ())  # whose text is a page of help


def say(line: str, err: bool = False) -> None:
    """Prints a line, to stderr if ``err``; on a terminal over the bar that may be there."""
    stream = sys.stderr if err else sys.stdout
    over = OVER if stream is not None and stream.isatty() else ""
    click.echo(over + shown(line), err=err)


def notice(line: str) -> None:
    """Prints what a person should know, to stderr."""
    say(f"notice: {line}", err=True)


def notice_of(path: Path) -> Callable[[str], None]:
    """Prints a notice of a file."""
    return lambda text: notice(f"{path}: {text}")


def shown(text: str) -> str:
    """A text whose every character a terminal prints: names from files are not to move the cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextlib.contextmanager
def one_line_errors(path: Path | None = None) -> Iterator[None]:
    """Turns the package's errors and the system's into click's: one line on stderr, exit status 1."""
    try:
        yield
    except (VdvaeCodecError, OSError, MemoryError, RuntimeError, ImportError) as error:
        text = str(error)
        if isinstance(error, OSError) and error.strerror:
            text = error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
        elif isinstance(error, MemoryError) or any(words in text for words in LACK_OF_MEMORY):
            text = "not enough memory"
        elif isinstance(error, (RuntimeError, ImportError)):
            raise
        text = text or type(error).__name__
        if path is not None and str(path) not in text:
            text = f"{path}: {text}"
        raise click.ClickException(text) from error


@contextlib.contextmanager
def escaped_errors() -> Iterator[None]:
    """Context in which click's errors, whose texts quote arguments and names of files, are as ``shown``."""
    try:
        yield
    except click.ClickException as error:
        text = error.format_message()
        if text == shown(text) or isinstance(error, HELP):
            raise
        if isinstance(error, click.UsageError):
            raise click.UsageError(shown(text), error.ctx) from error
        raise click.ClickException(shown(text)) from error


def collected() -> tuple[list[str], Callable[[str], None]]:
    """A list of errors, and a function that prints one more of them and adds it."""
    failed: list[str] = []

    def fail(line: str) -> None:
        failed.append(line)
        say(f"Error: {line}", err=True)

    return failed, fail


def read_input(path: Path) -> bytes:
    """The bytes of a file, or of stdin for ``-``."""
    if path != STREAM:
        return path.read_bytes()
    if sys.stdin is None:
        raise click.ClickException("stdin is closed")
    return sys.stdin.buffer.read()


def open_input(path: Path) -> BinaryIO:
    """A file to read from any place, or what stdin holds for ``-``."""
    return BytesIO(read_input(path)) if path == STREAM else path.open("rb")


def output_path(source: Path, out: Path | None, suffix: str, many: bool) -> Path:
    """Where the result for ``source`` goes: beside it, into the folder ``out``, or to the file ``out``.

    A folder's whole name is kept, such as ``photos-1.5``.
    """
    place = source.resolve() if source.is_dir() else source
    name = f"{place.name}{suffix}" if source.is_dir() else f"{source.stem}{suffix}"
    if out is None:
        return STREAM if source == STREAM else place.with_name(name)
    if out.is_dir():
        return out / ("stdin" + suffix if source == STREAM else name)
    if many:
        hint = "" if out == STREAM else f"; {out}{os.sep} makes it"
        raise click.UsageError(f"{out}: with several inputs, -o must be an existing folder{hint}")
    return out


def below(folder: Path, wanted: Callable[[Path], bool], fail: Callable[[str], None]) -> tuple[list[Path], list[str]]:
    """The files below a folder that are ``wanted``, and the names of the others."""
    from vdvae_codec.images.files import all_files

    files = all_files(folder, fail)
    return list(filter(wanted, files)), [f.relative_to(folder).as_posix() for f in files if not wanted(f)]


def refuse_existing(path: Path, force: bool, inputs: Iterable[Path] = ()) -> None:
    """Refuses to write over a file unless ``force``d, and over one of the ``inputs`` or what is no file in any case."""
    if path == STREAM or not path.exists():
        return
    if any(source != STREAM and source.exists() and path.samefile(source) for source in inputs):
        raise click.ClickException(f"{path}: is an input, which is never overwritten")
    if not path.is_file():
        raise click.ClickException(f"{path}: is no regular file, and is not replaced by one")
    if not force:
        raise click.ClickException(f"{path}: exists already; --force overwrites it")


def refuse_same(outputs: Iterable[tuple[Path, Path]]) -> None:
    """Refuses inputs, of (input, output), that would be written to one output."""
    taken: dict[Path, Path] = {}
    resolved = functools.cache(Path.resolve)
    for source, out in outputs:
        place = resolved(out.parent) / out.name
        if place in taken:
            raise click.UsageError(f"{taken[place]} and {source} would both be written to {out}")
        taken[place] = source


def reports_apart(inputs: Iterable[Path], out: Path | None) -> bool:
    """Whether reports go to stderr, because a result goes to stdout."""
    return out == STREAM or (out is None and STREAM in inputs)


def has_changed(path: Path, before: os.stat_result) -> bool:
    """Whether a file is another one, or holds something else, than when it was ``before``. Raises OSError."""
    now = path.stat()
    return (now.st_ino, now.st_size, now.st_mtime_ns) != (before.st_ino, before.st_size, before.st_mtime_ns)


def write_output(path: Path, data: bytes, force: bool, like: os.stat_result | None = None, mode: int = 0o666) -> None:
    """Writes a whole file, or to stdout; arguments as of ``output_file``."""
    with output_file(path, force, like, mode) as file:
        file.write(data)


@contextlib.contextmanager
def output_file(
    path: Path, force: bool, like: os.stat_result | None = None, mode: int = 0o666
) -> Iterator[BinaryIO]:
    """A file under a temporary name that is renamed at the end, or stdout: it appears complete or not at all.

    Of a link, the file that it points to. It gets the permissions and the times of ``like``, the file that it is made
    of; else those of ``mode`` that the umask leaves.
    """
    if path == STREAM:
        if sys.stdout is None:
            raise click.ClickException("stdout is closed")
        if sys.stdout.isatty():
            raise click.ClickException("stdout is a terminal, which cannot show this: > and a file's name take it")
        whole = BytesIO()
        yield whole
        sys.stdout.buffer.write(whole.getbuffer())
        sys.stdout.buffer.flush()
        return
    with replacing(path, mode & (like.st_mode if like else mode)) as file:
        yield file
        refuse_existing(path, force)
    if like is not None:
        with contextlib.suppress(OSError):  # a system without them
            os.chmod(path, like.st_mode & 0o777)
            os.utime(path, ns=(like.st_atime_ns, like.st_mtime_ns))


def sync_folder(folder: Path) -> None:
    """Waits until a folder's names are on the disk, where a system can say so."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def stat_of(path: Path) -> os.stat_result | None:
    """Of a file; None for ``-`` and for a folder. Raises OSError."""
    return None if path == STREAM or path.is_dir() else path.stat()


def each(inputs: tuple[Path, ...], work: Callable[[Path], None], jobs: int = 1, doing: str = "") -> None:
    """Runs ``work`` on every input; errors are printed and the rest goes on; exits with 1 at the end if any failed.

    ``jobs`` inputs at once, in processes that are forked, and so before torch is imported. ``doing`` names a bar of the
    bytes of several files.
    """
    jobs = min(jobs, len(inputs))
    whole = doing and len(inputs) > 1 and not any(path == STREAM or path.is_dir() for path in inputs)
    sizes = {path: size_of(path) for path in inputs} if whole else {}  # now: --rm deletes
    if jobs == 1 or STREAM in inputs or "fork" not in multiprocessing.get_all_start_methods():
        with bar_of(sizes, doing) as bar:
            failed = bool(failures(inputs, work, lambda path: bar.update(sizes.get(path, 0))))
    else:
        failed = in_processes(inputs, work, jobs, sizes, doing)
    if failed:
        raise click.exceptions.Exit(1)


def bar_of(sizes: dict[Path, int], doing: str) -> tqdm[NoReturn]:
    """A bar of the bytes of files and the time left, on a terminal's stderr only; none where there are no sizes."""
    from tqdm import tqdm

    total = sum(sizes.values())
    return tqdm(desc=doing, total=total, unit="B", unit_scale=True, disable=None if sizes else True)


def failures(inputs: Iterable[Path], work: Callable[[Path], None], done: Callable[[Path], object]) -> int:
    """Runs ``work`` on every input, says which are ``done``, and prints the errors; returns their number."""
    failed = 0
    for path in inputs:
        try:
            with one_line_errors(path), warnings_as(notice_of(path)):
                work(path)
        except click.UsageError:
            raise
        except click.ClickException as error:
            say(f"Error: {error.message}", err=True)
            failed += 1
        done(path)
    return failed


def in_processes(
    inputs: tuple[Path, ...], work: Callable[[Path], None], jobs: int, sizes: dict[Path, int], doing: str
) -> bool:
    """Whether ``work`` failed on any of the inputs, of which each process takes the next one that none has taken."""
    fork = multiprocessing.get_context("fork")
    taken, bytes_done, parent = fork.Value("l", 0), fork.Value("q", 0), os.getpid()

    def done(path: Path) -> None:
        with bytes_done.get_lock():
            bytes_done.value += sizes.get(path, 0)

    def next_inputs() -> Iterator[Path]:
        while True:
            with taken.get_lock():
                n, taken.value = taken.value, taken.value + 1
            if n >= len(inputs):
                return
            yield inputs[n]

    def job() -> None:
        end_with(parent)
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
        os.environ["TQDM_DISABLE"] = "1"  # bars of several processes would overwrite each other
        try:
            with escaped_errors():
                status = min(1, failures(next_inputs(), work, done))
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
        with bar_of(sizes, doing) as bar:
            for process in processes:
                while process.is_alive():
                    process.join(BAR_SECONDS)
                    bar.update(bytes_done.value - bar.n)
    except BaseException as error:
        for process in processes:
            process.join(3 if isinstance(error, KeyboardInterrupt) else 0)  # a terminal's Ctrl-C has reached them
            process.terminate()
        for process in processes:
            process.join()
        raise
    statuses = [process.exitcode or 0 for process in processes]
    for signal in (-status for status in statuses if status < 0):
        say(f"Error: a process was ended by signal {signal}; what it worked on was not written", err=True)
    if click.UsageError.exit_code in statuses:
        raise click.exceptions.Exit(click.UsageError.exit_code)
    return any(statuses)

"""The options that several commands have."""

from __future__ import annotations

import errno
import glob
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from vdvae_codec import DEFAULT_MODEL

MOST_THREADS = 1024  # more than any library takes
Command = TypeVar("Command", bound=Callable[..., Any])


class FilePath(click.Path):
    """A path that is not empty: pathlib takes that for the current folder. Whether it can be read is found when it is,
    so that a file that cannot costs no other one."""

    def __init__(self, **kinds: Any):
        super().__init__(path_type=Path, readable=False, **kinds)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("an empty name is no file and no folder", param, ctx)
        if str(value).endswith(os.sep) and not os.path.isdir(value):
            try:
                self.missing_folder(value)
            except OSError as error:
                self.fail(f"{value}: {error.strerror}", param, ctx)
        return super().convert(value, param, ctx)

    def missing_folder(self, name: str) -> None:
        """What becomes of a name with a slash at its end that is no folder yet."""
        raise FileNotFoundError(errno.ENOENT, "no such folder")


class OutputPath(FilePath):
    """A file or a folder, which a slash at its end makes."""

    def missing_folder(self, name: str) -> None:
        os.makedirs(name)


class NewFolderPath(FilePath):
    """A folder that the command makes."""

    def missing_folder(self, name: str) -> None:
        pass


def matching(context: click.Context, parameter: click.Parameter, paths: tuple[Path, ...]) -> tuple[Path, ...]:
    """The paths, with the files that it matches in the place of a pattern that a shell has left as it is."""
    found: list[Path] = []
    for path in paths:
        names = [] if os.path.lexists(path) else sorted(glob.glob(str(path), recursive=True))
        found += [parameter.type(name, parameter, context) for name in names] or [path]
    return tuple(found)


def model_option(
    help: str = "A shipped model's name, or a model's folder.", default: str | None = DEFAULT_MODEL
) -> Callable[[Command], Command]:
    return click.option("--model", default=default, show_default=True, help=help)


def decoder_model_option() -> Callable[[Command], Command]:
    return model_option("Folder of the model, for files made with one that is not shipped.", None)


def device_option(help: str = "Where the networks run; the results are the same.") -> Callable[[Command], Command]:
    devices = click.Choice(["auto", "cpu", "cuda"])
    return click.option("--device", type=devices, default="auto", show_default=True, help=help)


def use_threads(context: click.Context, parameter: click.Parameter, threads: int | None) -> None:
    """Limits torch's threads, of this process and of those of --jobs; None leaves them as they are."""
    if threads is not None and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    elif threads is not None:
        os.environ |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "MKL_DYNAMIC": "FALSE"}


def threads_option() -> Callable[[Command], Command]:
    return click.option(
        "--threads", type=click.IntRange(1, MOST_THREADS), callback=use_threads, expose_value=False,
        help="CPU threads of a process; by default all cores.",
    )


def allow_pixels(context: click.Context, parameter: click.Parameter, most: int | None) -> None:
    if most is not None:
        from PIL import Image

        Image.MAX_IMAGE_PIXELS = -(-most // 2)  # Pillow refuses twice as many


def max_pixels_option() -> Callable[[Command], Command]:
    return click.option(
        "--max-pixels", type=click.IntRange(1), callback=allow_pixels, expose_value=False, metavar="N",
        help="Most pixels of an image: a small file may claim any number. By default Pillow's limit of 178,956,970.",
    )


def jobs_option() -> Callable[[Command], Command]:
    return click.option(
        "--jobs", type=click.IntRange(1), default=1, show_default=True,
        help="Inputs that are worked on at once, in processes that share the cores; each takes its own memory.",
    )


def force_option(help: str = "Overwrite existing outputs.") -> Callable[[Command], Command]:
    return click.option("--force", is_flag=True, help=help)


def skip_existing_option(help: str) -> Callable[[Command], Command]:
    return click.option("--skip-existing", is_flag=True, help=help)


def json_option(help: str = "One line of JSON per input instead of text.") -> Callable[[Command], Command]:
    return click.option("--json", "as_json", is_flag=True, help=help)

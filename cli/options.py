"""The options that several commands have."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from vdvae_codec import DEFAULT_MODEL

Command = TypeVar("Command", bound=Callable[..., Any])


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
        "--threads", type=click.IntRange(1), callback=use_threads, expose_value=False,
        help="CPU threads of a process; by default all cores.",
    )


def jobs_option() -> Callable[[Command], Command]:
    return click.option(
        "--jobs", type=click.IntRange(1), default=1, show_default=True,
        help="Inputs that are worked on at once, in processes that share the cores; each takes its own memory.",
    )


def force_option(help: str = "Overwrite existing outputs.") -> Callable[[Command], Command]:
    return click.option("--force", is_flag=True, help=help)


def json_option(help: str = "One line of JSON per input instead of text.") -> Callable[[Command], Command]:
    return click.option("--json", "as_json", is_flag=True, help=help)

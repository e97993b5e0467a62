"""Entry point ``vdvae-codec``."""

from __future__ import annotations

from typing import Any

import click

from vdvae_codec import __version__

from .add import add
from .bulk import bulk
from .calibrate import calibrate
from .cat import cat
from .check import test
from .compress import compress
from .decompress import decompress
from .export import export
from .files import escaped_errors, notice
from .import_model import import_model
from .info import info
from .process import open_streams, tune_process, unwound_by_sigterm, warnings_as
from .reconstruct import reconstruct
from .sample import sample
from .score import score
from .train import train

EPILOG = """\
Outputs appear complete or not at all, and replace nothing without --force; - is stdin or stdout. A pattern
such as "*.png" or "photos/**/*.png" that no shell has taken and no file is called stands for the files that it matches.
Every command has --help with an example.

Exit status: 0 done; 1 an input, a model or an output was refused (one line each on stderr, the other inputs are done),
or the run was interrupted; 2 wrong usage; 128 + n ended by signal n.

Completion: eval "$(_VDVAE_CODEC_COMPLETE=bash_source vdvae-codec)" in bash; zsh_source and fish_source likewise. There
are no colours, whatever NO_COLOR says; bars of progress are shown on terminals only."""


class Program(click.Group):
    """Commands whose errors a terminal prints as they are."""

    def make_context(self, *arguments: Any, **more: Any) -> click.Context:
        open_streams()
        with escaped_errors():
            return super().make_context(*arguments, **more)

    def invoke(self, context: click.Context) -> Any:
        with escaped_errors():
            return super().invoke(context)


@click.group(cls=Program, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.pass_context
def main(context: click.Context) -> None:
    """Lossless image compression with a very deep VAE and bits-back coding.

    \b
    vdvae-codec compress photo.png      writes photo.vdz
    vdvae-codec decompress photo.vdz    writes photo.png
    """
    tune_process()
    context.with_resource(unwound_by_sigterm())
    context.with_resource(warnings_as(notice))


COMMANDS = (
    compress, decompress, test, cat, info, add, score, calibrate, bulk, train, export, import_model, sample,
    reconstruct,
)
for command in COMMANDS:
    main.add_command(command)

"""Entry point ``vdvae-codec``."""

from __future__ import annotations

import click

from vdvae_codec import __version__

from .calibrate import calibrate
from .compress import compress
from .decompress import decompress
from .export import export
from .import_model import import_model
from .info import info
from .process import tune_process, unwound_by_sigterm
from .reconstruct import reconstruct
from .sample import sample
from .score import score
from .train import train

EPILOG = """\
Outputs appear complete or not at all, and replace nothing without --force; - is stdin or stdout. Every command has
--help with an example.

Exit status: 0 done; 1 an input, a model or an output was refused (one line each on stderr, the other inputs are done),
or the run was interrupted; 2 wrong usage."""


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
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


for command in (compress, decompress, info, score, calibrate, train, export, import_model, sample, reconstruct):
    main.add_command(command)

"""Entry point ``vdvae-codec``."""

from __future__ import annotations

import click

from vdvae_codec import __version__
from vdvae_codec.cli.calibrate import calibrate
from vdvae_codec.cli.common import tune_process
from vdvae_codec.cli.compress import compress
from vdvae_codec.cli.decompress import decompress
from vdvae_codec.cli.export import export
from vdvae_codec.cli.import_model import import_model
from vdvae_codec.cli.info import info
from vdvae_codec.cli.reconstruct import reconstruct
from vdvae_codec.cli.sample import sample
from vdvae_codec.cli.score import score
from vdvae_codec.cli.train import train

EPILOG = "Exit status: 0 done; 1 an input, a model or an output was refused (one line each on stderr); 2 wrong usage."


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Lossless image compression with a very deep VAE and bits-back coding.

    \b
    vdvae-codec compress photo.png      writes photo.vdz
    vdvae-codec decompress photo.vdz    writes photo.png
    """
    tune_process()


for command in (compress, decompress, info, score, calibrate, train, export, import_model, sample, reconstruct):
    main.add_command(command)

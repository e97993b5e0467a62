"""vdvae-codec import"""

from __future__ import annotations

from pathlib import Path

import click

from vdvae_codec.cli.common import one_line_errors


@click.command("import", epilog="Example: vdvae-codec import cifar10-seed1-iter-1050000-model-ema.th "
               "--preset cifar10 -o vdvae-cifar10")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--preset", required=True, metavar="NAME|TOML", help="The architecture: cifar10, imagenet32, ...")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The model's new folder.")
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="Folder of images that calibrate the exact model, without which it cannot code.")
def import_model(file: Path, preset: str, output: Path, data: Path | None) -> None:
    """Read a checkpoint of OpenAI's VDVAE code and write it as a model of ours.

    The float weights become a checkpoint, from which `train --init` and `export` go on. With --data the exact model
    that compresses is made at once.
    """
    with one_line_errors():
        from vdvae_codec.config import read_config
        from vdvae_codec.export import export_run
        from vdvae_codec.openai import import_published
        from vdvae_codec.released import find_config

        parameters = import_published(file, *read_config(find_config(preset)), output)
        click.echo(f"{output}: {parameters / 1e6:.1f} million parameters")
        if data is not None:
            for key, value in export_run(output, data, output, force=False).items():
                click.echo(f"{key:>16}  {value:.5f}" if isinstance(value, float) else f"{key:>16}  {value}")

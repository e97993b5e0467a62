"""vdvae-codec export"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from .files import one_line_errors, say
from .options import FilePath, NewFolderPath, force_option, json_option


@click.command(epilog="Example: vdvae-codec export run --data photos/ -o models/mine")
@click.argument("run", type=FilePath(exists=True, file_okay=False))
@click.option("--data", required=True, type=FilePath(),
              help="Images, as train takes them: half of the crops calibrate, the others measure.")
@click.option("-o", "--output", required=True, type=NewFolderPath(), help="The model's folder.")
@click.option("--tune", "tune_steps", default=0, show_default=True, type=click.IntRange(0), metavar="STEPS",
              help="Train the weights through their rounding first. For models with latents a hundred steps of 2^15 "
                   "pixels regain most of what exactness costs.")
@force_option("Overwrite an existing model.")
@json_option("The result as JSON.")
def export(run: Path, data: Path, output: Path, tune_steps: int, force: bool, as_json: bool) -> None:
    """Turn a training's averaged weights into an exact model that codes the same on every machine.

    Calibrates integer grids on real images, proves every bound, writes weights, tables, digest and known answer, and
    shows the float and the exact model's ELBO side by side.
    """
    with one_line_errors():
        from vdvae_codec.training.export import export_run

        result = export_run(run, data, output, force, tune_steps)
    if as_json:
        click.echo(json.dumps(result))
    else:
        show(result)


def show(result: dict[str, Any]) -> None:
    for key, value in result.items():
        say(f"{key:>18}  {value:.5f}" if isinstance(value, float) else f"{key:>18}  {value}")

"""vdvae-codec export"""

from __future__ import annotations

import json
from pathlib import Path

import click

from vdvae_codec.cli.common import one_line_errors


@click.command(epilog="Example: vdvae-codec export run --data photos/ -o models/mine")
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--data", required=True, type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="Folder of images: half of the crops calibrate, the others measure.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The model's folder.")
@click.option("--force", is_flag=True, help="Overwrite an existing model.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
def export(run: Path, data: Path, output: Path, force: bool, as_json: bool) -> None:
    """Turn a training's averaged weights into an exact model that codes the same on every machine.

    Calibrates integer grids on real images, proves every bound, writes weights, tables, digest and known answer, and
    shows the float and the exact model's ELBO side by side.
    """
    with one_line_errors():
        from vdvae_codec.export import export_run

        result = export_run(run, data, output, force)
    if as_json:
        click.echo(json.dumps(result))
    else:
        for key, value in result.items():
            click.echo(f"{key:>16}  {value:.5f}" if isinstance(value, float) else f"{key:>16}  {value}")

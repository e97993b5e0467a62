"""vdvae-codec reconstruct"""

from __future__ import annotations

import json
from pathlib import Path

import click

from vdvae_codec.cli.common import STREAM, one_line_errors, read_input, refuse_existing, write_output
from vdvae_codec.config import DEFAULT_MODEL


@click.command(epilog="Example: vdvae-codec reconstruct photo.png -o sheet.png")
@click.argument("image", type=click.Path(path_type=Path, allow_dash=True))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path, allow_dash=True, dir_okay=False),
              help="A lossless image file (its suffix chooses the format), or - for PNG on stdout.")
@click.option("--model", default=DEFAULT_MODEL, show_default=True, help="A shipped model's name, or a model's folder.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True,
              help="Of what is drawn: 0 takes the most likely, 1 draws as the model would.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
              help="Where the networks run. What is drawn differs between them.")
@click.option("--force", is_flag=True, help="Overwrite an existing output.")
@click.option("--json", "as_json", is_flag=True, help="The bits as JSON.")
def reconstruct(
    image: Path, output: Path, model: str, temperature: float, device: str, force: bool, as_json: bool
) -> None:
    """Show what a model knows of an image at each resolution, and what the bits are spent on.

    A column keeps what is known down to its resolution, such as 1/8, and draws the rest: the upper row keeps latents
    only, the lower one latents and pixels. Of images larger than 256x256, the 256x256 pixels at the centre are taken.
    The table has the exact ELBO, in bits and in bits per dim.
    """
    with one_line_errors(image):
        refuse_existing(output, force)
        data = read_input(image)
        from vdvae_codec import api
        from vdvae_codec.images import write_image

        picture, report = api.reconstruct(data, str(image), model, device, temperature)
        write_output(output, write_image(picture, {}, ".png" if output == STREAM else output.suffix), force)
    to_stderr = output == STREAM
    if as_json:
        click.echo(json.dumps({"input": str(image), "output": str(output), **report}), err=to_stderr)
        return
    rows = {f"1/{row['stride']}": row for row in report["resolutions"]}
    rows["total"] = {key: sum(row[key] for row in rows.values()) for key in ("bits", "kl_bpd", "pixel_bpd")}
    click.echo("resolution        bits    kl_bpd  pixel_bpd", err=to_stderr)
    for label, row in rows.items():
        line = f"{label:>10}  {row['bits']:10.0f}  {row['kl_bpd']:8.5f}  {row['pixel_bpd']:9.5f}"
        click.echo(line, err=to_stderr)

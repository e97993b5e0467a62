"""vdvae-codec reconstruct"""

from __future__ import annotations

import json
from pathlib import Path

import click

from .files import STREAM, one_line_errors, read_input, refuse_existing, say, write_output
from .options import FilePath, device_option, force_option, json_option, model_option
from .sample import DRAWN, picture_option


@click.command(epilog="Example: vdvae-codec reconstruct photo.png -o sheet.png")
@click.argument("image", type=FilePath(allow_dash=True))
@picture_option()
@model_option()
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True,
              help="Temperature of what is drawn: 0 takes the most likely, 1 draws as the model would.")
@device_option(DRAWN)
@force_option()
@json_option("The bits as JSON.")
def reconstruct(
    image: Path, output: Path, model: str, temperature: float, device: str, force: bool, as_json: bool
) -> None:
    """Show what a model knows of an image at each resolution, and what the bits are spent on.

    A column keeps what is known down to its resolution, such as 1/8, and draws the rest: the upper row keeps latents
    only, the lower one latents and pixels. Of images larger than 256x256, the 256x256 pixels at the centre are taken.
    The table has the exact ELBO, in bits and in bits per dim.
    """
    with one_line_errors(image):
        refuse_existing(output, force, [image])
        data = read_input(image)
        from vdvae_codec.codec import inspect
        from vdvae_codec.images.files import write_image

        picture, report = inspect.reconstruct(data, str(image), model, device, temperature)
        write_output(output, write_image(picture, {}, ".png" if output == STREAM else output.suffix), force)
    to_stderr = output == STREAM
    if as_json:
        click.echo(json.dumps({"input": str(image), "output": str(output), **report}), err=to_stderr)
        return
    rows = {f"1/{row['stride']}": row for row in report["resolutions"]}
    rows["total"] = {key: sum(row[key] for row in rows.values()) for key in ("bits", "kl_bpd", "pixel_bpd")}
    say("resolution        bits    kl_bpd  pixel_bpd", err=to_stderr)
    for label, row in rows.items():
        say(f"{label:>10}  {row['bits']:10.0f}  {row['kl_bpd']:8.5f}  {row['pixel_bpd']:9.5f}", err=to_stderr)

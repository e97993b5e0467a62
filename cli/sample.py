"""vdvae-codec sample"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vdvae_codec.cli.common import STREAM, one_line_errors, refuse_existing, write_output
from vdvae_codec.config import DEFAULT_MODEL

if TYPE_CHECKING:
    from vdvae_codec.config import TrainConfig
    from vdvae_codec.model.vdvae import VDVAE


@click.command(epilog="Example: vdvae-codec sample --model run -n 64 --temperature 0.9 --size 32 -o sheet.png")
@click.option("--model", default=DEFAULT_MODEL, show_default=True,
              help="A shipped model's name, a model's folder, or a training's or checkpoint's (averaged weights).")
@click.option("-n", "--count", type=click.IntRange(min=1), default=64, show_default=True, help="Number of images.")
@click.option("--size", type=click.IntRange(min=1), help="Sides in pixels; by default of the crops it was trained on.")
@click.option("--temperature", type=click.FloatRange(min=0), default=1.0, show_default=True,
              help="Factor of every distribution's width; lower is more likely and less diverse.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random numbers.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path, allow_dash=True, dir_okay=False),
              help="A lossless image file (its suffix chooses the format), or - for PNG on stdout.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
              help="Where the networks run. What is drawn differs between them.")
@click.option("--force", is_flag=True, help="Overwrite an existing output.")
def sample(
    model: str, count: int, size: int | None, temperature: float, seed: int, output: Path, device: str, force: bool
) -> None:
    """Draw images from a model, onto one sheet.

    The same seed gives the same images on the same machine.
    """
    with one_line_errors():
        refuse_existing(output, force)
        import torch

        from vdvae_codec.images import write_image
        from vdvae_codec.pictures import samples, square

        network, recipe = load_model(model, device)
        side = size or recipe.crop
        torch.manual_seed(seed)
        picture = square(samples(network, count, side, side, temperature))
        write_output(output, write_image(picture, {}, ".png" if output == STREAM else output.suffix), force)
        click.echo(f"{output}: {count} images of {side}x{side}", err=output == STREAM)


def load_model(name: str, device: str) -> tuple[VDVAE, TrainConfig]:
    """A shipped or exported model, or else a checkpoint's averaged weights in float, and its recipe.

    Raises ModelError.
    """
    from vdvae_codec.checkpoint import find_checkpoint
    from vdvae_codec.config import read_config
    from vdvae_codec.errors import ModelError
    from vdvae_codec.released import find_config, load_released, pick_device

    try:
        return load_released(name, device).model, read_config(find_config(name))[1]
    except ModelError:
        checkpoint = find_checkpoint(Path(name))
        if checkpoint is None:
            raise
    from vdvae_codec.export import load_float

    network, recipe, _ = load_float(checkpoint)
    return network.to(pick_device(device)), recipe

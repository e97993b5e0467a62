"""vdvae-codec sample"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .files import STREAM, one_line_errors, refuse_existing, say, write_output
from .options import Command, FilePath, device_option, force_option, json_option, model_option

if TYPE_CHECKING:
    from vdvae_codec.model.vdvae import VDVAE

DRAWN = "Where the networks run; what is drawn differs between them."


def picture_option() -> Callable[[Command], Command]:
    return click.option(
        "-o", "--output", required=True, type=FilePath(allow_dash=True, dir_okay=False),
        help="A lossless image file (its suffix chooses the format), or - for PNG on stdout.",
    )


@click.command(epilog="Example: vdvae-codec sample --model run -n 64 --temperature 0.9 --size 32 -o sheet.png")
@model_option("A shipped model's name, a model's folder, or a training's or checkpoint's (averaged weights).")
@click.option("-n", "--count", type=click.IntRange(min=1), default=64, show_default=True, help="Number of images.")
@click.option("--size", type=click.IntRange(min=1),
              help="Sides of an image in pixels; by default those of the crops that it was trained on.")
@click.option("--temperature", type=click.FloatRange(min=0), default=1.0, show_default=True,
              help="Factor of every distribution's width; lower is more likely and less diverse.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random numbers.")
@picture_option()
@device_option(DRAWN)
@force_option()
@json_option("The result as JSON.")
def sample(
    model: str, count: int, size: int | None, temperature: float, seed: int, output: Path, device: str, force: bool,
    as_json: bool,
) -> None:
    """Draw images from a model, onto one sheet.

    The same seed gives the same images on the same machine.
    """
    with one_line_errors():
        refuse_existing(output, force)
        import torch

        from vdvae_codec.images.files import write_image
        from vdvae_codec.model.sampling import samples, square

        network, crop = load_model(model, device)
        side = size or crop
        torch.manual_seed(seed)
        picture = square(samples(network, count, side, side, temperature))
        write_output(output, write_image(picture, {}, ".png" if output == STREAM else output.suffix), force)
    row = {"output": str(output), "images": count, "width": side, "height": side}
    say(json.dumps(row) if as_json else f"{output}: {count} images of {side}x{side}", err=output == STREAM)


def load_model(name: str, device: str) -> tuple[VDVAE, int]:
    """A shipped or exported model, or else a checkpoint's averaged weights in float; and the side of its crops.

    Raises ModelError.
    """
    from vdvae_codec.codec.store import find_config, load_released, pick_device
    from vdvae_codec.errors import ModelError
    from vdvae_codec.training.checkpoint import find_checkpoint, load_float
    from vdvae_codec.training.recipe import read_recipe

    try:
        return load_released(name, device).model, read_recipe(find_config(name)).crop
    except ModelError:
        checkpoint = find_checkpoint(Path(name))
        if checkpoint is None:
            raise
    network, recipe, _ = load_float(checkpoint)
    return network.to(pick_device(device)), recipe.crop

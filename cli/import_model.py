"""vdvae-codec import"""

from __future__ import annotations

import json
from pathlib import Path

import click

from .export import show
from .files import one_line_errors, say
from .options import FilePath, NewFolderPath, json_option


@click.command("import", epilog="Example: vdvae-codec import cifar10-seed1-iter-1050000-model-ema.th "
               "--preset cifar10 -o vdvae-cifar10")
@click.argument("file", type=FilePath(exists=True, dir_okay=False))
@click.option("--preset", required=True, metavar="NAME|TOML", help="The architecture: cifar10, imagenet32, ...")
@click.option("-o", "--output", required=True, type=NewFolderPath(), help="The model's new folder.")
@click.option("--data", type=FilePath(),
              help="Images, as train takes them, that calibrate the exact model, without which it cannot code.")
@json_option("The result as JSON.")
def import_model(file: Path, preset: str, output: Path, data: Path | None, as_json: bool) -> None:
    """Read a checkpoint of OpenAI's VDVAE code and write it as a model of ours.

    The float weights become a checkpoint, from which `train --init` and `export` go on. With --data the exact model
    that compresses is made at once.
    """
    with one_line_errors():
        from vdvae_codec.codec.store import find_config
        from vdvae_codec.model.config import read_config
        from vdvae_codec.training.export import export_run, import_published
        from vdvae_codec.training.recipe import read_recipe

        path = find_config(preset)
        parameters = import_published(file, read_config(path), read_recipe(path), output)
        if not as_json:
            say(f"{output}: {parameters / 1e6:.1f} million parameters")
        exported = export_run(output, data, output, force=False) if data is not None else {}
    if as_json:
        say(json.dumps({"output": str(output), "parameters": parameters, **exported}))
    else:
        show(exported)

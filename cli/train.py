"""vdvae-codec train"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from vdvae_codec.cli.common import one_line_errors


@click.command(epilog="Example: vdvae-codec train --model photo --data photos/ --out run --minutes 60")
@click.option("--model", default="photo", show_default=True, help="A shipped model, a folder, or a .toml file.")
@click.option("--data", required=True, type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="Folder of images of any size, searched recursively.")
@click.option("--val", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="Folder of validation images; by default 5 % of the files of --data are held out.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The run's folder.")
@click.option("--resume", is_flag=True, help="Go on from the run's latest checkpoint.")
@click.option("--minutes", type=float, help="Stop with a clean checkpoint after this time.")
@click.option("--steps", type=int, help="Length of the schedule; by default the recipe's.")
@click.option("--batch", type=int, help="Crops per step; by default the recipe's.")
@click.option("--shard-mib", type=float, default=1024, show_default=True, help="Largest file of a checkpoint.")
@click.option("--threads", type=int, help="CPU threads; by default all cores.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
def train(
    model: str, data: Path, val: Path | None, out: Path, resume: bool, minutes: float | None, steps: int | None,
    batch: int | None, shard_mib: float, threads: int | None, device: str,
) -> None:
    """Train a model's architecture on a folder of images.

    Writes checkpoints, log.jsonl, loss.png and samples-STEP.png into the run's folder at each validation. Ctrl-C and
    SIGTERM end with a checkpoint too.
    """
    with one_line_errors():
        import torch

        from vdvae_codec.config import read_config
        from vdvae_codec.released import find_config, pick_device
        from vdvae_codec.training.data import load_folder, split_by_file
        from vdvae_codec.training.loop import train as run

        if threads:
            torch.set_num_threads(threads)
        config, recipe = read_config(find_config(model))
        changes = {k: v for k, v in (("steps", steps), ("batch", batch)) if v is not None}
        recipe = dataclasses.replace(recipe, **changes)
        images = load_folder(data, recipe.crop)
        if val is None:
            training, held_out = split_by_file(images, 0.05, recipe.seed)
        else:
            training, held_out = list(images.values()), list(load_folder(val, recipe.crop).values())
        final = run(config, recipe, training, held_out, out, pick_device(device), resume=resume, minutes=minutes,
                    shard_mib=shard_mib)
        click.echo(f"{final}: done")

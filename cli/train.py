"""vdvae-codec train"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from vdvae_codec import DEFAULT_MODEL

from .files import one_line_errors, say
from .options import FilePath, NewFolderPath, device_option, json_option, model_option, threads_option


@click.command(epilog=f"Example: vdvae-codec train --model {DEFAULT_MODEL} --data photos/ --out run --minutes 60")
@model_option("Architecture and recipe: a shipped model, a folder, or a .toml file; by default the run's own with "
              f"--resume, those of --init, else {DEFAULT_MODEL}'s.", None)
@click.option("--data", required=True, type=FilePath(),
              help="Images: a folder (searched recursively) of image files, .tar shards, CIFAR-10 or ImageNet32/64 "
                   "batches; or one .npy, .npz (FILE.npz:KEY names the array), .tar or batch file.")
@click.option("--val", type=FilePath(),
              help="Validation images, likewise; by default 5 % of the images of --data are held out.")
@click.option("--out", required=True, type=NewFolderPath(), help="The run's folder.")
@click.option("--resume", is_flag=True, help="Go on from the run's latest checkpoint.")
@click.option("--init", "init", metavar="RUN|CHECKPOINT|MODEL",
              help="Start with its averaged weights, or with the integers of a released model (a name or a folder), at "
                   "step 0 and without KL warm-up.")
@click.option("--minutes", type=float, help="Stop with a clean checkpoint after this time.")
@click.option("--steps", type=int, help="Length of the schedule; by default the recipe's.")
@click.option("--learning-rate", type=float, help="The highest of the schedule; by default the recipe's.")
@click.option("--batch", type=int, help="Crops per step, over all processes; by default the recipe's.")
@click.option("--micro-batch", type=int,
              help="Crops per forward and backward pass, gradients accumulated over the batch: less memory.")
@click.option("--keep", type=click.IntRange(1), default=2, show_default=True, help="Checkpoints that are kept.")
@click.option("--shard-mib", type=float, default=1024, show_default=True, help="Largest file of a checkpoint.")
@threads_option()
@device_option("Where the networks run.")
@json_option("The result as JSON.")
def train(
    model: str | None, data: Path, val: Path | None, out: Path, resume: bool, init: str | None, minutes: float | None,
    steps: int | None, learning_rate: float | None, batch: int | None, micro_batch: int | None, keep: int,
    shard_mib: float, device: str, as_json: bool,
) -> None:
    """Train a model's architecture on your images.

    Writes checkpoints, log.jsonl, loss.png and samples-STEP.png into the run's folder at each validation, and the
    decoded images into its folder "cache". Ctrl-C and SIGTERM end with a checkpoint too; a run resumed from it is the
    run that was not interrupted. Many processes: torchrun --nproc-per-node N -m vdvae_codec.training, same options.
    """
    with one_line_errors():
        from vdvae_codec.codec.store import pick_device
        from vdvae_codec.training.loop import RunOptions, check
        from vdvae_codec.training.loop import train as run
        from vdvae_codec.training.parallel import processes
        from vdvae_codec.training.sources import training_sets
        from vdvae_codec.training.start import architecture, starting_point

        start = None if init is None else starting_point(init)
        config, recipe = architecture(model, out if resume else None, start)
        changes: dict[str, Any] = {
            "steps": steps, "learning_rate": learning_rate, "batch": batch, "micro_batch": micro_batch,
        }
        recipe = dataclasses.replace(recipe, **{k: v for k, v in changes.items() if v is not None})
        with processes(pick_device(device)) as (process, its_device):
            check(config, recipe, out, resume, process.world)
            sets = training_sets(data, val, recipe, config.multiple, out / "cache", process)
            options = RunOptions(resume, start, minutes, shard_mib, keep)
            final = run(config, recipe, *sets, out, its_device, options, process)
            if process.first:
                say(json.dumps({"checkpoint": str(final)}) if as_json else f"{final}: done")

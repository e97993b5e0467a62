"""vdvae-codec train"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from vdvae_codec.cli.common import one_line_errors, threads_option, use_threads
from vdvae_codec.config import DEFAULT_MODEL


@click.command(epilog="Example: vdvae-codec train --model photo-3 --data photos/ --out run --minutes 60")
@click.option("--model", help="Architecture and recipe: a shipped model, a folder, or a .toml file; by default the "
                              f"run's own with --resume, the checkpoint's with --init, else {DEFAULT_MODEL}.")
@click.option("--data", required=True, type=click.Path(path_type=Path),
              help="Images: a folder (searched recursively) of image files, .tar shards, CIFAR-10 or ImageNet32/64 "
                   "batches; or one .npy, .npz (FILE.npz:KEY names the array), .tar or batch file.")
@click.option("--val", type=click.Path(path_type=Path),
              help="Validation images, likewise; by default 5 % of the images of --data are held out.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The run's folder.")
@click.option("--resume", is_flag=True, help="Go on from the run's latest checkpoint.")
@click.option("--init", "start", type=click.Path(path_type=Path),
              help="A run or checkpoint: start with its averaged weights, at step 0 and without KL warm-up.")
@click.option("--minutes", type=float, help="Stop with a clean checkpoint after this time.")
@click.option("--steps", type=int, help="Length of the schedule; by default the recipe's.")
@click.option("--learning-rate", type=float, help="The highest of the schedule; by default the recipe's.")
@click.option("--batch", type=int, help="Crops per step, over all processes; by default the recipe's.")
@click.option("--micro-batch", type=int,
              help="Crops per forward and backward pass, gradients accumulated over the batch: less memory.")
@click.option("--keep", type=click.IntRange(1), default=2, show_default=True, help="Checkpoints that are kept.")
@click.option("--shard-mib", type=float, default=1024, show_default=True, help="Largest file of a checkpoint.")
@threads_option
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
def train(
    model: str | None, data: Path, val: Path | None, out: Path, resume: bool, start: Path | None, minutes: float | None,
    steps: int | None, learning_rate: float | None, batch: int | None, micro_batch: int | None, keep: int,
    shard_mib: float, threads: int | None, device: str,
) -> None:
    """Train a model's architecture on your images.

    Writes checkpoints, log.jsonl, loss.png and samples-STEP.png into the run's folder at each validation, and the
    decoded images into its folder "cache". Ctrl-C and SIGTERM end with a checkpoint too; a run resumed from it is the
    run that was not interrupted. Many processes: torchrun --nproc-per-node N -m vdvae_codec.training, same options.
    """
    with one_line_errors():

        from vdvae_codec.checkpoint import find_checkpoint, latest_checkpoint, read_checkpoint
        from vdvae_codec.config import read_config
        from vdvae_codec.errors import TrainingError
        from vdvae_codec.released import find_config, pick_device
        from vdvae_codec.training.data import Images, split_by_image
        from vdvae_codec.training.loop import RunOptions, check
        from vdvae_codec.training.loop import train as run
        from vdvae_codec.training.parallel import processes
        from vdvae_codec.training.sources import open_images

        use_threads(threads)
        started = None if start is None else find_checkpoint(start)
        if start is not None and started is None:
            raise TrainingError(f"{start}: holds no checkpoint to start from")
        own = latest_checkpoint(out) if resume else started
        if own and model is None:
            config, recipe = read_checkpoint(own)
        else:
            config, recipe = read_config(find_config(model or DEFAULT_MODEL))
        changes = {
            "steps": steps, "learning_rate": learning_rate, "batch": batch, "micro_batch": micro_batch,
            "kl_warmup_steps": 0 if started else None,
        }
        recipe = dataclasses.replace(recipe, **{k: v for k, v in changes.items() if v is not None})
        with processes(pick_device(device)) as (process, its_device):
            check(config, recipe, out, resume, process.world)
            sides = [recipe.crop, config.max_stride]
            paths = [data] if val is None else [data, val]
            if not process.first:
                process.wait()  # until the first one has decoded what is not yet in the cache
            sets: list[Images] = [open_images(p, side, out / "cache") for p, side in zip(paths, sides)]
            if process.first:
                process.wait()
            training, held_out = split_by_image(sets[0], 0.05, recipe.seed) if val is None else sets
            options = RunOptions(resume, started, minutes, shard_mib, keep)
            final = run(config, recipe, training, held_out, out, its_device, options, process)
        if process.first:
            click.echo(f"{final}: done")

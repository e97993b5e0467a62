"""vdvae-codec bulk"""

from __future__ import annotations

import dataclasses
import json
import time
from typing import TYPE_CHECKING

import click

from vdvae_codec import DEFAULT_MODEL

from .files import collected, one_line_errors, say
from .options import device_option, json_option, model_option, threads_option

if TYPE_CHECKING:
    from vdvae_codec.bulk.jobs import Job
    from vdvae_codec.bulk.run import Engine

JOBS = ("compress", "decompress", "score")


@click.command(epilog="Example: vdvae-codec bulk compress s3://pictures/shards -o s3://pictures/archives --engine ray")
@click.argument("job", type=click.Choice(JOBS))
@click.argument("inputs", nargs=-1, required=True)
@click.option("-o", "--output", required=True, help="Folder of the outputs: a path or a URL.")
@model_option(f"A shipped model's name, or a model's folder, on all machines; by default {DEFAULT_MODEL}, and of "
              "archives what they name.", None)
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
              help="This process, or the Ray cluster at RAY_ADDRESS or on this machine; if there is none, one is "
                   "started here.")
@click.option("--workers", type=click.IntRange(1), help="Most parts at a time on Ray; by default all that fit.")
@click.option("--num-cpus", type=click.FloatRange(0, min_open=True), default=1, show_default=True,
              help="Cores of a part on Ray.")
@click.option("--num-gpus", type=click.FloatRange(0), default=0, show_default=True, help="GPUs of a part on Ray.")
@click.option("--part-images", type=click.IntRange(1), default=10_000, show_default=True, help="Most images of a part.")
@click.option("--part-mib", type=click.IntRange(1), default=64, show_default=True,
              help="Most MiB of inputs of a part, unless one image alone has more.")
@click.option("--exact-file", is_flag=True, help="As of compress.")
@device_option()
@threads_option()
@json_option("The sums as a line of JSON.")
def bulk(
    job: str, inputs: tuple[str, ...], output: str, model: str | None, engine: str, workers: int | None,
    num_cpus: float, num_gpus: float, part_images: int, part_mib: int, exact_file: bool, device: str, as_json: bool,
) -> None:
    """Compress, decompress or score many images in parts, on one machine or a Ray cluster.

    INPUTS are folders, patterns and files, as paths or URLs (s3://, gs://, file://, ...): images, tar shards (.tar) and
    Parquet files with a column of image files; of decompress archives (.vdz). A part is an archive, of decompress a
    tar shard, with a manifest beside it (.jsonl: of each image name, checksum, bits per dim or scores, or why it could
    not be read); manifest.jsonl has them all. The same command again makes only the parts that are missing, not whole,
    or made of something else. The bytes are the same whatever the engine and the number of workers.
    """
    failed, fail = collected()
    with one_line_errors():
        from vdvae_codec.bulk.inputs import Limit
        from vdvae_codec.bulk.run import run

        begun = time.perf_counter()
        limit = Limit(part_images, part_mib * 2**20)
        chosen = engine_of(engine, workers, num_cpus, num_gpus)
        summary = run(job_of(job, model, device, exact_file), inputs, output, part=limit, engine=chosen, failed=fail)
    seconds = round(time.perf_counter() - begun, 3)
    row = {"output": output, **dataclasses.asdict(summary), "seconds": seconds}
    line = f"{output}: {summary.images} images in {summary.parts} parts ({summary.kept} were there), "
    line += f"{summary.input_bytes} -> {summary.output_bytes} bytes, {seconds:.1f} s"
    say(json.dumps(row) if as_json else line)
    if failed:
        raise click.exceptions.Exit(1)


def job_of(job: str, model: str | None, device: str, exact_file: bool) -> Job:
    from vdvae_codec.bulk.jobs import Compress, Decompress, Score

    if exact_file and job != "compress":
        raise click.UsageError("--exact-file is for compress")
    if job == "compress":
        return Compress(model or DEFAULT_MODEL, device, exact_file=exact_file)
    return Decompress(model, device) if job == "decompress" else Score(model or DEFAULT_MODEL, device)


def engine_of(engine: str, workers: int | None, num_cpus: float, num_gpus: float) -> Engine:
    if engine == "local":
        from vdvae_codec.bulk.run import Loop

        return Loop()
    try:
        from vdvae_codec.plugins.ray import Cluster
    except ImportError as error:
        line = f"--engine ray needs Ray: pip install 'vdvae-codec[ray]' ({error})"
        raise click.ClickException(line) from error
    return Cluster(workers, num_cpus, num_gpus)

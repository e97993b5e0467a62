"""vdvae-codec compress"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import click

from vdvae_codec.cli.common import (
    STREAM,
    collected,
    device_option,
    each,
    jobs_option,
    one_line_errors,
    output_file,
    output_path,
    read_input,
    refuse_existing,
    threads_option,
    use_threads,
    write_output,
)
from vdvae_codec.config import DEFAULT_MODEL

SHOWN = 5  # names in a notice


@click.command(epilog="Example: vdvae-codec compress *.png -o archive/, or vdvae-codec compress photos/ -o photos.vdz")
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path, allow_dash=True))
@click.option("-o", "--output", type=click.Path(path_type=Path, allow_dash=True), help="File, existing folder, or -.")
@click.option("--model", default=DEFAULT_MODEL, show_default=True, help="A shipped model's name, or a model's folder.")
@device_option
@threads_option
@jobs_option
@click.option("--no-verify", is_flag=True, help="Do not decode the result and compare every pixel.")
@click.option("--no-fallback", is_flag=True, help="Store the model's coding even where WebP or PNG is smaller.")
@click.option("--segment", type=click.IntRange(1), default=10_000, show_default=True, metavar="IMAGES",
              help="Of a folder's archive: what one damaged byte can cost at most, and what is decoded at once.")
@click.option("--force", is_flag=True, help="Overwrite existing outputs.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON per input instead of text.")
def compress(
    inputs: tuple[Path, ...], output: Path | None, model: str, device: str, threads: int | None, jobs: int,
    no_verify: bool, no_fallback: bool, segment: int, force: bool, as_json: bool,
) -> None:
    """Compress images losslessly to .vdz files beside them; a folder becomes one archive with all its images.

    Every result is decoded and compared with its input before it is written. Inputs stay as they are. A folder's files
    that are no images are named, and are not in its archive.
    """

    def work(path: Path) -> None:
        if path.is_dir():
            folder_work(path)
        else:
            file_work(path)

    def folder_work(folder: Path) -> None:
        given = output is not None and not output.is_dir()
        out = output if given and output is not None else (output or folder.parent) / (folder.resolve().name + ".vdz")
        if out == STREAM:
            raise click.UsageError("an archive is written to a file, not to stdout")
        refuse_existing(out, force)
        from vdvae_codec.sets import folder_sources, write_archive

        use_threads(threads)
        begun = time.perf_counter()
        failed, skip = collected()
        sources, others = folder_sources(folder, skip)
        if others:
            shown = ", ".join(others[:SHOWN]) + ", ..." * (len(others) > SHOWN)
            click.echo(f"notice: {len(others)} files are no images and not in the archive: {shown}", err=True)
        with one_line_errors(folder), output_file(out, force) as file:
            report = write_archive(
                sources, file, model, device, segment=segment, verify=not no_verify, total=len(sources), failed=skip
            )
        seconds = time.perf_counter() - begun
        if as_json:
            row = {"input": str(folder), "output": str(out), **dataclasses.asdict(report), "bpd": report.bpd}
            click.echo(json.dumps(row | {"failed": len(failed), "seconds": round(seconds, 3)}))
        else:
            share = 100 * report.file_bytes / max(1, report.input_bytes)
            click.echo(
                f"{folder} -> {out}: {report.images} images, {report.input_bytes} -> {report.file_bytes} bytes "
                f"({share:.1f} %), {report.bpd:.3f} bits per dim, {seconds:.1f} s"
            )
        if failed:
            raise click.ClickException(f"{len(failed)} files could not be read and are not in the archive")

    def file_work(path: Path) -> None:
        out = output_path(path, output, ".vdz", len(inputs) > 1)
        refuse_existing(out, force)
        data = read_input(path)
        from vdvae_codec import api

        use_threads(threads)
        begun = time.perf_counter()
        result, report = api.compress(
            data, str(path), model, device, verify=not no_verify, fallback=not no_fallback
        )
        seconds = time.perf_counter() - begun
        write_output(out, result, force)
        to_stderr = out == STREAM
        if as_json:
            row = {"input": str(path), "output": str(out), **dataclasses.asdict(report), "bpd": report.bpd}
            click.echo(json.dumps(row | {"seconds": round(seconds, 3)}), err=to_stderr)
        else:
            share = 100 * report.output_bytes / report.input_bytes
            click.echo(
                f"{path} -> {out}: {report.input_bytes} -> {report.output_bytes} bytes ({share:.1f} %), "
                f"{report.bpd:.3f} bits per dim, {seconds:.1f} s", err=to_stderr,
            )
        if report.input_format == "JPEG" and report.output_bytes > report.input_bytes:
            click.echo(
                f"notice: {path} is a JPEG: its {report.input_bytes} bytes hold these pixels already; "
                f"the .vdz has {report.output_bytes}", err=True,
            )

    each(inputs, work, jobs)

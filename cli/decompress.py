"""vdvae-codec decompress"""

from __future__ import annotations

import fnmatch
import json
import os
import time
from pathlib import Path

import click

from vdvae_codec.cli.common import (
    STREAM,
    device_option,
    each,
    is_set,
    jobs_option,
    output_path,
    read_input,
    refuse_existing,
    threads_option,
    use_threads,
    write_output,
)


@click.command(epilog="Example: vdvae-codec decompress archive/*.vdz -o restored/, or "
               "vdvae-codec decompress photos.vdz --only 'summer/*' -o photos/")
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path, allow_dash=True))
@click.option("-o", "--output", type=click.Path(path_type=Path, allow_dash=True),
              help="File (its suffix chooses the format), existing folder, or -.")
@click.option("--model", help="Folder of the model, for files made with one that is not shipped.")
@device_option
@threads_option
@jobs_option
@click.option("--only", metavar="NAME", help="Of an archive, only the images of this name; * and ? are wildcards.")
@click.option("--force", is_flag=True, help="Overwrite existing outputs.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON per input instead of text.")
def decompress(
    inputs: tuple[Path, ...], output: Path | None, model: str | None, device: str, threads: int | None, jobs: int,
    only: str | None, force: bool, as_json: bool,
) -> None:
    """Decode .vdz files to images, bit for bit what was compressed: PNG unless the output's suffix says otherwise.

    Images that no model can code (16 bits, transparency, palettes) come back as the files they were. An archive becomes
    a folder, by default beside it, with the names and times that its images had; those that were JPEGs or of another
    lossy format get .png behind their names.
    """

    def work(path: Path) -> None:
        if path != STREAM and is_set(path):
            set_work(path)
        elif only is not None:
            raise click.UsageError(f"{path}: is no archive, so --only has no meaning")
        else:
            file_work(path)

    def set_work(path: Path) -> None:
        folder = output if output is not None else path.with_suffix("")
        if folder == STREAM or (folder.exists() and not folder.is_dir()):
            raise click.UsageError("an archive is written to a folder")
        from vdvae_codec.sets import read_archive

        use_threads(threads)
        begun, count, size = time.perf_counter(), 0, 0
        failed: list[str] = []

        def lost(line: str) -> None:
            failed.append(line)
            click.echo(f"Error: {path}: {line}", err=True)

        def wanted(name: str) -> bool:
            return only is None or fnmatch.fnmatchcase(name, only)

        with path.open("rb") as file:
            for member in read_archive(file, model, device, only=wanted, lost=lost):
                out = folder / member.name
                out.parent.mkdir(parents=True, exist_ok=True)
                refuse_existing(out, force)
                image = member.to_bytes()
                write_output(out, image, force)
                if member.entry.modified is not None:
                    os.utime(out, (member.entry.modified, member.entry.modified))
                count, size = count + 1, size + len(image)
        if only is not None and not count and not failed:
            raise click.ClickException(f"{path}: holds no image {only}")
        if as_json:
            row = {"input": str(path), "output": str(folder), "images": count, "output_bytes": size}
            click.echo(json.dumps(row | {"lost": failed, "seconds": round(time.perf_counter() - begun, 3)}))
        else:
            click.echo(f"{path} -> {folder}: {count} images, {size} bytes")
        if failed:
            raise click.ClickException(f"{path}: damaged; what could be read is in {folder}")

    def file_work(path: Path) -> None:
        to_file = output is not None and output != STREAM and not output.is_dir()
        wanted = (output.suffix.lower() or None) if to_file and output is not None else None
        refuse_existing(output_path(path, output, wanted or ".png", len(inputs) > 1), force)
        from vdvae_codec import api

        data = read_input(path)
        use_threads(threads)
        begun = time.perf_counter()
        image, suffix = api.decompress(data, wanted, model, device)
        seconds = time.perf_counter() - begun
        out = output_path(path, output, suffix, len(inputs) > 1)
        refuse_existing(out, force)
        write_output(out, image, force)
        if as_json:
            row = {"input": str(path), "output": str(out), "output_bytes": len(image)}
            click.echo(json.dumps(row | {"seconds": round(seconds, 3)}), err=out == STREAM)
        else:
            click.echo(f"{path} -> {out}: {len(image)} bytes", err=out == STREAM)

    each(inputs, work, jobs)

"""vdvae-codec decompress"""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from vdvae_codec.cli.common import (
    STREAM,
    device_option,
    each,
    output_path,
    read_input,
    refuse_existing,
    threads_option,
    use_threads,
    write_output,
)


@click.command(epilog="Example: vdvae-codec decompress archive/*.vdz -o restored/")
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path, allow_dash=True))
@click.option("-o", "--output", type=click.Path(path_type=Path, allow_dash=True),
              help="File (its suffix chooses the format), existing folder, or -.")
@click.option("--model", help="Folder of the model, for files made with one that is not shipped.")
@device_option
@threads_option
@click.option("--force", is_flag=True, help="Overwrite existing outputs.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON per input instead of text.")
def decompress(
    inputs: tuple[Path, ...], output: Path | None, model: str | None, device: str, threads: int | None, force: bool,
    as_json: bool,
) -> None:
    """Decode .vdz files to images, bit for bit what was compressed: PNG unless the output's suffix says otherwise.

    Images that no model can code (16 bits, transparency, palettes) come back as the files they were.
    """

    def work(path: Path) -> None:
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

    each(inputs, work)

"""vdvae-codec test"""

from __future__ import annotations

import json
from pathlib import Path

import click

from vdvae_codec import DEFAULT_MODEL

from .files import collected, each, open_input, say
from .helpers import helpers
from .options import (
    FilePath,
    decoder_model_option,
    device_option,
    jobs_option,
    json_option,
    matching,
    max_pixels_option,
    threads_option,
)


@click.command("test", epilog="Example: vdvae-codec test archive/*.vdz")
@click.argument("inputs", nargs=-1, required=True, type=FilePath(allow_dash=True, dir_okay=False), callback=matching)
@decoder_model_option()
@device_option()
@threads_option()
@max_pixels_option()
@jobs_option()
@json_option()
def test(inputs: tuple[Path, ...], model: str | None, device: str, jobs: int, as_json: bool) -> None:
    """Decode .vdz files, compare all checksums and make every image file; write nothing.

    Exit status 0 says that decompress will give every image back.
    """

    def work(path: Path) -> None:
        with open_input(path) as file:
            from vdvae_codec.codec.archive import Archive
            from vdvae_codec.codec.restore import files

            lost, lose = collected()
            archive = Archive(file, model, device, sharing)
            images = sum(1 for _ in files(archive, lost=lambda line: lose(f"{path}: {line}")))
        row = {"input": str(path), "images": images, "lost": lost}
        if as_json or not lost:
            say(json.dumps(row) if as_json else f"{path}: {images} images, all whole")
        if lost:
            raise click.ClickException(f"{path}: damaged; {images} images are whole")

    with helpers(jobs, inputs, model or DEFAULT_MODEL) as sharing:
        each(inputs, work, jobs, "testing")

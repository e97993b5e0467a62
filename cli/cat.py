"""vdvae-codec cat"""

from __future__ import annotations

from pathlib import Path

import click

from vdvae_codec import DEFAULT_MODEL

from .files import STREAM, one_line_errors, open_input, write_output
from .helpers import helpers
from .options import FilePath, decoder_model_option, device_option, max_pixels_option, threads_option


@click.command(epilog="Example: vdvae-codec cat photos.vdz summer/beach.png > beach.png")
@click.argument("file", type=FilePath(allow_dash=True, dir_okay=False))
@click.argument("name", required=False)
@decoder_model_option()
@device_option()
@threads_option()
@max_pixels_option()
def cat(file: Path, name: str | None, model: str | None, device: str) -> None:
    """Write the image of a .vdz to stdout; of an archive, the image called NAME (see vdvae-codec info)."""
    with one_line_errors(file), helpers(1, [file], model or DEFAULT_MODEL) as sharing, open_input(file) as opened:
        from vdvae_codec.codec.archive import Archive
        from vdvae_codec.codec.restore import files
        from vdvae_codec.images.names import is_single

        archive, lost = Archive(opened, model, device, sharing), list[str]()
        single = is_single(archive.reader)
        if single and name is not None:
            raise click.UsageError(f"{file}: is no archive, so NAME has no meaning")
        if not single and name is None:
            raise click.UsageError(f"{file}: is an archive: give the NAME of one of its images")
        found = list(files(archive, lambda own: own == (name or ""), lost=lost.append))
        if not found:
            raise click.ClickException(f"{file}: {'; '.join(lost) or f'holds no image {name}'}")
        write_output(STREAM, found[0][1], force=False)
        if lost:
            raise click.ClickException(f"{file}: {lost[0]}")

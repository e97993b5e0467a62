"""vdvae-codec info"""

from __future__ import annotations

import json
from pathlib import Path

import click

from vdvae_codec.cli.common import device_option, each, is_set, read_input
from vdvae_codec.errors import VdvaeCodecError


@click.command(epilog="Example: vdvae-codec info photo.vdz --rates")
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path, allow_dash=True))
@click.option("--rates", is_flag=True, help="Decode, and itemise what the bits were spent on: ELBO, net bits, file.")
@click.option("--model", help="Folder of the model, for files made with one that is not shipped.")
@device_option
@click.option("--json", "as_json", is_flag=True, help="One line of JSON per input instead of text.")
def info(inputs: tuple[Path, ...], rates: bool, model: str | None, device: str, as_json: bool) -> None:
    """Show what a .vdz holds: sizes, model, groups, and with --rates the itemised bits. Of an archive: its images."""

    def set_work(path: Path) -> None:
        from vdvae_codec.sets import list_archive

        damaged = 0
        with path.open("rb") as file:
            for found, entries in list_archive(file):
                if isinstance(entries, VdvaeCodecError):
                    click.echo(f"Error: {path}: {found} are lost: {entries}", err=True)
                    damaged += 1
                    continue
                for e in entries:
                    height, width, channels = e.shape or (None, None, None)
                    row = {"name": e.name, "modified": e.modified, "width": width, "height": height}
                    row |= {"channels": channels, "stored_bytes": e.file_bytes}
                    size = f"{e.file_bytes} bytes as a file" if e.shape is None else f"{width}x{height}x{channels}"
                    click.echo(json.dumps({"input": str(path), **row}) if as_json else f"{size:>24}  {e.name}")
        if damaged:
            raise click.ClickException(f"{path}: {damaged} segments are damaged")

    def work(path: Path) -> None:
        if is_set(path):
            if rates:
                raise click.UsageError(f"{path}: is an archive; --rates is for single images")
            return set_work(path)
        from vdvae_codec import api

        data = read_input(path)
        row = {"input": str(path), **api.info(data)}
        if rates:
            row |= api.rates(data, model, device)
        if as_json:
            click.echo(json.dumps(row))
            return
        for key, value in row.items():
            if isinstance(value, float):
                value = f"{value:.5f}"
            if isinstance(value, list):
                value = " ".join(f"{v:.5f}" if isinstance(v, float) else str(v) for v in value)
            click.echo(f"{key:>16}  {value}")

    each(inputs, work)

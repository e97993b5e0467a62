"""vdvae-codec info"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from .files import collected, each, open_input, say
from .options import FilePath, decoder_model_option, device_option, json_option, matching

if TYPE_CHECKING:
    from vdvae_codec.format.vdz import Entry


@click.command(epilog="Example: vdvae-codec info photo.vdz --rates")
@click.argument("inputs", nargs=-1, required=True, type=FilePath(allow_dash=True), callback=matching)
@click.option("--rates", is_flag=True, help="Decode, and itemise what the bits were spent on: ELBO, net bits, file.")
@decoder_model_option()
@device_option()
@json_option()
def info(inputs: tuple[Path, ...], rates: bool, model: str | None, device: str, as_json: bool) -> None:
    """Show what a .vdz holds: sizes, models, groups, and with --rates the itemised bits. Of an archive: its images."""

    def work(path: Path) -> None:
        with open_input(path) as file:
            row, lost = describe(path, file)
            if rates and not lost:
                from vdvae_codec.codec import inspect

                row |= inspect.rates(file, model, device)
        if as_json:
            click.echo(json.dumps({"input": str(path), **row}))
        else:
            show({"input": str(path), **row})
        if lost:
            raise click.ClickException(f"{path}: damaged; what can be read of it is listed")

    each(inputs, work)


def describe(path: Path, file: BinaryIO) -> tuple[dict[str, Any], bool]:
    """What is known of a .vdz, of an archive also its images in ``entries``; and whether some of it is lost."""
    from vdvae_codec.codec import inspect
    from vdvae_codec.codec.archive import Archive
    from vdvae_codec.codec.restore import whole_segments
    from vdvae_codec.images.names import is_single

    archive = Archive(file)
    if is_single(archive.reader):
        return inspect.info(file), False
    lost, lose = collected()
    segments = whole_segments(archive, lost=lambda line: lose(f"{path}: {line}"))
    entries = [entry_row(entry) for segment in segments for entry in segment.entries]
    return {**({} if lost else inspect.info(file)), "entries": entries}, bool(lost)


def entry_row(entry: Entry) -> dict[str, Any]:
    row = {"name": entry.name, "modified": entry.modified, "width": entry.width, "height": entry.height}
    row |= {"channels": entry.channels or None, "bits": 16 if entry.depth else 8 if entry.channels else None}
    return {**row, "stored_bytes": entry.payload_bytes, "suffix": entry.suffix or None}


def show(row: dict[str, Any]) -> None:
    """Prints a row of JSON for people, the images of an archive last."""
    for key, value in row.items():
        if key != "entries":
            say(f"{key:>16}  {words(value) or '-'}")
    for entry in row.get("entries", []):
        size = f"{entry['width']}x{entry['height']}"
        size += f"x{entry['channels']}" if entry["channels"] else f" {entry['suffix']} of {entry['stored_bytes']} bytes"
        say(f"{size:>32}  {entry['name']}")


def words(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5f}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {words(own)}" for key, own in value.items())
    return " ".join(map(words, value)) if isinstance(value, list) else str(value)

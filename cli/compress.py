"""vdvae-codec compress"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .files import (
    collected,
    each,
    output_file,
    output_path,
    read_input,
    refuse_existing,
    refuse_same,
    reports_apart,
    say,
)
from .helpers import helpers
from .options import (
    FilePath,
    device_option,
    force_option,
    jobs_option,
    json_option,
    max_pixels_option,
    model_option,
    threads_option,
)

if TYPE_CHECKING:
    from vdvae_codec.codec.archive import Folder
    from vdvae_codec.images.files import Picture

SHOWN = 5  # names in a notice


@click.command(epilog="Example: vdvae-codec compress *.png -o archive/, or vdvae-codec compress photos/ -o photos.vdz")
@click.argument("inputs", nargs=-1, required=True, type=FilePath(allow_dash=True))
@click.option("-o", "--output", type=FilePath(allow_dash=True), help="File, existing folder, or -.")
@model_option()
@device_option()
@threads_option()
@max_pixels_option()
@jobs_option()
@click.option("--no-verify", is_flag=True, help="Do not decode the result and compare every pixel.")
@click.option("--no-fallback", is_flag=True, help="Store the model's coding even where WebP or PNG is smaller.")
@click.option("--segment", type=click.IntRange(1), default=10_000, show_default=True, metavar="IMAGES",
              help="Most images of a folder's archive that one damaged byte costs, and that are decoded at once.")
@force_option()
@json_option()
def compress(
    inputs: tuple[Path, ...], output: Path | None, model: str, device: str, jobs: int, no_verify: bool,
    no_fallback: bool, segment: int, force: bool, as_json: bool,
) -> None:
    """Compress images losslessly to .vdz files beside them; a folder becomes one archive with all its images.

    Every result is decoded and compared with its input before it is written. Inputs stay as they are. A folder's files
    that are no images are named, and are not in its archive.
    """

    def work(path: Path) -> None:
        out = output_path(path, output, ".vdz", len(inputs) > 1)
        refuse_existing(out, force, inputs)
        failed, fail = collected()
        pictures = folder_pictures(path, fail) if path.is_dir() else one_picture(path)
        from vdvae_codec.codec.archive import write

        begun = time.perf_counter()
        with output_file(out, force) as file:
            report = write(
                pictures, file, model, device, segment=segment, fallback=not no_fallback, verify=not no_verify,
                total=len(pictures) if path.is_dir() else None, helpers=sharing,
            )
        row = {"input": str(path), "output": str(out), **dataclasses.asdict(report), "bpd": report.bpd}
        row |= {"seconds": round(time.perf_counter() - begun, 3)} | ({"failed": len(failed)} if path.is_dir() else {})
        say(json.dumps(row) if as_json else text(row, path.is_dir()), err=to_stdout)
        if isinstance(pictures, list):
            notice_growth(path, pictures[0].data, report.output_bytes)
        if failed:
            raise click.ClickException(f"{len(failed)} files could not be read and are not in the archive")

    to_stdout = reports_apart(inputs, output)
    if len(inputs) > 1:
        refuse_same((path, output_path(path, output, ".vdz", True)) for path in inputs)
    with helpers(jobs, inputs, model) as sharing:
        each(inputs, work, jobs)


def one_picture(path: Path) -> list[Picture]:
    """The image of a file or of stdin, without a name and a time."""
    from vdvae_codec.images.files import read_picture

    picture = read_picture(read_input(path), str(path))
    if picture.notice:
        notice(f"{path}: {picture.notice}")
    return [dataclasses.replace(picture, name="")]


def notice(line: str) -> None:
    say(f"notice: {line}", err=True)


def folder_pictures(path: Path, fail: Callable[[str], None]) -> Folder:
    """The images of a folder; a notice says what else is there."""
    from vdvae_codec.codec.archive import Folder

    folder = Folder(path, fail, notice)
    if folder.others:
        names = ", ".join(folder.others[:SHOWN]) + ", ..." * (len(folder.others) > SHOWN)
        notice(f"{len(folder.others)} files are no images and not in the archive: {names}")
    return folder


def text(row: dict[str, Any], many: bool) -> str:
    """A row of JSON as a line for people."""
    share = 100 * row["output_bytes"] / max(1, row["input_bytes"])
    images = f"{row['images']} images, " if many else ""
    rate = f"{row['bpd']:.3f} bits per dim" if row["dims"] else "stored as it was"
    return (
        f"{row['input']} -> {row['output']}: {images}{row['input_bytes']} -> {row['output_bytes']} bytes "
        f"({share:.1f} %), {rate}, {row['seconds']:.1f} s"
    )


def notice_growth(path: Path, data: bytes, size: int) -> None:
    """Says that a JPEG, whose pixels were paid for once already, has become larger."""
    from vdvae_codec.images.classical import is_jpeg

    if is_jpeg(data) and size > len(data):
        notice(f"{path} is a JPEG: its {len(data)} bytes hold these pixels already; the .vdz has {size}")

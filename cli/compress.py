"""vdvae-codec compress"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .files import (
    STREAM,
    below,
    collected,
    each,
    has_changed,
    notice,
    output_file,
    output_path,
    read_input,
    refuse_existing,
    refuse_same,
    reports_apart,
    say,
    stat_of,
    sync_folder,
)
from .helpers import helpers
from .options import (
    FilePath,
    OutputPath,
    device_option,
    force_option,
    jobs_option,
    json_option,
    matching,
    max_pixels_option,
    model_option,
    skip_existing_option,
    threads_option,
)

if TYPE_CHECKING:
    from vdvae_codec.codec.archive import Folder, Report
    from vdvae_codec.images.files import Picture

SHOWN = 5  # names in a notice


@click.command(epilog="Example: vdvae-codec compress *.png -o archive/, or vdvae-codec compress photos/ -o photos.vdz")
@click.argument("inputs", nargs=-1, required=True, type=FilePath(allow_dash=True), callback=matching)
@click.option("-o", "--output", type=OutputPath(allow_dash=True), help="File, folder (FOLDER/ makes it), or -.")
@click.option("-r", "--each", "apart", is_flag=True,
              help="Of a folder, a .vdz for each image, in the same folders below -o, instead of one archive.")
@model_option()
@device_option()
@threads_option()
@max_pixels_option()
@jobs_option()
@click.option("--no-verify", is_flag=True, help="Do not decode the result and compare every pixel.")
@click.option("--no-fallback", is_flag=True,
              help="Store the model's coding even where WebP, PNG or the file itself is smaller.")
@click.option("--exact-file", is_flag=True,
              help="Keep the very bytes of each file: of a PNG how its rows were filtered and deflated; of what is not "
                   "found thus, and of JPEG, WebP and compressed TIFF, the file as it is.")
@click.option("--segment", type=click.IntRange(1), default=10_000, show_default=True, metavar="IMAGES",
              help="Most images of a folder's archive that one damaged byte costs, and that are decoded at once.")
@click.option("--rm", is_flag=True,
              help="Delete each input file when its verified .vdz is on the disk; but no JPEG, of which only pixels "
                   "come back.")
@skip_existing_option("Leave out inputs whose outputs exist.")
@force_option()
@json_option()
def compress(
    inputs: tuple[Path, ...], output: Path | None, apart: bool, model: str, device: str, jobs: int, no_verify: bool,
    no_fallback: bool, exact_file: bool, segment: int, rm: bool, skip_existing: bool, force: bool, as_json: bool,
) -> None:
    """Compress images losslessly to .vdz files beside them; a folder becomes one archive with all its images.

    Every result is decoded and compared with its input before it is written. Inputs stay as they are without --rm, and
    a file's .vdz has its permissions and times. A folder's files that are no images are named, and are not in its
    archive.
    """

    def work(path: Path) -> None:
        out = places[path]
        if skip_existing and out.is_file():
            row = {"input": str(path), "output": str(out), "skipped": True}
            say(json.dumps(row) if as_json else f"{path} -> {out}: exists already, skipped", err=to_stdout)
            return
        refuse_existing(out, force, inputs)
        source = stat_of(path)
        failed, fail = collected()
        pictures = folder_pictures(path, fail, exact_file) if path.is_dir() else one_picture(path, exact_file)
        from vdvae_codec.codec.archive import write

        begun = time.perf_counter()
        if apart and out != STREAM:
            out.parent.mkdir(parents=True, exist_ok=True)
        with output_file(out, force, source) as file:
            report = write(
                pictures, file, model, device, segment=segment, fallback=not no_fallback, verify=not no_verify,
                total=None if isinstance(pictures, list) else pictures.size, helpers=sharing,
            )
        row = {"input": str(path), "output": str(out), **dataclasses.asdict(report), "bpd": report.bpd}
        row |= {"seconds": round(time.perf_counter() - begun, 3)} | ({"failed": len(failed)} if path.is_dir() else {})
        say(json.dumps(row) if as_json else text(row, path.is_dir()), err=to_stdout)
        notice_growth(path, pictures, report)
        if rm and source is not None and isinstance(pictures, list):
            remove(path, source, out, pictures[0])
        if failed:
            raise click.ClickException(f"{len(failed)} files could not be read and are not in the archive")

    if rm:
        refuse_rm(inputs, output, no_verify, apart)
    if skip_existing and force:
        raise click.UsageError("--skip-existing and --force contradict each other")
    to_stdout = reports_apart(inputs, output)
    failed, fail = collected()
    pairs = [pair for path in inputs for pair in outputs(path, output, len(inputs) > 1, apart, fail)]
    if len(pairs) > 1:
        refuse_same(pairs)
    places = dict(pairs)
    with helpers(jobs, tuple(places), model) as sharing:
        each(tuple(places), work, jobs, "compressing")
    if failed:
        raise click.exceptions.Exit(1)


def outputs(
    path: Path, output: Path | None, many: bool, apart: bool, fail: Callable[[str], None]
) -> Iterator[tuple[Path, Path]]:
    """Inputs and their outputs: of a path, or of each image below it."""
    if not (apart and path.is_dir()):
        yield path, output_path(path, output, ".vdz", many)
        return
    if output == STREAM:
        raise click.UsageError(f"{path}: is a folder, whose images are not written to stdout one by one")
    from vdvae_codec.images.files import is_image_name

    images, others = below(path, is_image_name, fail)
    notice_others(others, "left out")
    if not images:
        fail(f"{path}: no images")
    for image in images:
        yield image, (output or path) / image.relative_to(path).with_suffix(".vdz")


def one_picture(path: Path, exact_file: bool = False) -> list[Picture]:
    """The image of a file or of stdin, without a name and a time."""
    from vdvae_codec.images.files import read_picture

    picture = read_picture(read_input(path), str(path), exact_file=exact_file)
    if picture.notice:
        notice(f"{path}: {picture.notice}")
    return [dataclasses.replace(picture, name="")]


def folder_pictures(path: Path, fail: Callable[[str], None], exact_file: bool = False) -> Folder:
    """The images of a folder; a notice says what else is there."""
    from vdvae_codec.codec.archive import Folder

    folder = Folder(path, fail, notice, exact_file=exact_file)
    notice_others(folder.others, "not in the archive")
    return folder


def notice_others(names: Sequence[str], where: str) -> None:
    if names:
        shown = ", ".join(names[:SHOWN]) + ", ..." * (len(names) > SHOWN)
        notice(f"{len(names)} files are no images and {where}: {shown}")


def text(row: dict[str, Any], many: bool) -> str:
    """A row of JSON as a line for people."""
    share = 100 * row["output_bytes"] / max(1, row["input_bytes"])
    images = f"{row['images']} images, " if many else ""
    rate = f"{row['bpd']:.3f} bits per dim" if row["dims"] else "stored as it was"
    return (
        f"{row['input']} -> {row['output']}: {images}{row['input_bytes']} -> {row['output_bytes']} bytes "
        f"({share:.1f} %), {rate}, {row['seconds']:.1f} s"
    )


def notice_growth(path: Path, pictures: list[Picture] | Folder, report: Report) -> None:
    """Says that JPEGs, whose pixels were paid for once already, have become larger."""
    from vdvae_codec.images.classical import is_jpeg

    if not isinstance(pictures, list):
        size, more = report.grown_from_bytes, report.grown_to_bytes
        if report.grown:
            notice(f"{path}: {report.grown} JPEGs, whose {size} bytes hold their pixels already, take {more} bytes")
    elif is_jpeg(pictures[0].data) and pictures[0].pixels is not None and report.output_bytes > report.input_bytes:
        size, more = report.input_bytes, report.output_bytes
        notice(f"{path} is a JPEG: its {size} bytes hold these pixels already; the .vdz has {more}")


def refuse_rm(inputs: Sequence[Path], output: Path | None, no_verify: bool, apart: bool) -> None:
    """Refuses to delete what was not verified, what is not on the disk, and folders."""
    if no_verify:
        raise click.UsageError("--rm deletes what was verified: not with --no-verify")
    if reports_apart(inputs, output):
        raise click.UsageError("--rm needs an output file, not stdout")
    for path in inputs:
        if path.is_dir() and not apart:
            raise click.UsageError(f"{path}: --rm deletes no folder, only files; --each makes a .vdz of each of them")


def remove(path: Path, source: os.stat_result, out: Path, picture: Picture) -> None:
    """Deletes an input, which was ``source`` when it was read, when its output can be read from the disk; a JPEG whose
    pixels were coded stays."""
    from vdvae_codec.codec.archive import open_archive
    from vdvae_codec.images.classical import is_jpeg

    if is_jpeg(picture.data) and picture.pixels is not None:
        notice(f"{path} stays: only its pixels come back, not the JPEG")
        return
    with open_archive(out) as archive:
        for _ in archive.segments():  # with their checksums
            pass
    sync_folder(out.parent)
    if has_changed(path, source):
        raise click.ClickException(f"{path}: has changed since it was read, and stays")
    path.unlink()

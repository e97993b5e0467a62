"""vdvae-codec decompress"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vdvae_codec import DEFAULT_MODEL

from .files import (
    STREAM,
    collected,
    each,
    one_line_errors,
    open_input,
    output_path,
    refuse_existing,
    refuse_same,
    reports_apart,
    say,
    shown,
    write_output,
)
from .helpers import helpers
from .options import (
    FilePath,
    decoder_model_option,
    device_option,
    force_option,
    jobs_option,
    json_option,
    max_pixels_option,
    threads_option,
)

if TYPE_CHECKING:
    from vdvae_codec.codec.archive import Archive


@click.command(epilog="Example: vdvae-codec decompress archive/*.vdz -o restored/, or "
               "vdvae-codec decompress photos.vdz --only 'summer/*' -o photos/")
@click.argument("inputs", nargs=-1, required=True, type=FilePath(allow_dash=True))
@click.option("-o", "--output", type=FilePath(allow_dash=True),
              help="File (its suffix chooses the format), folder, or -.")
@decoder_model_option()
@device_option()
@threads_option()
@max_pixels_option()
@jobs_option()
@click.option("--only", metavar="NAME",
              help="Restore only the images of an archive that have this name; * and ? are wildcards.")
@force_option()
@json_option()
def decompress(
    inputs: tuple[Path, ...], output: Path | None, model: str | None, device: str, jobs: int, only: str | None,
    force: bool, as_json: bool,
) -> None:
    """Decode .vdz files to images, bit for bit what was compressed, in the format that they had or that the output's
    suffix says.

    BMP, PPM, TGA and plain TIFF come back byte for byte, PNG with all chunks that are not pixels, and images that no
    model can code (16 bits, transparency, palettes) as the files they were. Pixels of JPEG and WebP become PNG, with
    .png behind the names. An archive becomes a folder, by default beside it, with the names and times that its images
    had. A format that cannot hold what a file held beside its pixels is refused.
    """

    written = set[Path]()

    def work(path: Path) -> None:
        with open_input(path) as file:
            from vdvae_codec.codec.archive import Archive
            from vdvae_codec.codec.restore import is_single

            archive = Archive(file, model, device, sharing)
            (file_work if is_single(archive) else folder_work)(path, archive)

    def file_work(path: Path, archive: Archive) -> None:
        if only is not None:
            raise click.UsageError(f"{path}: is no archive, so --only has no meaning")
        to_file = output is not None and output != STREAM and not output.is_dir()
        wanted = (output.suffix.lower() or None) if to_file and output is not None else None
        from vdvae_codec.codec.restore import single_suffix

        refuse_existing(output_path(path, output, wanted or single_suffix(archive), len(inputs) > 1), force, inputs)
        begun = time.perf_counter()
        image, suffix = archive[0].to_bytes(wanted)
        out = output_path(path, output, suffix, len(inputs) > 1)
        write_output(out, image, force)
        row = {"input": str(path), "output": str(out), "output_bytes": len(image)}
        row |= {"seconds": round(time.perf_counter() - begun, 3)}
        say(json.dumps(row) if as_json else f"{path} -> {out}: {len(image)} bytes", err=to_stdout)

    def folder_work(path: Path, archive: Archive) -> None:
        from vdvae_codec.codec.restore import files

        folder = output or (Path("stdin") if path == STREAM else path.with_suffix(""))
        if folder == STREAM or (folder.exists() and not folder.is_dir()):
            raise click.UsageError(f"{path}: is an archive, which is written to a folder")
        lost, lose = collected()
        begun, count, size = time.perf_counter(), 0, 0
        for name, image, modified in files(archive, wanted, lost=lambda line: lose(f"{path}: {line}")):
            try:
                with one_line_errors(folder / name):
                    if folder / name in written:
                        raise click.ClickException(shown(f"{folder / name}: an image of another archive is there"))
                    write_image(folder / name, image, modified, force)
            except click.ClickException as error:
                lose(error.message)
                continue
            written.add(folder / name)
            count, size = count + 1, size + len(image)
        if only is not None and not count and not lost:
            raise click.ClickException(f"{path}: holds no image {only}")
        row = {"input": str(path), "output": str(folder), "images": count, "output_bytes": size, "lost": lost}
        row |= {"seconds": round(time.perf_counter() - begun, 3)}
        say(json.dumps(row) if as_json else f"{path} -> {folder}: {count} images, {size} bytes", err=to_stdout)
        if lost:
            raise click.ClickException(shown(f"{path}: not all of it could be restored; the rest is in {folder}"))

    def wanted(name: str) -> bool:
        return only is None or fnmatch.fnmatchcase(name, only)

    to_stdout = reports_apart(inputs, output)
    if len(inputs) > 1 and (output is None or output.is_dir()):
        refuse_same((path, output_path(path, output, "", True)) for path in inputs)
    with helpers(jobs, inputs, model or DEFAULT_MODEL) as sharing:
        each(inputs, work, jobs)


def write_image(path: Path, image: bytes, modified: int | None, force: bool) -> None:
    """Writes a file and its folders; a time that this system cannot set is left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_output(path, image, force)
    if modified is not None:
        with contextlib.suppress(OSError, OverflowError):
            os.utime(path, (modified, modified))

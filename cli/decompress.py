"""vdvae-codec decompress"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vdvae_codec import DEFAULT_MODEL
from vdvae_codec.errors import VdvaeCodecError

from .files import (
    STREAM,
    below,
    collected,
    each,
    one_line_errors,
    open_input,
    output_path,
    refuse_existing,
    refuse_same,
    reports_apart,
    say,
    stat_of,
    write_output,
)
from .helpers import helpers
from .options import (
    FilePath,
    OutputPath,
    decoder_model_option,
    device_option,
    force_option,
    jobs_option,
    json_option,
    matching,
    max_pixels_option,
    skip_existing_option,
    threads_option,
)

if TYPE_CHECKING:
    from vdvae_codec.codec.archive import Archive


@click.command(epilog="Example: vdvae-codec decompress archive/*.vdz -o restored/, or "
               "vdvae-codec decompress photos.vdz --only 'summer/*' -o photos/")
@click.argument("inputs", nargs=-1, required=True, type=FilePath(allow_dash=True), callback=matching)
@click.option("-o", "--output", type=OutputPath(allow_dash=True),
              help="File (its suffix chooses the format), folder (FOLDER/ makes it), or -.")
@decoder_model_option()
@device_option()
@threads_option()
@max_pixels_option()
@jobs_option()
@click.option("--only", metavar="NAME",
              help="Restore only the images of an archive that have this name; * and ? are wildcards.")
@skip_existing_option("Leave out files that exist.")
@force_option()
@json_option()
def decompress(
    inputs: tuple[Path, ...], output: Path | None, model: str | None, device: str, jobs: int, only: str | None,
    skip_existing: bool, force: bool, as_json: bool,
) -> None:
    """Decode .vdz files to images, bit for bit what was compressed, in the format that they had or that the output's
    suffix says.

    BMP, PPM, TGA and plain TIFF come back byte for byte, PNG with all chunks that are not pixels (of compress
    --exact-file byte for byte), compressed TIFF and WebP as files of these formats, and images that no model can code
    (animations) as the files they were, all under the suffix that they had, upper or lower case. Pixels of JPEG become
    PNG, with .png behind the names in an archive. An archive becomes a folder, by default beside it, with the names and
    times that its images had; a single file has the permissions and times of its .vdz. A folder stands for all .vdz
    files below it, whose images get into the same folders below -o. A format that cannot hold what a file held beside
    its pixels is refused.
    """

    written = set[Path]()

    def work(path: Path) -> None:
        with open_input(path) as file:
            from vdvae_codec.codec.archive import Archive
            from vdvae_codec.images.names import is_single

            archive = Archive(file, model, device, sharing)
            (file_work if is_single(archive.reader) else folder_work)(path, archive)

    def file_work(path: Path, archive: Archive) -> None:
        if only is not None:
            raise click.UsageError(f"{path}: is no archive, so --only has no meaning")
        from vdvae_codec.codec.restore import file_of
        from vdvae_codec.images.names import single_suffix

        place = places[path]
        to_file = place is not None and place != STREAM and not place.is_dir()
        wanted = (place.suffix.lower() or None) if to_file and place is not None else None
        out = output_path(path, place, wanted or single_suffix(archive.reader), len(inputs) > 1)
        if skip_existing and out.is_file():
            row = {"input": str(path), "output": str(out), "skipped": 1}
            say(json.dumps(row) if as_json else f"{path} -> {out}: exists already, skipped", err=to_stdout)
            return
        refuse_existing(out, force, inputs)
        begun = time.perf_counter()
        image, trouble = file_of(archive[0], wanted)
        write_output(out, image, force, stat_of(path))
        row = {"input": str(path), "output": str(out), "output_bytes": len(image)}
        row |= {"seconds": round(time.perf_counter() - begun, 3)}
        say(json.dumps(row) if as_json else f"{path} -> {out}: {len(image)} bytes", err=to_stdout)
        if trouble:
            raise click.ClickException(f"{path}: {trouble}")

    def folder_work(path: Path, archive: Archive) -> None:
        from vdvae_codec.codec.restore import files

        folder = folder_of(path, places[path], path in inputs)
        if folder == STREAM or (folder.exists() and not folder.is_dir()):
            raise click.UsageError(f"{path}: is an archive, which is written to a folder")
        lost, lose = collected()
        skipped, source = set[str](), stat_of(path)
        begun, count, size = time.perf_counter(), 0, 0

        def there(name: str) -> bool:
            if skip_existing and (folder / name).is_file() and folder / name not in written:
                skipped.add(name)
            return name in skipped

        for name, image, modified in files(archive, wanted, lost=lambda line: lose(f"{path}: {line}"), there=there):
            try:
                with one_line_errors(folder / name):
                    if folder / name in written:
                        raise click.ClickException(f"{folder / name}: an image of another archive is there")
                    write_image(folder / name, image, modified, force, source.st_mode if source else 0o666)
            except click.ClickException as error:
                lose(error.message)
                continue
            written.add(folder / name)
            count, size = count + 1, size + len(image)
        if only is not None and not count and not lost and not skipped:
            raise click.ClickException(f"{path}: holds no image {only}")
        row = {"input": str(path), "output": str(folder), "images": count, "output_bytes": size, "lost": lost}
        row |= {"skipped": len(skipped)} if skip_existing else {}
        row |= {"seconds": round(time.perf_counter() - begun, 3)}
        line = f"{path} -> {folder}: {count} images, {size} bytes"
        line += f", {len(skipped)} exist already and were skipped" if skipped else ""
        say(json.dumps(row) if as_json else line, err=to_stdout)
        if lost:
            raise click.ClickException(f"{path}: not all of it could be restored as it was; the rest is in {folder}")

    def wanted(name: str) -> bool:
        return only is None or fnmatch.fnmatchcase(name, only)

    if skip_existing and force:
        raise click.UsageError("--skip-existing and --force contradict each other")
    to_stdout = reports_apart(inputs, output)
    failed, fail = collected()
    pairs = [pair for path in inputs for pair in spread(path, output, fail)]
    places = dict(pairs)
    if len(pairs) > 1:
        refuse_same((path, out) for path, place in pairs for out in outputs(path, place, path in inputs, wanted))
    with helpers(jobs, tuple(places), model or DEFAULT_MODEL) as sharing:
        each(tuple(places), work, jobs, "decompressing")
    if failed:
        raise click.exceptions.Exit(1)


def spread(path: Path, output: Path | None, fail: Callable[[str], None]) -> Iterator[tuple[Path, Path | None]]:
    """Inputs and what -o is for each: of a path, or of each .vdz below it."""
    if not path.is_dir():
        yield path, output
        return
    if output == STREAM:
        raise click.UsageError(f"{path}: is a folder, whose images are not written to stdout")
    found, _ = below(path, lambda file: file.suffix.lower() == ".vdz", fail)
    if not found:
        fail(f"{path}: no .vdz files")
    for file in found:
        place = None if output is None else output / file.relative_to(path).parent
        if place is not None:
            with one_line_errors(place):
                place.mkdir(parents=True, exist_ok=True)
        yield file, place


def folder_of(path: Path, place: Path | None, given: bool) -> Path:
    """Where the images of an archive go: of one that was ``given``, not found below a folder, to -o itself."""
    if place is None:
        return Path("stdin") if path == STREAM else path.with_suffix("")
    return place if given else place / path.stem


def outputs(path: Path, place: Path | None, given: bool, wanted: Callable[[str], bool]) -> Iterator[Path]:
    """The files that an input is to become, as its tables say; none where they cannot be read."""
    from vdvae_codec.format.vdz import Reader
    from vdvae_codec.images.names import file_names, is_single, single_suffix

    with contextlib.suppress(OSError, VdvaeCodecError), path.open("rb") as file:
        reader = Reader(file)
        if is_single(reader):
            yield output_path(path, place, single_suffix(reader), True)
        elif place != STREAM:
            folder = folder_of(path, place, given)
            yield from (folder / name for own, name in file_names(reader).items() if wanted(own))


def write_image(path: Path, image: bytes, modified: int | None, force: bool, mode: int) -> None:
    """Writes a file and its folders; a time that this system cannot set is left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_output(path, image, force, mode=mode & 0o666)
    if modified is not None:
        with contextlib.suppress(OSError, OverflowError):
            os.utime(path, (modified, modified))

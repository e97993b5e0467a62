"""vdvae-codec add"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vdvae_codec import DEFAULT_MODEL

from .compress import folder_pictures, one_picture
from .files import collected, has_changed, one_line_errors, output_file, say
from .helpers import helpers
from .options import FilePath, device_option, json_option, matching, max_pixels_option, model_option, threads_option

if TYPE_CHECKING:
    from vdvae_codec.images.files import Picture


@click.command(epilog="Example: vdvae-codec add photos.vdz beach.png winter/")
@click.argument("archive", type=FilePath(dir_okay=False))
@click.argument("images", nargs=-1, required=True, type=FilePath(), callback=matching)
@model_option("A shipped model's name, or a model's folder; by default the model of the archive.", None)
@device_option()
@threads_option()
@max_pixels_option()
@json_option("The result as JSON.")
def add(archive: Path, images: tuple[Path, ...], model: str | None, device: str, as_json: bool) -> None:
    """Add images to an archive, behind those that it holds.

    A file is called as it is without its folders, the images of a folder begin with the folder's name. Names that the
    archive holds are refused. The archive is replaced when the new one is complete and verified.
    """
    failed, fail = collected()
    with one_line_errors(archive), helpers(1, images, model or DEFAULT_MODEL) as sharing:
        from vdvae_codec.codec.archive import open_archive, write
        from vdvae_codec.images.names import is_single

        with open_archive(archive) as old:
            if is_single(old.reader):
                raise click.ClickException(f"{archive}: holds a single image without a name, and is no archive")
            source = archive.stat()
            models = filter(None, map(old.reader.model, reversed(old.reader.whole())))  # of the last one first
            chosen = model or next(models, DEFAULT_MODEL)
            pictures = new_ones(images, set(old.names), fail)
            with output_file(archive, True, mode=source.st_mode) as file:
                report = write(pictures, file, chosen, device, helpers=sharing, onto=old)
                if has_changed(archive, source):
                    raise click.ClickException(f"{archive}: was changed by another program, and stays as that left it")
    row = {"archive": str(archive), **dataclasses.asdict(report), "failed": len(failed)}
    line = f"{archive}: {report.images} images added, {report.input_bytes} bytes; now {report.output_bytes} bytes"
    say(json.dumps(row) if as_json else line)
    if failed:
        raise click.ClickException(f"{len(failed)} images were not added")


def new_ones(paths: tuple[Path, ...], names: set[str], fail: Callable[[str], None]) -> Iterator[Picture]:
    """The images of files and folders under the names that they get, less those that cannot be read or whose name is
    one of ``names``."""
    for path in paths:
        try:
            with one_line_errors(path):
                for picture in named_pictures(path, fail):
                    if picture.name in names:
                        fail(f"{path}: {picture.name} is in the archive already")
                        continue
                    names.add(picture.name)
                    yield picture
        except click.ClickException as error:
            fail(error.message)


def named_pictures(path: Path, fail: Callable[[str], None]) -> Iterator[Picture]:
    """Raises ImageError and OSError."""
    from vdvae_codec.codec.archive import named

    if path.is_dir():
        for picture in folder_pictures(path, fail):
            yield named(dataclasses.replace(picture, name=f"{path.resolve().name}/{picture.name}"))
    else:
        (picture,) = one_picture(path)
        yield named(dataclasses.replace(picture, name=path.name, modified=int(path.stat().st_mtime)))

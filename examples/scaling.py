"""Measures how time, memory and rate grow with the size of an image, each step as a fresh process.

    python examples/scaling.py photos/ --sizes 0.4,1.6,6.3,10,25

The images are mosaics: the centre of a photograph beside its mirror images, then those of the next photograph.
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import click
import numpy as np
from benchmark_photos import Process, hardware, markdown, pixels_of, run_codec
from PIL import Image, ImageOps

from vdvae_codec.images.files import image_files, read_rgb

CELL = 512  # side of the part of a photograph that is used
STEP = (384, 256)  # the images' sides are the same multiple of these


def side_pixels(megapixels: float) -> tuple[int, int]:
    """Width and height of about that many pixels."""
    times = max(1, round((megapixels * 1e6 / (STEP[0] * STEP[1])) ** 0.5))
    return STEP[0] * times, STEP[1] * times


def photographs(folder: Path) -> list[Path]:
    """Those that are large enough; raises ClickException if there are none."""
    paths = []
    for path in image_files(folder):
        with Image.open(path) as image:
            if min(image.size) >= CELL:
                paths.append(path)
    if not paths:
        raise click.ClickException(f"{folder}: holds no image of at least {CELL}x{CELL} pixels")
    return paths


def mosaic(paths: list[Path], size: tuple[int, int]) -> Image.Image:
    """Blocks of 2x2 mirror images, each of another photograph until all were used."""
    canvas = Image.new("RGB", size)
    corners = itertools.product(range(0, size[1], 2 * CELL), range(0, size[0], 2 * CELL))
    for (y, x), path in zip(corners, itertools.cycle(paths)):
        photo = Image.fromarray(read_rgb(path))
        left, top = (photo.width - CELL) // 2, (photo.height - CELL) // 2
        cell = photo.crop((left, top, left + CELL, top + CELL))
        for part, place in (
            (cell, (x, y)), (ImageOps.mirror(cell), (x + CELL, y)),
            (ImageOps.flip(cell), (x, y + CELL)), (ImageOps.flip(ImageOps.mirror(cell)), (x + CELL, y + CELL)),
        ):
            canvas.paste(part, place)
    return canvas


def measure(source: Path) -> dict[str, Process]:
    """Compresses with and without verification and decompresses; raises ClickException if anything differs."""
    plain, verified, decoded = (source.with_name(name) for name in ("plain.vdz", "verified.vdz", "decoded.png"))
    result = {
        "compress --no-verify": run_codec("compress", [source], "-o", plain, "--no-fallback", "--no-verify", "--force"),
        "compress": run_codec("compress", [source], "-o", verified, "--no-fallback", "--force"),
        "decompress": run_codec("decompress", [plain], "-o", decoded, "--force"),
    }
    if plain.read_bytes() != verified.read_bytes():
        raise click.ClickException(f"{source.name}: two processes wrote different files")
    if not np.array_equal(pixels_of(decoded, "RGB"), pixels_of(source, "RGB")):
        raise click.ClickException(f"{source.name}: the pixels did not come back")
    return result


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--sizes", default="0.4,1.6,6.3,10,25", show_default=True, help="Megapixels, about.")
@click.option("--rates", default="10", show_default=True, help="Those of the sizes whose ELBO is measured too.")
def main(folder: Path, sizes: str, rates: str) -> None:
    """Measure on mosaics of FOLDER's photographs."""
    paths = photographs(folder)
    click.echo(f"{hardware()}. Wall times are those of whole processes, from their start to their end.\n")
    head = ["image", "command", "wall s", "s/MPx", "peak MiB", "file bytes", "bits per dim"]
    click.echo(markdown(head, []), nl=False)
    itemised = []
    with tempfile.TemporaryDirectory() as temp:
        for text in sizes.split(","):
            width, height = size = side_pixels(float(text))
            source = Path(temp, f"{width}x{height}.png")
            mosaic(paths, size).save(source, compress_level=1)
            file = source.with_name("plain.vdz")
            for command, process in measure(source).items():
                size_bytes = file.stat().st_size
                cells = [f"{width}x{height}", f"`{command}`", f"{process.seconds:.1f}"]
                cells += [f"{process.seconds / (width * height / 1e6):.2f}", f"{process.peak_bytes / 2**20:.0f}"]
                cells += [str(size_bytes), f"{8 * size_bytes / (width * height * 3):.4f}"]
                click.echo("| " + " | ".join(cells) + " |")
            if text in rates.split(","):
                (row,) = run_codec("info", [file], "--rates").rows
                shares = [f"{row[key] / row['elbo_bpd'] - 1:+.3%}" for key in ("net_bpd", "file_bpd")]
                values = [f"{row[key]:.5f}" for key in ("elbo_bpd", "net_bpd", "file_bpd")]
                itemised.append([f"{width}x{height}", *values, *shares])
    if itemised:
        columns = ["image", "exact ELBO", "net", "file", "net over ELBO", "file over ELBO"]
        click.echo("\nBits per dim:\n\n" + markdown(columns, itemised), nl=False)


if __name__ == "__main__":
    main()

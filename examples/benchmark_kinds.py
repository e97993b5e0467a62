"""Files of images by their kind (transparency, palettes, 16 bits, inks, frames) against other formats, all restored.

    python examples/benchmark_kinds.py FOLDER --most 40

PNG, TIFF, PPM and GIF; of each kind at most so many, evenly from the sorted names. Restored files are the same ones, or
PNGs of the same samples and chunks. JPEG XL and WebP have palettes as colours. Needs ``vdvae-codec[bench]``.
"""

from __future__ import annotations

from collections import defaultdict
from io import BytesIO
from pathlib import Path

import click
import imagecodecs
import numpy as np
import pillow_jxl  # noqa: F401
from benchmark_photos import hardware, markdown
from PIL import Image
from tqdm import tqdm

import vdvae_codec
from vdvae_codec.codec.archive import open_archive
from vdvae_codec.images.chunks import SIGNATURE, chunks
from vdvae_codec.images.files import Picture, deep, opened, read_picture

SUFFIXES = (".png", ".tif", ".ppm", ".pgm", ".gif")
WEBP = {"lossless": True, "method": 6, "quality": 100, "exact": True}


def kind(picture: Picture) -> str:
    """The file's mode, and what other formats do not hold."""
    with opened(picture.data, picture.name) as image:
        if picture.pixels is not None and deep(picture.pixels):
            return ("L", "LA", "RGB", "RGBA")[picture.pixels.shape[2] - 1] + ", 16 bits"
        return image.mode + ", animated" * (getattr(image, "n_frames", 1) > 1)


def saved(image: Image.Image, format: str, **options: object) -> int:
    out = BytesIO()
    image.save(out, format, **options)
    return len(out.getvalue())


def peers(picture: Picture) -> dict[str, int]:
    """Bytes of other formats, 0 where they do not hold it. Inks go as red, green, blue and transparency."""
    png = webp = jxl = 0
    if picture.pixels is not None and deep(picture.pixels):
        samples = np.ascontiguousarray(picture.pixels.squeeze(2) if picture.pixels.shape[2] == 1 else picture.pixels)
        png = len(imagecodecs.png_encode(samples, level=9))
        jxl = len(imagecodecs.jpegxl_encode(samples, lossless=True, effort=7))
    elif "animated" not in kind(picture):
        with opened(picture.data, picture.name) as image:
            own = Image.fromarray(picture.pixels) if image.mode == "CMYK" else image
            colours = own.convert("RGBA" if "transparency" in own.info else "RGB") if own.mode == "P" else own
            png, webp = saved(own, "PNG", optimize=True), saved(colours, "WEBP", **WEBP)
            jxl = saved(colours, "JXL", lossless=True, effort=7)
    return {"PNG, optimised": png, "WebP lossless m6": webp, "JPEG XL e7": jxl}


def sizes(picture: Picture) -> dict[str, int]:
    """Bytes of the file, of other formats, and of the .vdz that gives it back. Raises ClickException if it does not."""
    vdz = vdvae_codec.compress(picture.data, device="cpu")
    with open_archive(BytesIO(vdz), device="cpu") as archive:
        coded = archive.entries[0].coded
        back, _ = archive[0].to_bytes()
    again = read_picture(back, picture.name)
    same = back == picture.data
    if not same and picture.data.startswith(SIGNATURE) and picture.pixels is not None and again.pixels is not None:
        around = [[own for own in chunks(file) if own[0] != b"IDAT"] for file in (picture.data, back)]
        same = around[0] == around[1] and np.array_equal(picture.pixels, again.pixels)
        same &= picture.pixels.dtype == again.pixels.dtype
    if not same:
        raise click.ClickException(f"{picture.name} came back as another image")
    own = {"vdvae-codec": len(vdz), "images coded by the model": int(coded)}
    return {"the files": len(picture.data), **peers(picture), **own}


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--most", default=40, show_default=True, help="Images of a kind.")
def main(folder: Path, most: int) -> None:
    kinds: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES):
        kinds[kind(read_picture(path.read_bytes(), str(path)))].append(path)
    rows = []
    for name, paths in sorted(kinds.items()):
        chosen = paths[:: -(-len(paths) // most)]
        pictures = (read_picture(path.read_bytes(), str(path)) for path in chosen)
        found = [sizes(picture) for picture in tqdm(pictures, desc=name, total=len(chosen), disable=None)]
        totals = {column: sum(row[column] for row in found) for column in found[0]}
        rows.append([name, len(chosen), *totals.values()])
    click.echo(markdown(["kind", "images", *totals], rows))
    click.echo(hardware())


if __name__ == "__main__":
    main()

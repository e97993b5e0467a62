"""Files of PNGs by their kind (transparency, palettes, 16 bits, animations) against other formats, all restored.

    python examples/benchmark_kinds.py FOLDER --most 40

Of each kind at most so many, evenly from the sorted names. Restored files have the same samples, mode, palette and
chunks. JPEG XL and WebP have palettes as colours. Needs ``pip install vdvae-codec[bench]``.
"""

from __future__ import annotations

from collections import defaultdict
from io import BytesIO
from pathlib import Path

import click
import numpy as np
import pillow_jxl  # noqa: F401
from benchmark_photos import hardware, markdown
from PIL import Image
from tqdm import tqdm

import vdvae_codec
from vdvae_codec.codec.archive import open_archive
from vdvae_codec.images.frame import chunks

WEBP = {"lossless": True, "method": 6, "quality": 100, "exact": True}


def kind(image: Image.Image, data: bytes) -> str:
    """Its mode, and what other formats do not hold."""
    deep, animated = data[24] == 16, getattr(image, "n_frames", 1) > 1
    return image.mode + ", 16 bits" * deep + ", animated" * animated


def saved(image: Image.Image, format: str, **options: object) -> int:
    out = BytesIO()
    image.save(out, format, **options)
    return len(out.getvalue())


def sizes(data: bytes) -> dict[str, int]:
    """Bytes of the file, of other formats, and of the .vdz that gives it back. Raises ClickException if it does not."""
    vdz = vdvae_codec.compress(data, device="cpu")
    with Image.open(BytesIO(data)) as image, open_archive(BytesIO(vdz), device="cpu") as archive:
        back, _ = archive[0].to_bytes()
        with Image.open(BytesIO(back)) as again:
            same = image.mode == again.mode and np.array_equal(np.asarray(image), np.asarray(again))
        around = [[chunk for chunk in chunks(file) if chunk[0] != b"IDAT"] for file in (data, back)]
        if not same or around[0] != around[1] or image.getpalette() != again.getpalette():
            raise click.ClickException("an image came back as another one")
        colours = image.convert("RGBA" if "transparency" in image.info else "RGB") if image.mode == "P" else image
        still = "," not in kind(image, data)
        return {
            "the files": len(data), "PNG, optimised": saved(image, "PNG", optimize=True) if still else 0,
            "WebP lossless m6": saved(colours, "WEBP", **WEBP) if still else 0,
            "JPEG XL e7": saved(colours, "JXL", lossless=True, effort=7) if still else 0,
            "vdvae-codec": len(vdz), "images coded by the model": int(archive.entries[0].coded),
        }


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--most", default=40, show_default=True, help="Images of a kind.")
def main(folder: Path, most: int) -> None:
    kinds: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("*.png")):
        with Image.open(path) as image:
            kinds[kind(image, path.read_bytes())].append(path)
    rows = []
    for name, paths in sorted(kinds.items()):
        chosen = paths[:: -(-len(paths) // most)]
        found = [sizes(path.read_bytes()) for path in tqdm(chosen, desc=name, disable=None)]
        totals = {column: sum(row[column] for row in found) for column in found[0]}
        rows.append([name, len(chosen), *totals.values()])
    click.echo(markdown(["kind", "images", *totals], rows))
    click.echo(hardware())


if __name__ == "__main__":
    main()

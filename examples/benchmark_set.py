"""Archives of small images: rates against the model's ELBO and other formats, what the first image borrows, scaling.

    python examples/benchmark_set.py rates cifar10.npz:x_test --model cifar10-causal --float runs/cifar10
    python examples/benchmark_set.py scaling cifar10.npz:x_train --model cifar10-causal --counts 1000,10000,100000

The images are written as PNG files, one fresh process makes an archive of their folder, another one restores it, and
every pixel is compared. Needs ``pip install vdvae-codec[bench]``.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from benchmark_photos import CLASSICAL, ON_YCC, Process, hardware, markdown, run_codec
from PIL import Image
from tqdm import tqdm

from vdvae_codec.codec import tiles
from vdvae_codec.codec.store import Released, load_released
from vdvae_codec.codec.visitors import Group, exact_elbo
from vdvae_codec.exact.arithmetic import plain
from vdvae_codec.images.files import read_rgb
from vdvae_codec.training.checkpoint import find_checkpoint, load_float
from vdvae_codec.training.export import float_elbo_bpd

BATCH = 200  # images


def load(data: str) -> np.ndarray:
    """(N, H, W, 3) uint8 from FILE.npz:KEY."""
    file, _, key = data.rpartition(":")
    with np.load(file) as arrays:
        return np.asarray(arrays[key])


def write_folder(images: np.ndarray, folder: Path) -> None:
    folder.mkdir()
    for n, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{n:06}.png", compress_level=1)


def there_and_back(images: np.ndarray, work: Path, model: str, verify: bool) -> tuple[dict[str, Process], Path]:
    """Archives the images, if ``verify`` once more with verification, and restores them.

    Raises ClickException if anything differs.
    """
    write_folder(images, work / "images")
    archive, on = work / "set.vdz", ("--model", model, "--device", "cpu")
    coding = ("compress", [work / "images"], "--no-fallback", *on, "-o")
    processes = {"compress --no-verify": run_codec(*coding, archive, "--no-verify")}
    if verify:
        processes["compress"] = run_codec(*coding, work / "checked.vdz")
        if archive.read_bytes() != (work / "checked.vdz").read_bytes():
            raise click.ClickException("two processes wrote different archives")
    processes["decompress"] = run_codec("decompress", [archive], "-o", work / "restored", *on)
    for n, image in enumerate(images):
        if not np.array_equal(read_rgb(work / "restored" / f"{n:06}.png"), image):
            raise click.ClickException(f"image {n} came back different")
    return processes, archive


def groups(images: np.ndarray, released: Released, name: str) -> Iterator[tuple[torch.Tensor, Group]]:
    """Batches (B, 3, H, W) of images whose sides are multiples of the model's largest stride."""
    for start in tqdm(range(0, len(images), BATCH), desc=name):
        batch = images[start : start + BATCH]
        (run,) = tiles.runs_of([tiles.shape_of(image) for image in batch], released.config)
        x, group = tiles.tensor_of(batch, run.places, run, [None] * len(batch), released.device)
        assert bool(group.coded_mask.all()), "sides must be multiples of the model's largest stride"
        yield x, group


@plain()
def elbos(images: np.ndarray, released: Released, run: Path | None) -> list[tuple[str, float]]:
    """Bits per dim of the exact model, and of the float one that it was made of."""
    terms = [exact_elbo(released.model, released.tables, g, x) for x, g in groups(images, released, "exact ELBO")]
    found = [("exact ELBO", sum(sum(t.kl_bits) + sum(t.pixel_bits) for t in terms) / images.size)]
    checkpoint = run and find_checkpoint(run)
    if checkpoint:
        model, _, _ = load_float(checkpoint)
        for layer, exact in zip(model.latent_layers, released.model.latent_layers):
            layer.active.copy_(exact.active)
        batches = [x for x, _ in groups(images, released, "float ELBO")]
        found.append(("float ELBO", float_elbo_bpd(model, batches)))
    return found


def classical(images: np.ndarray) -> list[tuple[str, int, float, int]]:
    """(codec, bytes of all images alone, seconds, bytes of one contact sheet of them all)."""
    columns = math.isqrt(len(images))
    height, width = images.shape[1:3]
    whole = images[: columns * (len(images) // columns)].reshape(-1, columns, height, width, 3)
    sheet = whole.swapaxes(1, 2).reshape(-1, columns * width, 3)  # (rows h, columns w, 3)
    found = []
    for codec, options in CLASSICAL.items():
        if codec == ON_YCC:
            continue
        size, begun = 0, time.perf_counter()
        for image in tqdm(images, desc=codec):
            out = BytesIO()
            Image.fromarray(image).save(out, **options)
            size += out.tell()
        seconds = time.perf_counter() - begun
        out = BytesIO()
        Image.fromarray(sheet).save(out, **options)
        found.append((codec, size, seconds, out.tell()))
    return found


@plain()
def initial(images: np.ndarray, released: Released) -> list[tuple[object, ...]]:
    """What the first image borrows, with the active latents coded and with all of them."""
    rows = []
    layers = released.model.latent_layers
    for name in ("active latents coded", "all latents coded"):
        active = [layer.active.clone() for layer in layers]
        if name.startswith("all"):
            for layer in layers:
                layer.active.fill_(True)
        area = images.shape[1] * images.shape[2]
        count = sum(int(layer.active.sum()) * area // layer.stride**2 for layer in layers)
        for n in (100, 10_000):
            some = list(images[:n])
            coded = tiles.encode(some, [None] * len(some), released)
            bpd = 8 * len(coded.payload) / (len(some) * some[0].size)
            rows.append((name, count, len(some), round(coded.initial_bits / 8), coded.direct,
                         f"{coded.initial_bits / 8 / len(some):.2f}", f"{bpd:.4f}"))
        for layer, value in zip(layers, active):
            layer.active.copy_(value)
    return rows


@click.group()
def main() -> None:
    pass


@main.command()
@click.argument("data")
@click.option("--model", default="cifar10-causal", show_default=True)
@click.option("--float", "run", type=click.Path(path_type=Path, exists=True), help="The run the model was made of.")
@click.option("--limit", type=int, help="Only the first images.")
def rates(data: str, model: str, run: Path | None, limit: int | None) -> None:
    images, released = load(data)[:limit], load_released(model, "cpu")
    with tempfile.TemporaryDirectory() as temp:
        processes, _ = there_and_back(images, Path(temp), model, verify=True)
    report: dict[str, Any] = processes["compress"].rows[0]
    dims, file = images.size, report["output_bytes"]
    rows = [(name, "", f"{bpd:.4f}", f"{100 * (8 * file / dims / bpd - 1):+.2f} %")
            for name, bpd in elbos(images, released, run)]
    parts = {"net": report["word_bytes"] - report["initial_bits"] / 8, "initial bits": report["initial_bits"] / 8,
             "names, times, shapes, index, checksums": report["table_bytes"], "file": file}
    rows += [(name, f"{size:.0f}", f"{8 * size / dims:.4f}", "") for name, size in parts.items()]
    setting = f"{hardware()}; {torch.get_num_threads()} threads; model {model}"
    click.echo(f"{setting}; {len(images)} images, {dims} dims; all came back equal\n")
    click.echo(markdown(["", "bytes", "bits per dim", "file against it"], rows))
    speeds = [(f"`{name}`", f"{p.seconds:.1f}", f"{len(images) / p.rows[0]['seconds']:.0f}",
               f"{p.peak_bytes / 2**20:.0f}") for name, p in processes.items()]
    click.echo(markdown(["whole process", "wall s", "images/s", "peak MiB"], speeds))
    others = [(codec, size, f"{8 * size / dims:.4f}", f"{len(images) / seconds:.0f}", sheet, f"{8 * sheet / dims:.4f}")
              for codec, size, seconds, sheet in classical(images)]
    head = ["codec", "each image alone, bytes", "bpd", "images/s", "one contact sheet, bytes", "bpd"]
    click.echo(markdown(head, others))
    head = ["", "latents an image", "images", "initial bytes", "direct groups", "bytes an image", "payload bpd"]
    click.echo(markdown(head, initial(images, released)))


@main.command()
@click.argument("data")
@click.option("--model", default="cifar10-causal", show_default=True)
@click.option("--counts", default="1000,10000,100000", show_default=True, help="Numbers of images.")
def scaling(data: str, model: str, counts: str) -> None:
    """Time and memory by the number of images; those beyond the set's own are its mirror images."""
    images = load(data)
    images = np.concatenate([images, images[:, :, ::-1]])
    click.echo(f"{hardware()}; {torch.get_num_threads()} threads; model {model}; all came back equal\n")
    rows = []
    for count in map(int, counts.split(",")):
        with tempfile.TemporaryDirectory() as temp:
            processes, archive = there_and_back(images[:count], Path(temp), model, verify=False)
            size = archive.stat().st_size
        bpd = 8 * size / images[:count].size
        rows += [(count, f"`{name}`", f"{p.seconds:.1f}", f"{count / p.rows[0]['seconds']:.0f}",
                  f"{p.peak_bytes / 2**20:.0f}", f"{bpd:.4f}") for name, p in processes.items()]
    click.echo(markdown(["images", "process", "wall s", "images/s", "peak MiB", "file bpd"], rows))


if __name__ == "__main__":
    main()

"""Archives of small images: rates against the model's ELBO and other formats, what the first image borrows, scaling.

    python examples/benchmark_set.py rates cifar10.npz:x_test --model cifar10-small --float checkpoints/cifar10-small
    python examples/benchmark_set.py scaling cifar10.npz:x_train --model cifar10-small --counts 1000,10000,100000

The images are written as PNG files, one fresh process makes an archive of their folder, another one restores it, and
every pixel is compared. Needs ``pip install vdvae-codec[bench]``.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from benchmark_photos import CLASSICAL, Process, hardware, markdown, run_codec
from PIL import Image
from tqdm import tqdm

from vdvae_codec import tiles
from vdvae_codec.checkpoint import find_checkpoint
from vdvae_codec.export import load_float
from vdvae_codec.hierarchy import exact_elbo
from vdvae_codec.images import read_rgb
from vdvae_codec.model.layers import LatentLayer
from vdvae_codec.model.vdvae import elbo
from vdvae_codec.released import Released, load_released
from vdvae_codec.tiles import runs_of, tensor_of, tile_of
from vdvae_codec.training.trainer import stack_terms

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
    processes = {"compress --no-verify": run_codec("compress", [work / "images"], "-o", archive, "--no-verify", *on)}
    if verify:
        processes["compress"] = run_codec("compress", [work / "images"], "-o", work / "checked.vdz", *on)
        if archive.read_bytes() != (work / "checked.vdz").read_bytes():
            raise click.ClickException("two processes wrote different archives")
    processes["decompress"] = run_codec("decompress", [archive], "-o", work / "restored", *on)
    for n, image in enumerate(images):
        if not np.array_equal(read_rgb(work / "restored" / f"{n:06}.png"), image):
            raise click.ClickException(f"image {n} came back different")
    return processes, archive


def mean_bpd(images: np.ndarray, released: Released, bits: Callable[[torch.Tensor], float], name: str) -> float:
    """Bits per dim of a set, by ``bits`` of batches (B, 3, H, W) in pixel levels."""
    total, box = 0.0, (0, 0, *images.shape[1:3])
    for start in tqdm(range(0, len(images), BATCH), desc=name):
        batch = images[start : start + BATCH]
        places = [(n, box) for n in range(len(batch))]
        total += bits(tensor_of(batch, places, tile_of(shape(batch[0]), released.config), released.device)[0])
    return total / images.size


def shape(image: np.ndarray) -> tuple[int, int, int]:
    return image.shape[0], image.shape[1], image.shape[2]


@torch.inference_mode()
def elbos(images: np.ndarray, released: Released, run: Path | None) -> list[tuple[str, float]]:
    group = tensor_of(images[:1], [(0, (0, 0, *images.shape[1:3]))], tile_of(shape(images[0]), released.config),
                      released.device)[1]
    assert group.full, "sides must be multiples of the model's largest stride"

    def exact_bits(x: torch.Tensor) -> float:
        inside = torch.ones_like(x[:, 0], dtype=torch.bool)
        terms = exact_elbo(released.model, released.tables, tiles.Group(inside, 3), x)
        return sum(terms.kl_bits) + sum(terms.pixel_bits)

    found = [("exact ELBO", mean_bpd(images, released, exact_bits, "exact ELBO"))]
    checkpoint = run and find_checkpoint(run)
    if checkpoint:
        model, _, _ = load_float(checkpoint)
        for layer, exact in zip(model.layers, released.model.layers):
            if isinstance(layer, LatentLayer):
                layer.load_state_dict({k: v for k, v in exact.state_dict().items() if k == "alive"}, strict=False)
        torch.manual_seed(0)

        def float_bits(x: torch.Tensor) -> float:
            kl, nll = stack_terms(elbo(model, x), x)
            return float(kl.sum() + nll.sum()) * x.numel()

        found.append(("float ELBO", mean_bpd(images, released, float_bits, "float ELBO")))
    return found


def classical(images: np.ndarray) -> list[tuple[str, int, float, int]]:
    """(codec, bytes of all images alone, seconds, bytes of one contact sheet of them all)."""
    columns = math.isqrt(len(images))
    height, width = images.shape[1:3]
    whole = images[: columns * (len(images) // columns)].reshape(-1, columns, height, width, 3)
    sheet = whole.swapaxes(1, 2).reshape(-1, columns * width, 3)  # (rows h, columns w, 3)
    found = []
    for codec, options in CLASSICAL.items():
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


def initial(images: np.ndarray, released: Released) -> list[tuple[object, ...]]:
    """What the first image borrows, with the dead latents fixed and with all of them coded."""
    rows = []
    for name in ("dead latents fixed", "all latents coded"):
        layers = [m for m in released.model.layers if isinstance(m, LatentLayer)]
        alive = [layer.alive.clone() for layer in layers]
        if name.startswith("all"):
            for layer in layers:
                layer.alive.fill_(True)
        count = sum(int(m.alive.sum()) * (images.shape[1] // m.stride) * (images.shape[2] // m.stride) for m in layers)
        for n in (100, 10_000):
            some = list(images[:n])
            shapes = [shape(image) for image in some]
            coded = tiles.encode(some, runs_of(shapes, [tile_of(s, released.config) for s in shapes]), released)
            bpd = 8 * len(coded.payload) / (len(some) * some[0].size)
            rows.append((name, count, len(some), round(coded.initial_bits / 8), coded.direct,
                         f"{coded.initial_bits / 8 / len(some):.2f}", f"{bpd:.4f}"))
        for layer, value in zip(layers, alive):
            layer.alive.copy_(value)
    return rows


@click.group()
def main() -> None:
    pass


@main.command()
@click.argument("data")
@click.option("--model", default="cifar10-small", show_default=True)
@click.option("--float", "run", type=click.Path(path_type=Path, exists=True), help="The run the model was made of.")
@click.option("--limit", type=int, help="Only the first images.")
def rates(data: str, model: str, run: Path | None, limit: int | None) -> None:
    images, released = load(data)[:limit], load_released(model, "cpu")
    with tempfile.TemporaryDirectory() as temp:
        processes, _ = there_and_back(images, Path(temp), model, verify=True)
    report: dict[str, Any] = processes["compress"].rows[0]
    dims, file = images.size, report["file_bytes"]
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
@click.option("--model", default="cifar10-small", show_default=True)
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

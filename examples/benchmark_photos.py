"""Compares vdvae-codec with PNG, WebP and JPEG XL on a folder of photographs: rates, times, and every pixel.

    python examples/benchmark_photos.py photos/ --limit 24 --out benchmark

All codecs start from the same 8-bit pixels without metadata, and every file is decoded and compared. vdvae-codec runs
as fresh processes of the command line: one compresses all images, another decompresses all of the files. A tiny image
goes first in each of them, so that the times of the others are without the start of Python and the model's loading;
they are with reading and writing PNG. One row shows what JPEG XL gives on what vdvae-codec's model codes in the place
of pixels (``vdvae_codec.transforms``, without the chroma mask, which JPEG XL has no use for). With ``--no-transform``
our models are run on the pixels as they are too, which is what published rates compare with: those files are written
and read in this process. Needs ``pip install vdvae-codec[bench]``.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import json
import os
import platform
import re
import subprocess
import sysconfig
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image
from tqdm import tqdm

from vdvae_codec import DEFAULT_MODEL, compress, decompress, transforms
from vdvae_codec.images.files import image_files

OURS = "vdvae-codec"
CLASSICAL: dict[str, dict[str, Any]] = {
    "PNG level 9": {"format": "PNG", "compress_level": 9, "optimize": True},
    "WebP lossless m6": {"format": "WEBP", "lossless": True, "quality": 100, "method": 6},
    "JPEG XL e7": {"format": "JXL", "lossless": True, "effort": 7},
    "JPEG XL e9": {"format": "JXL", "lossless": True, "effort": 9},
    "JPEG XL e10": {"format": "JXL", "lossless": True, "effort": 10},
    "JPEG XL e9 on our YCC": {"format": "JXL", "lossless": True, "effort": 9},
}
ON_YCC = "JPEG XL e9 on our YCC"
Row = dict[str, Any]


@dataclass(frozen=True)
class Process:
    """A finished process of the command line."""

    rows: list[Row]  # its lines of JSON, one an input
    seconds: float  # wall time
    peak_bytes: int  # resident memory


def run_codec(command: str, inputs: Sequence[Path], *options: str | Path, bar: tqdm[Any] | None = None) -> Process:
    """Runs ``vdvae-codec COMMAND INPUTS --json OPTIONS`` as a fresh process; raises ClickException if it fails."""
    program = Path(sysconfig.get_path("scripts"), OURS)
    rows, begun = [], time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        words = [program, command, *inputs, "--json", *options]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                rows.append(json.loads(line))
                if bar is not None:
                    bar.update()
            _, status, usage = os.wait4(process.pid, 0)  # this child's memory, not the largest of all children's
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise click.ClickException(f"{OURS} {command} failed: {errors.read().strip()}")
    unit = 1 if platform.system() == "Darwin" else 1024
    return Process(rows, time.perf_counter() - begun, usage.ru_maxrss * unit)


def hardware() -> str:
    """One line: the CPU's model, the number of cores, and torch's version."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    cpu = found[1] if found else platform.processor() or platform.machine()
    return f"{cpu}, {os.cpu_count()} cores, torch {importlib.metadata.version('torch')}"


def markdown(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    head = list(head)
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def pixels_of(file: Path | BytesIO, mode: str) -> np.ndarray:
    """Pixels in ``mode``: a format without grey gives it back as RGB."""
    with Image.open(file) as image:
        return np.asarray(image.convert(mode))


def save_plain(folder: Path, limit: int | None, out: Path) -> list[Path]:
    """The folder's images as PNG without metadata, grey or RGB; before them a tiny one."""
    paths: list[Path] = []
    for n, path in enumerate(itertools.islice(image_files(folder), limit), 1):
        with Image.open(path) as image:
            pixels = np.asarray(image if image.mode == "L" else image.convert("RGB"))
        if not paths:
            paths.append(out / "0000_warmup.png")
            Image.fromarray(pixels[:32, :32]).save(paths[0])
        paths.append(out / f"{n:04}_{path.stem}.png")
        Image.fromarray(pixels).save(paths[-1], compress_level=1)
    if not paths:
        raise click.ClickException(f"{folder}: holds no images")
    return paths


def size_of(path: Path) -> Row:
    with Image.open(path) as image:
        size = {"image": path.stem[5:], "width": image.width, "height": image.height}
        return size | {"channels": len(image.getbands())}


def row_of(path: Path, codec: str, size: int, encode: float, decode: float, same: bool) -> Row:
    """One codec on one image; raises ClickException if the pixels did not come back."""
    row = size_of(path)
    if not same:
        raise click.ClickException(f"{row['image']}: {codec} is not lossless")
    bpd = 8 * size / (row["width"] * row["height"] * row["channels"])
    return row | {"codec": codec, "bytes": size, "bpd": bpd, "encode_seconds": encode, "decode_seconds": decode}


def run_classical(path: Path, codec: str) -> Row:
    """Codes in memory, from decoded pixels to decoded pixels."""
    with Image.open(path) as image:
        pixels, mode = np.asarray(image), image.mode
    out, begun, side_info = BytesIO(), time.perf_counter(), b""
    coded = pixels
    if codec == ON_YCC and mode == "RGB":
        coded, side_info, _ = transforms.forward(pixels, masked=False)
    Image.fromarray(coded).save(out, **CLASSICAL[codec])
    encoded = time.perf_counter()
    decoded = pixels_of(out, mode)
    same = np.array_equal(transforms.inverse(decoded, side_info), pixels)
    size = out.tell() + len(zlib.compress(side_info, 9)) * bool(side_info)
    return row_of(path, codec, size, encoded - begun, time.perf_counter() - encoded, same)


def ours(model: str) -> str:
    """The name of a model's rows."""
    return f"{OURS} {model}"


def run_ours(
    paths: list[Path], work: Path, model: str, device: str, bar: tqdm[Any]
) -> tuple[list[Row], dict[str, Process]]:
    """All images by one model in four fresh processes, the first of ``paths`` to warm up: rows, and what each took."""
    for name in ("files", "verified", "decoded"):
        (work / name).mkdir(parents=True)
    files = [work / "files" / f"{p.stem}.vdz" for p in paths]
    on = ("--model", model, "--device", device)
    compress = run_codec("compress", paths, "-o", work / "files", "--no-fallback", "--no-verify", *on, bar=bar)
    verified = run_codec("compress", paths, "-o", work / "verified", "--no-fallback", *on, bar=bar)
    decompress = run_codec("decompress", files, "-o", work / "decoded", *on, bar=bar)
    info = run_codec("info", files, "--rates", *on, bar=bar)
    rows = []
    parts = zip(paths, files, compress.rows, verified.rows, decompress.rows, info.rows)
    for path, file, made, checked, back, rates in itertools.islice(parts, 1, None):
        if file.read_bytes() != (work / "verified" / file.name).read_bytes():
            raise click.ClickException(f"{path.stem}: two processes wrote different files")
        mode = "L" if size_of(path)["channels"] == 1 else "RGB"
        same = np.array_equal(pixels_of(work / "decoded" / path.name, mode), pixels_of(path, mode))
        row = row_of(path, ours(model), file.stat().st_size, made["seconds"], back["seconds"], same)
        row |= {"verified_encode_seconds": checked["seconds"], "initial_bytes": made["initial_bits"] / 8}
        row |= {"table_bytes": made["table_bytes"]}
        rows.append(row | {key: rates[key] for key in ("elbo_bpd", "net_bpd", "file_bpd")})
    return rows, {
        f"{name} --model {model}": process for name, process in (
            ("compress --no-verify", compress), ("compress", verified), ("decompress", decompress),
            ("info --rates", info),
        )
    }


@contextlib.contextmanager
def conversions_left_in() -> Iterator[None]:
    """Context in which no transform applies."""
    first, then = transforms.FIRST, transforms.THEN
    transforms.FIRST = transforms.THEN = ()
    try:
        yield
    finally:
        transforms.FIRST, transforms.THEN = first, then


def run_left_in(path: Path, model: str, device: str) -> Row:
    """One image by a model without transforms, in this process."""
    mode, begun = "L" if size_of(path)["channels"] == 1 else "RGB", time.perf_counter()
    with conversions_left_in():
        file = compress(path.read_bytes(), model=model, device=device, fallback=False, verify=False)
    encoded = time.perf_counter()
    image = decompress(file, model=model, device=device)
    done = time.perf_counter()
    same = np.array_equal(pixels_of(BytesIO(image), mode), pixels_of(path, mode))
    return row_of(path, f"{OURS} {model}, conversions left in", len(file), encoded - begun, done - encoded, same)


def total(rows: list[Row], key: str) -> float:
    return float(sum(row[key] for row in rows))


def mean(rows: list[Row], key: str) -> float:
    return total(rows, key) / len(rows)


def megapixels(rows: list[Row]) -> float:
    return float(sum(row["width"] * row["height"] for row in rows)) / 1e6


def per_megapixel(rows: list[Row], key: str) -> float:
    return total(rows, key) / megapixels(rows)


def report(by_codec: dict[str, list[Row]], processes: dict[str, Process], setting: str) -> str:
    """The tables in Markdown."""
    models = {codec: rows for codec, rows in by_codec.items() if "net_bpd" in rows[0]}
    codecs = markdown(
        ["codec", "bytes", "bits per dim", "encode s/MPx", "decode s/MPx"],
        ([codec, f"{total(rows, 'bytes'):.0f}", f"{mean(rows, 'bpd'):.4f}",
          f"{per_megapixel(rows, 'encode_seconds'):.2f}", f"{per_megapixel(rows, 'decode_seconds'):.2f}"]
         for codec, rows in by_codec.items()),
    )
    rates = markdown(
        ["bits per dim", "exact ELBO", "net", "file", "initial bits", "table", "encode with verification"],
        ([codec, *(f"{mean(rows, key):.4f}" for key in ("elbo_bpd", "net_bpd", "file_bpd")),
          *(f"{100 * total(rows, key) / total(rows, 'bytes'):.2f} % of the files"
            for key in ("initial_bytes", "table_bytes")),
          f"{per_megapixel(rows, 'verified_encode_seconds'):.2f} s/MPx"] for codec, rows in models.items()),
    )
    whole = markdown(
        ["whole process", "wall s", "peak MiB"],
        ([f"`{OURS} {name}`", f"{p.seconds:.1f}", f"{p.peak_bytes / 2**20:.0f}"] for name, p in processes.items()),
    )
    images = next(iter(models.values()))
    return (
        f"{setting}\n\n{len(images)} images, {megapixels(images):.2f} megapixels, all pixels compared.\n"
        "Bits per dim: the mean of each image's own. Seconds per megapixel: all seconds by all megapixels.\n\n"
        f"{codecs}\n{rates}\n{whole}"
    )


def plot(by_codec: dict[str, list[Row]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for n, (codec, rows) in enumerate(by_codec.items()):
        point = per_megapixel(rows, "encode_seconds"), mean(rows, "bpd")
        axes.scatter(*point, color="tab:red" if codec.startswith(OURS) else "tab:blue")
        axes.annotate(codec, point, xytext=(0, -16 if n % 2 else 7), textcoords="offset points", ha="center")
    axes.set(xscale="log", xlabel="encode seconds per megapixel", ylabel="bits per dim")
    axes.margins(0.2, 0.12)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--limit", type=click.IntRange(1), help="Only the folder's first images, by name.")
@click.option("--out", default="benchmark", show_default=True, type=click.Path(path_type=Path, file_okay=False),
              help="Folder for table.md, results.json and rate_time.png.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True,
              help=f"Of {OURS} and JPEG XL; PNG and WebP have one.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help=f"Of {OURS}.")
@click.option("--model", "models", multiple=True, default=[DEFAULT_MODEL], show_default=True, help=f"Of {OURS}.")
@click.option("--without", multiple=True, type=click.Choice(list(CLASSICAL)), help="A codec that is left out.")
@click.option("--no-transform", is_flag=True, help=f"{OURS} with conversions left in, too.")
def main(
    folder: Path, limit: int | None, out: Path, threads: int, device: str, models: tuple[str, ...],
    without: tuple[str, ...], no_transform: bool,
) -> None:
    """Compare codecs on the images of FOLDER."""
    from pillow_jxl import JpegXLImagePlugin

    JpegXLImagePlugin.DECODE_THREADS = threads
    for options in CLASSICAL.values():
        if options["format"] == "JXL":
            options["num_threads"] = threads
    os.environ["OMP_NUM_THREADS"] = str(threads)  # the processes inherit it
    classical = [codec for codec in CLASSICAL if codec not in without]
    setting = f"{hardware()}; {threads} threads (PNG and WebP: 1), {OURS} on {device}"
    with tempfile.TemporaryDirectory() as temp:
        paths = save_plain(folder, limit, Path(temp))
        codings = (len(classical) + len(models) * no_transform) * (len(paths) - 1) + 4 * len(models) * len(paths)
        with tqdm(total=codings, unit="coding") as bar:
            by_codec: dict[str, list[Row]] = {codec: [] for codec in classical}
            for codec, path in itertools.product(classical, paths[1:]):
                by_codec[codec].append(run_classical(path, codec))
                bar.update()
            processes: dict[str, Process] = {}
            for n, model in enumerate(models):
                by_codec[ours(model)], its = run_ours(paths, Path(temp, str(n)), model, device, bar)
                processes |= its
                for path in paths[1:] if no_transform else ():
                    row = run_left_in(path, model, device)
                    by_codec.setdefault(row["codec"], []).append(row)
                    bar.update()
    text = report(by_codec, processes, setting)
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(text)
    results = {
        "setting": setting, "rows": list(itertools.chain(*by_codec.values())),
        "processes": {name: {"seconds": p.seconds, "peak_bytes": p.peak_bytes} for name, p in processes.items()},
    }
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    plot(by_codec, out / "rate_time.png")
    click.echo(text, nl=False)


if __name__ == "__main__":
    main()

"""vdvae-codec score"""

from __future__ import annotations

import contextlib
import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from vdvae_codec.cli.common import (
    collected,
    device_option,
    one_line_errors,
    output_file,
    refuse_existing,
    threads_option,
    use_threads,
)
from vdvae_codec.config import DEFAULT_MODEL

SCORES = ("name", "width", "height", "channels", "bpd", "corrected_bpd", "ood", "p", "typicality")  # columns of a CSV


@click.command(epilog="Example: vdvae-codec score photos/ --report report.html")
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", default=DEFAULT_MODEL, show_default=True, help="A shipped model's name, or a model's folder.")
@click.option("--samples", type=click.IntRange(1), default=1, show_default=True, metavar="K",
              help="Of the importance weighted bound.")
@click.option("--fpr", type=click.FloatRange(0, 1, min_open=True), default=0.01, show_default=True,
              help="Share of images that belong, and are flagged nevertheless.")
@click.option("--fail-on-ood", is_flag=True, help="Exit with 1 if an image is flagged.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False),
              help="All scores and terms: .jsonl, .csv or (with pyarrow) .parquet, in the order of the images.")
@click.option("--resume", is_flag=True, help="Go on with the .jsonl that an interrupted run left.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="A page (HTML) that opens offline.")
@click.option("--heatmap", type=click.Path(path_type=Path, dir_okay=False),
              help="Of a single image: a PNG of the bits of each pixel.")
@device_option
@threads_option
@click.option("--force", is_flag=True, help="Overwrite existing outputs.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON per image instead of the table.")
def score(
    inputs: tuple[Path, ...], model: str, samples: int, fpr: float, fail_on_ood: bool, output: Path | None,
    resume: bool, report: Path | None, heatmap: Path | None, device: str, threads: int | None, force: bool,
    as_json: bool,
) -> None:
    """Tell how many bits images need and how surprising they are; flag those that do not belong.

    INPUTS are images and folders. The table is sorted, the most surprising first. bpd: bits per dim of the model.
    corrected: less what a general coder needs. ood: how far the image's bits, layer by layer, are from those of the
    model's calibration images; about 1 if it belongs. p: the share of calibration images that are as surprising; an
    image is flagged where it is at most --fpr. Without a calibration (see vdvae-codec calibrate) there is no ood, and
    nothing is flagged.
    """
    if heatmap is not None and (len(inputs) > 1 or inputs[0].is_dir()):
        raise click.UsageError("--heatmap is for a single image")
    if output is not None and output.suffix not in (".jsonl", ".csv", ".parquet"):
        raise click.UsageError(f"{output}: expected .jsonl, .csv or .parquet")
    if resume and (output is None or output.suffix != ".jsonl"):
        raise click.UsageError("--resume goes on with a .jsonl: give its name with -o")
    with one_line_errors():
        for out in (output, report, heatmap):
            if out is not None:
                refuse_existing(out, force)
        paths = list(named(inputs))
        from vdvae_codec.released import WEIGHTS, find_folder, load_released
        from vdvae_codec.scoring.scores import FILE, Calibration, row
        from vdvae_codec.scoring.stream import score_files

        use_threads(threads)
        released = load_released(model, device)
        file = find_folder(model, WEIGHTS) / FILE
        calibration = Calibration.load(file, released.digest.hex(), samples) if file.exists() else None
        failed, skip = collected()
        rows: list[dict[str, Any]] = []
        with rows_file(output, resume, {"digest": released.digest.hex(), "samples": samples}) as (done, write):
            known = {r["name"]: r for r in done}
            rows = list(known.values())
            left = [(name, path) for name, path in paths if name not in known]
            for scored in score_files(released.model, left, skip, samples):
                values = row(scored, released.config, calibration)
                write(values)
                rows.append(values)
        rows.sort(key=lambda r: (r.get("p", 1.0), -r.get("ood", 0.0), -r["bpd"]))
        flagged = [r for r in rows if r.get("p", 1.0) <= fpr]
        if heatmap is not None and rows:
            write_heatmap(released.model, paths[0][1], heatmap, samples, force)
        if report is not None:
            from vdvae_codec.scoring.report import make_report

            page = make_report(rows, dict(paths), released.model, calibration, model, fpr)
            with output_file(report, force) as out:
                out.write(page.encode())
        show(rows, len(flagged), calibration is not None, as_json, fpr)
    if failed:
        click.echo(f"{len(failed)} of {len(paths)} images could not be read", err=True)
    if not rows:
        raise click.ClickException("no images were scored")
    if fail_on_ood and flagged:
        raise click.exceptions.Exit(1)


def named(inputs: tuple[Path, ...]) -> Iterator[tuple[str, Path]]:
    """(name, file) of all images; those of a folder are called by their paths from it on."""
    from vdvae_codec.images import image_files

    for path in inputs:
        if path.is_dir():
            yield from ((str(file), file) for file in image_files(path))
        else:
            yield str(path), path


@contextlib.contextmanager
def rows_file(output: Path | None, resume: bool, head: dict[str, Any]) -> Iterator[tuple[list[dict[str, Any]], Any]]:
    """Yields rows that were there already, and a function that writes one more.

    JSON lines grow in OUTPUT.partial, which an interrupted run leaves for --resume; all else appears when complete.
    """
    if output is None:
        yield [], lambda values: None
        return
    if output.suffix == ".jsonl":
        partial = output.with_name(output.name + ".partial")
        done: list[dict[str, Any]] = []
        if resume and partial.exists():
            lines = [line for line in partial.read_text().splitlines(True) if line.endswith("\n")]
            if not lines or json.loads(lines[0]) != head:
                raise click.ClickException(f"{partial}: was made with another model or number of samples")
            done = [json.loads(line) for line in lines[1:]]
            partial.write_text("".join(lines))
        else:
            partial.write_text(json.dumps(head) + "\n")
        with partial.open("a") as file:
            yield done, lambda values: print(json.dumps(values), file=file, flush=True)
        with partial.open() as whole, output_file(output, True) as out:
            next(whole)
            for line in whole:
                out.write(line.encode())
        partial.unlink()
        return
    rows: list[dict[str, Any]] = []
    if output.suffix == ".csv":
        yield [], lambda values: rows.append({key: values.get(key, "") for key in SCORES})
        with output_file(output, True) as out:
            out.write(csv_of(rows).encode())
        return
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise click.ClickException("writing .parquet needs pyarrow: pip install pyarrow") from error
    yield [], rows.append
    with output_file(output, True) as out:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)


def csv_of(rows: list[dict[str, Any]]) -> str:
    import io

    out = io.StringIO()
    writer = csv.DictWriter(out, SCORES, lineterminator=os.linesep)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def write_heatmap(model: Any, path: Path, out: Path, samples: int, force: bool) -> None:
    from vdvae_codec.scoring.stream import heat_picture, read_pixels
    from vdvae_codec.scoring.terms import image_terms

    _, (bits,) = image_terms(model, [read_pixels(path)], samples)
    with output_file(out, force) as file:
        heat_picture(bits).save(file, "PNG")


def show(rows: list[dict[str, Any]], flagged: int, calibrated: bool, as_json: bool, fpr: float) -> None:
    if as_json:
        for r in rows:
            click.echo(json.dumps(r | ({"flagged": r["p"] <= fpr} if calibrated else {})))
        return
    if not calibrated:
        click.echo("notice: this model has no calibration, so nothing is flagged: see vdvae-codec calibrate", err=True)
    click.echo(f"{'':2}{'p':>8} {'ood':>7} {'bpd':>7} {'corrected':>9}  name")
    for r in rows:
        p, ood = (f"{r['p']:.5f}", f"{r['ood']:.2f}") if calibrated else ("-", "-")
        mark = "!" if calibrated and r["p"] <= fpr else ""
        click.echo(f"{mark:2}{p:>8} {ood:>7} {r['bpd']:7.4f} {r['corrected_bpd']:9.4f}  {r['name']}")
    if calibrated:
        click.echo(f"{flagged} of {len(rows)} images flagged (p <= {fpr})")

"""vdvae-codec score"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .files import STREAM, collected, one_line_errors, output_file, read_input, refuse_existing, say
from .options import (
    FilePath,
    device_option,
    force_option,
    json_option,
    matching,
    max_pixels_option,
    model_option,
    threads_option,
)

if TYPE_CHECKING:
    from vdvae_codec.codec.store import Released
    from vdvae_codec.scoring.score import Source


@click.command(epilog="Example: vdvae-codec score photos/ --report report.html")
@click.argument("inputs", nargs=-1, required=True, type=FilePath(allow_dash=True), callback=matching)
@model_option()
@click.option("--samples", type=click.IntRange(1), default=1, show_default=True, metavar="K",
              help="Samples of the importance weighted bound.")
@click.option("--llr", is_flag=True, help="Also LLR^{>k}, in -o and --json: one more walk for each latent layer.")
@click.option("--fpr", type=click.FloatRange(0, 1, min_open=True), default=0.01, show_default=True,
              help="Share of the images that belong that are flagged nevertheless.")
@click.option("--fail-on-ood", is_flag=True, help="Exit with 1 if an image is flagged.")
@click.option("-o", "--output", type=FilePath(dir_okay=False),
              help="All scores and terms: .jsonl, .csv or (with pyarrow) .parquet, in the order of the images.")
@click.option("--resume", is_flag=True, help="Go on with the .jsonl that an interrupted run left.")
@click.option("--report", type=FilePath(dir_okay=False), help="A page (HTML) that opens offline.")
@click.option("--heatmap", type=FilePath(dir_okay=False),
              help="A PNG of the bits of each pixel of a single image.")
@device_option()
@threads_option()
@max_pixels_option()
@force_option()
@json_option("A line of JSON per image instead of the table.")
def score(
    inputs: tuple[Path, ...], model: str, samples: int, llr: bool, fpr: float, fail_on_ood: bool, output: Path | None,
    resume: bool, report: Path | None, heatmap: Path | None, device: str, force: bool, as_json: bool,
) -> None:
    """Tell how many bits images need and how surprising they are; flag those that do not belong.

    INPUTS are images and folders; - is an image on stdin. The table is sorted, the most surprising first. bpd: bits per
    dim of the model. corrected: less what a general coder needs. ood: how far the image's bits, layer by layer, are
    from those of the model's calibration images; about 1 if it belongs. p: the share of calibration images that are as
    surprising; an image is flagged where it is at most --fpr. Without a calibration (see vdvae-codec calibrate) there
    is no ood, and nothing is flagged.
    """
    if heatmap is not None and (len(inputs) > 1 or inputs[0].is_dir()):
        raise click.UsageError("--heatmap is for a single image")
    if output is not None and output.suffix not in (".jsonl", ".csv", ".parquet"):
        raise click.UsageError(f"{output}: expected .jsonl, .csv or .parquet")
    if heatmap is not None and heatmap.suffix.lower() != ".png":
        raise click.UsageError(f"{heatmap}: expected .png")
    if report is not None and report.suffix.lower() not in (".html", ".htm"):
        raise click.UsageError(f"{report}: expected .html")
    if resume and (output is None or output.suffix != ".jsonl"):
        raise click.UsageError("--resume goes on with a .jsonl: give its name with -o")
    failed, fail = collected()
    with one_line_errors():
        for out in (output, report, heatmap):
            if out is not None:
                refuse_existing(out, force, inputs)
        from vdvae_codec.codec.store import load_released
        from vdvae_codec.scoring.output import rows_file
        from vdvae_codec.scoring.score import find_calibration, named, score_images
        from vdvae_codec.scoring.scores import row

        released = load_released(model, device)
        calibration = find_calibration(released, samples)
        images = list(named((("-", read_input(path)) if path == STREAM else path for path in inputs), fail))
        head = {"digest": released.digest.hex(), "samples": samples, "llr": llr}
        with contextlib.ExitStack() as stack:
            done, write = stack.enter_context(rows_file(output, head, resume)) if output else ([], None)
            known = {old["name"]: old for old in done}
            rows = list(known.values())
            left = ((name, image) for name, image in images if name not in known)
            for scored in score_images(released.model, left, samples, fail, llr):
                rows.append(row(scored, released.config, calibration))
                if write is not None:
                    write(rows[-1])
        rows.sort(key=lambda r: (r.get("p", 1.0), -r.get("ood", 0.0), -r["bpd"]))
        flagged = [r for r in rows if r.get("p", 1.0) <= fpr]
        if heatmap is not None and rows:
            write_heatmap(released, *images[0], heatmap, samples, force)
        if report is not None:
            from vdvae_codec.scoring.report import make_report

            page = make_report(rows, dict(images), released.model, calibration, model, fpr)
            with output_file(report, force) as file:
                file.write(page.encode())
    if rows:
        show(rows, len(flagged), calibration is not None, as_json, fpr)
    if failed:
        say(f"{len(failed)} of {len(images)} images could not be read", err=True)
    if not rows:
        raise click.ClickException("no images were scored")
    if failed or (fail_on_ood and flagged):
        raise click.exceptions.Exit(1)


def write_heatmap(released: Released, name: str, source: Source, out: Path, samples: int, force: bool) -> None:
    from vdvae_codec.scoring.output import heat_picture
    from vdvae_codec.scoring.score import read_pixels
    from vdvae_codec.scoring.terms import image_terms

    _, (bits,) = image_terms(released.model, [read_pixels(source, name)], samples)
    with output_file(out, force) as file:
        heat_picture(bits).save(file, "PNG")


def show(rows: list[dict[str, Any]], flagged: int, calibrated: bool, as_json: bool, fpr: float) -> None:
    """Prints the table, or its rows as JSON."""
    if as_json:
        for r in rows:
            click.echo(json.dumps(r | ({"flagged": r["p"] <= fpr} if calibrated else {})))
        return
    if not calibrated:
        say("notice: this model has no calibration, so nothing is flagged: see vdvae-codec calibrate", err=True)
    say(f"{'':2}{'p':>8} {'ood':>7} {'bpd':>7} {'corrected':>9}  name")
    for r in rows:
        p, ood = (f"{r['p']:.5f}", f"{r['ood']:.2f}") if calibrated else ("-", "-")
        mark = "!" if calibrated and r["p"] <= fpr else ""
        say(f"{mark:2}{p:>8} {ood:>7} {r['bpd']:7.4f} {r['corrected_bpd']:9.4f}  {r['name']}")
    if calibrated:
        say(f"{flagged} of {len(rows)} images flagged (p <= {fpr})")

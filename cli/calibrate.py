"""vdvae-codec calibrate"""

from __future__ import annotations

import json
from pathlib import Path

import click

from .files import collected, one_line_errors, say
from .options import FilePath, device_option, json_option, max_pixels_option, threads_option


@click.command(epilog="Example: vdvae-codec calibrate models/mine held-out/")
@click.argument("model")
@click.argument("folder", type=FilePath(exists=True, file_okay=False))
@click.option("-o", "--output", type=FilePath(dir_okay=False),
              help="File; by default calibration.json in the model's folder, where score finds it.")
@click.option("--source", help="What the images are, for the file; by default the folder's name.")
@click.option("--samples", type=click.IntRange(1), default=1, show_default=True, metavar="K",
              help="Samples of the importance weighted bound, as many as score will use.")
@device_option()
@threads_option()
@max_pixels_option()
@json_option("The result as JSON.")
def calibrate(
    model: str, folder: Path, output: Path | None, source: str | None, samples: int, device: str, as_json: bool
) -> None:
    """Store what a model's bits look like on images that belong: what score compares with.

    FOLDER holds images like those that the model was trained on, but not these. An earlier calibration is replaced.
    """
    failed, fail = collected()
    with one_line_errors():
        from vdvae_codec.codec.store import WEIGHTS, find_folder, load_released
        from vdvae_codec.scoring.calibration import FILE
        from vdvae_codec.scoring.calibration import calibrate as fit
        from vdvae_codec.scoring.score import named, score_images

        released = load_released(model, device)
        images = list(named([folder]))
        scored = list(score_images(released.model, images, samples, fail))
        made = fit(scored, released.config, released.digest.hex(), source or folder.resolve().name, samples)
        out = output or find_folder(model, WEIGHTS) / FILE
        made.save(out)
    row = {"output": str(out), "images": len(scored), "features": len(made.names), "bpd": float(made.bpd.mean())}
    line = f"{out}: {len(scored)} images, {len(made.names)} features, {row['bpd']:.4f} bits per dim on average"
    say(json.dumps(row) if as_json else line)
    if failed:
        raise click.ClickException(f"{len(failed)} of {len(images)} images could not be read")

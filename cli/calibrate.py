"""vdvae-codec calibrate"""

from __future__ import annotations

from pathlib import Path

import click

from vdvae_codec.cli.common import collected, device_option, one_line_errors, threads_option, use_threads


@click.command(epilog="Example: vdvae-codec calibrate models/mine held-out/")
@click.argument("model")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False),
              help="File; by default calibration.json in the model's folder, where score finds it.")
@click.option("--source", help="What the images are, for the file; by default the folder's name.")
@click.option("--samples", type=click.IntRange(1), default=1, show_default=True, metavar="K",
              help="Of the importance weighted bound: as score will use.")
@device_option
@threads_option
def calibrate(
    model: str, folder: Path, output: Path | None, source: str | None, samples: int, device: str, threads: int | None
) -> None:
    """Store what a model's bits look like on images that belong: what score compares with.

    FOLDER holds images like those that the model was trained on, but not these. An earlier calibration is replaced.
    """
    with one_line_errors():
        from vdvae_codec.images import image_files
        from vdvae_codec.released import WEIGHTS, find_folder, load_released
        from vdvae_codec.scoring.scores import FILE
        from vdvae_codec.scoring.scores import calibrate as fit
        from vdvae_codec.scoring.stream import score_files

        use_threads(threads)
        released = load_released(model, device)
        failed, skip = collected()
        paths = [(str(path), path) for path in image_files(folder)]
        scored = list(score_files(released.model, paths, skip, samples))
        made = fit(scored, released.config, released.digest.hex(), source or folder.resolve().name, samples)
        out = output or find_folder(model, WEIGHTS) / FILE
        made.save(out)
        click.echo(
            f"{out}: {len(scored)} images, {len(made.names)} features, {made.bpd.mean():.4f} bits per dim on average"
        )
        if failed:
            raise click.ClickException(f"{len(failed)} of {len(paths)} images could not be read")

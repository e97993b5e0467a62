"""Where the bits went: files cost the exact ELBO and what is itemised beside it, and nothing else."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from codec_samples import coast_crops, png, screenshot
from image_samples import scanned

from vdvae_codec.codec.archive import Report, write
from vdvae_codec.codec.inspect import info, rates, reconstruct
from vdvae_codec.codec.store import Released, load_released
from vdvae_codec.errors import FormatError, ImageError
from vdvae_codec.images.files import picture_of


def written(images: list[np.ndarray], released: Released, fallback: bool = False) -> tuple[BytesIO, Report]:
    file, names = BytesIO(), [f"{n}" for n in range(len(images))]
    pictures = [picture_of(image, name if len(images) > 1 else "") for name, image in zip(names, images)]
    return file, write(pictures, file, released, fallback=fallback)


def test_files_cost_the_elbo_and_named_overheads() -> None:
    crops = [crop[:96, :96] for crop in coast_crops()[2:22]]
    released = load_released("photo-2", "cpu")
    file, report = written(crops, released)
    found = rates(file, released)
    elbo_bits = found["elbo_bpd"] * report.dims
    itemised = 8 * report.table_bytes + report.initial_bits
    assert abs(8 * report.output_bytes - itemised - elbo_bits) < 1e-3 * elbo_bits + 64
    assert 8 * report.table_bytes < 0.01 * elbo_bits
    assert found["file_bpd"] == 8 * len(file.getvalue()) / report.dims == report.bpd
    assert found["initial_bpd"] * report.dims == pytest.approx(report.initial_bits)


def test_rates_of_a_model_whose_latents_are_active(tiny_model: Released, photo: np.ndarray) -> None:
    file, report = written([photo], tiny_model)
    found = rates(file, tiny_model)
    # Both sides draw their own latents: 20 tiles with a deviation of some 20 bits each, of 14,000 bits each.
    assert found["net_bpd"] == pytest.approx(found["elbo_bpd"], rel=3e-3)
    assert found["elbo_bpd"] == pytest.approx(sum(found["kl_bpd"]) + sum(found["pixel_bpd"]))
    assert sum(found["kl_bpd"]) > 0.01 * found["elbo_bpd"]  # more than the difference allowed above
    assert len(found["kl_bpd"]) == 2 and len(found["pixel_bpd"]) == 10
    overhead = 8 * report.table_bytes + report.initial_bits
    assert found["file_bpd"] - found["net_bpd"] == pytest.approx(overhead / photo.size)


def test_rates_of_what_is_coded_in_the_place_of_pixels(tiny_model: Released, photo: np.ndarray) -> None:
    """Transformed images of several shapes and segments; colours that are not coded cost nothing."""
    file = BytesIO()
    images = [scanned(photo), photo[:50, :70], photo[:50, :70, :1]]
    report = write([picture_of(image, f"{n}") for n, image in enumerate(images)], file, tiny_model, segment=2,
                   fallback=False)
    assert report.transforms == ("PhotoCD", "chroma") and report.segments == 2
    found = rates(file, tiny_model)
    assert found["net_bpd"] == pytest.approx(found["elbo_bpd"], rel=5e-3)
    assert found["initial_bpd"] * report.dims == pytest.approx(report.initial_bits)


def test_rates_of_stored_files_are_refused(tiny_model: Released) -> None:
    file, report = written([screenshot(0, 64, 48)], tiny_model, fallback=True)
    assert report.stored == 1
    with pytest.raises(FormatError, match="itemised"):
        rates(file, tiny_model)


def test_info(tiny_model: Released, photo: np.ndarray) -> None:
    file, report = written([photo[:40, :70]], tiny_model)
    shown = info(file)
    assert (shown["images"], shown["segments"], shown["stored"], shown["transforms"]) == (1, 1, 0, [])
    assert (shown["width"], shown["height"], shown["channels"], sum(shown["groups"])) == (70, 40, 3, 6)
    assert shown["models"] == [f"tiny {tiny_model.digest.hex()}"]
    assert shown["file_bytes"] == report.output_bytes == len(file.getvalue())
    assert all(shown[key] == getattr(report, key) for key in ("word_bytes", "stored_bytes", "table_bytes"))
    several, report = written([scanned(photo), screenshot(0, 64, 48)], load_released("photo-2", "cpu"), fallback=True)
    shown = info(several)
    assert (shown["images"], shown["stored"], shown["transforms"]) == (2, 1, ["PhotoCD", "chroma"])
    assert "width" not in shown and shown["file_bytes"] == report.output_bytes
    with pytest.raises(FormatError, match=r"not a \.vdz"):
        info(BytesIO(png(photo)))


def test_reconstructions_leave_the_random_state(tiny_model: Released, photo: np.ndarray) -> None:
    before = torch.get_rng_state()
    picture, report = reconstruct(png(photo[:50, :70]), "x.png", tiny_model, "cpu")
    assert torch.equal(torch.get_rng_state(), before)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    assert (report["model"], report["width"], report["height"], report["channels"]) == ("tiny", 70, 50, 3)
    assert [row["stride"] for row in report["resolutions"]] == [8, 4, 2]
    bits = sum(row["bits"] for row in report["resolutions"])
    assert bits == pytest.approx(report["elbo_bpd"] * 50 * 70 * 3)
    again, _ = reconstruct(png(photo[:50, :70]), "x.png", tiny_model, "cpu")
    assert np.array_equal(picture, again)
    with pytest.raises(ImageError, match="no 8-bit grey or RGB"):
        reconstruct(png(np.zeros((8, 8, 4), np.uint8)), "x.png", tiny_model)

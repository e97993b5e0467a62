"""Scores: terms by the walk, what they are made of, and the public function."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vdvae_codec.codec.group import Group
from vdvae_codec.codec.store import Released
from vdvae_codec.codec.visitors import exact_elbo
from vdvae_codec.errors import ImageError, ModelError
from vdvae_codec.exact.arithmetic import plain
from vdvae_codec.model.config import ModelConfig
from vdvae_codec.model.layers.phase import PhaseConfig
from vdvae_codec.model.sampling import Sample
from vdvae_codec.model.vdvae import VDVAE
from vdvae_codec.scoring.score import Source, named, score, score_arrays, score_images
from vdvae_codec.scoring.scores import Scored, features
from vdvae_codec.scoring.terms import BATCH_PIXELS, Terms, image_terms


@pytest.fixture(scope="module")
def images(photo: np.ndarray) -> list[np.ndarray]:
    """Photographs of several sizes, one of them grey."""
    return [photo, photo[:32, :32], photo[5:60, 20:53, :1], photo[64:96, 32:64]]


@pytest.fixture(scope="module")
def terms(tiny_model: Released, images: list[np.ndarray]) -> list[Terms]:
    return image_terms(tiny_model.model, images, llr=True)[0]


def test_terms_are_the_bits_of_the_codec(tiny_model: Released, photo: np.ndarray) -> None:
    tile = photo[:32, :32]
    (found,), (heat,) = image_terms(tiny_model.model, [tile])
    x = torch.from_numpy(tile[..., [1, 0, 2]].transpose(2, 0, 1).copy())[None].float()
    with plain():
        exact = exact_elbo(tiny_model.model, tiny_model.tables, Group(torch.ones(1, 2, 32, 32, dtype=torch.bool)), x)
    assert sum(found.pixel_bits) == pytest.approx(sum(exact.pixel_bits), rel=0.02)
    assert found.bound_bits == pytest.approx(sum(found.pixel_bits) + sum(found.kl_bits))
    assert heat.shape == (32, 32) and float(heat.sum()) == pytest.approx(found.bound_bits, rel=1e-4)


def test_neither_batch_nor_order_matters(tiny_model: Released, images: list[np.ndarray], terms: list[Terms]) -> None:
    for chosen in ([2], [3, 1], [1, 0, 3, 2]):
        for n, again in zip(chosen, image_terms(tiny_model.model, [images[n] for n in chosen], llr=True)[0]):
            for name, value in vars(terms[n]).items():
                assert getattr(again, name) == pytest.approx(value, abs=1e-3 * images[n].size), name


def test_terms_of_grey_images_leave_the_copies_out(tiny_model: Released, photo: np.ndarray) -> None:
    grey = photo[:32, :32, :1]
    (one, three), _ = image_terms(tiny_model.model, [grey, np.repeat(grey, 3, 2)])
    assert all(a < b for a, b in zip(one.pixel_bits, three.pixel_bits)) and one.kl_bits == three.kl_bits


def test_latents_from_their_priors(tiny_model: Released, images: list[np.ndarray], terms: list[Terms]) -> None:
    """All from the prior: nothing of the posterior is left, so no KL; each further one drops its own. If asked for."""
    without = image_terms(tiny_model.model, images)[0]
    assert without == [replace(term, prior_bits=()) for term in terms]
    found = terms[0]
    assert len(found.prior_bits) == len(found.kl_bits) == 2 and min(found.kl_bits) > 0
    scored = Scored("", 160, 120, 3, found, 1.0)
    total = sum(found.kl_bits) + sum(found.pixel_bits)
    assert scored.llr_bpd == pytest.approx([(b - total) / 57600 for b in found.prior_bits])


def test_samples_tighten_the_bound(tiny_model: Released, images: list[np.ndarray]) -> None:
    (many,), _ = image_terms(tiny_model.model, [images[3]], samples=16)
    (fewer,), _ = image_terms(tiny_model.model, [images[3]], samples=2)
    assert many.bound_bits < fewer.bound_bits
    assert many.bound_bits < sum(many.kl_bits) + sum(many.pixel_bits)


def test_pixels_drawn_by_the_model_are_expected(tiny_model: Released) -> None:
    """An image that a model draws costs about what it expects; noise costs more."""
    torch.manual_seed(0)
    x = torch.zeros(1, 3, 32, 32)
    with plain():
        tiny_model.model.walk(x, Sample())
    drawn = x[0, [1, 0, 2]].permute(1, 2, 0).to(torch.uint8).numpy()
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    (own, foreign), _ = image_terms(tiny_model.model, [drawn, noise])
    assert sum(own.pixel_bits) == pytest.approx(sum(own.expected_bits), rel=0.05)
    assert sum(foreign.pixel_bits) > 1.1 * sum(foreign.expected_bits)


def test_bits_by_colour_add_up(terms: list[Terms], images: list[np.ndarray]) -> None:
    for term, image in zip(terms, images):
        assert len(term.colour_bits) == image.shape[2]
        assert sum(term.colour_bits) == pytest.approx(sum(term.pixel_bits), rel=1e-4)


def test_squares_are_those_of_the_pixels_bits(tiny_float: VDVAE, images: list[np.ndarray]) -> None:
    """Of an image of one tile and of one of several, whose tiles' cells are those of the image."""
    found, heat = image_terms(tiny_float, images)
    assert {bits.shape for bits in heat} != {heat[0].shape}
    for term, bits in zip(found, heat):
        height, width = (side // 8 * 8 for side in bits.shape)
        if (height, width) == bits.shape:
            cells = bits.reshape(height // 8, 8, width // 8, 8).mean((1, 3))
            assert term.squares[3] == pytest.approx(64 * float((cells**2).sum()), rel=1e-4)
        assert term.squares[0] == pytest.approx(float((bits**2).sum()), rel=1e-4)
        assert term.squares[0] >= term.squares[1] * 0.999


def test_inactive_latents_cost_nothing(tiny_float: VDVAE, images: list[np.ndarray]) -> None:
    model = copy.deepcopy(tiny_float)
    model.latent_layers[0].active.fill_(False)
    (found,), _ = image_terms(model, images[3:], llr=True)
    assert found.kl_bits[0] == 0 < found.kl_bits[1] and len(found.prior_bits) == 1
    model.latent_layers[1].active.fill_(False)
    (found,), _ = image_terms(model, images[3:], samples=2, llr=True)
    assert found.kl_bits == (0, 0) and found.prior_bits == ()
    assert found.bound_bits == pytest.approx(sum(found.pixel_bits))


def test_models_without_latents(images: list[np.ndarray]) -> None:
    phase = PhaseConfig(2, 12, 12, ((0, 0), (1, 1), (0, 1), (1, 0)), blocks=1, mixtures=2)
    model = VDVAE(ModelConfig(layers=(phase,), tile=32)).requires_grad_(False)
    (found,) = score_arrays(model, ["x"], images[3:])
    assert found.terms.kl_bits == found.llr_bpd == () and len(found.terms.pixel_bits) == 4
    assert set(features(found, model.config)) == {
        "rate/2", "excess/2", "colour/2", "colour/3", "complexity", "ratio", "spread/1", "spread/2", "spread/4",
        "spread/8",
    }  # fmt: skip


def test_scores_by_their_formulas(tiny_model: Released) -> None:
    squares = (100 * (10.1**2 + 4**2),) * 4  # of bits with a standard deviation of 4
    terms = Terms((0.0, 10.0), (100.0,) * 10, (500.0, 250.0, 250.0), (90.0,) * 10, (1015.0,), squares, 1010.0)
    scored = Scored("x", 10, 10, 3, terms, 700.0)
    assert scored.bpd == pytest.approx(1010 / 300) and scored.corrected_bpd == pytest.approx(310 / 300)
    assert scored.llr_bpd == pytest.approx([5 / 300])
    found = features(scored, tiny_model.config)
    assert {"rate/8", "rate/4", "rate/2", "excess/2", "kl/4", "complexity", "ratio"} <= set(found)
    assert not {"kl/8", "share/4"} & set(found) and found["excess/2"] == pytest.approx(30 / (300 * 3 / 4))
    assert found["rate/2"] == pytest.approx(math.log2(300 / 225 + 1e-3))
    assert found["ratio"] == pytest.approx(math.log2(1010 / 700), abs=1e-3)
    assert found["colour/2"] == found["colour/3"] == pytest.approx(-1, abs=1e-3)
    assert found["spread/1"] == pytest.approx(math.log2(4.01 / 10.11))
    both = features(replace(scored, terms=replace(terms, kl_bits=(30.0, 10.0))), tiny_model.config)
    assert both["kl/8"] == pytest.approx(math.log2(0.101)) and both["kl/4"] == found["kl/4"]
    assert both["share/8"] == pytest.approx(math.log2(30 / 1000), abs=0.02)
    assert both["share/4"] == pytest.approx(math.log2(40 / 1000), abs=0.02)
    nothing = replace(scored, terms=replace(terms, bound_bits=-1.0))  # chance can make a bound of several samples so
    assert math.isfinite(features(nothing, tiny_model.config)["ratio"])


def test_scored_arrays_have_their_complexity(tiny_model: Released, photo: np.ndarray) -> None:
    flat = np.full_like(photo[:32, :32], 9)
    a, b = score_arrays(tiny_model.model, ["a", "b"], [photo[:32, :32], flat])
    assert (a.name, a.width, a.dims) == ("a", 32, 3072) and a.complexity_bits > 5 * b.complexity_bits > 0


def as_png(pixels: np.ndarray) -> bytes:
    out = BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_score_takes_files_bytes_and_arrays(calibrated: Path, photo: np.ndarray, tmp_path: Path) -> None:
    crop = photo[:32, :32]
    file = tmp_path / "crops" / "a.png"
    file.parent.mkdir()
    file.write_bytes(as_png(crop))
    given = [file, str(file), file.parent, as_png(crop), crop, ("b", crop), ("c", file)]
    rows = score(given, model=str(calibrated), device="cpu")
    assert [row["name"] for row in rows] == [str(file)] * 3 + ["3", "4", "b", "c"]
    assert all(row | {"name": ""} == rows[0] | {"name": ""} for row in rows)
    assert 0 < rows[0]["p"] <= 1 and 0.2 < rows[0]["ood"] < 5
    for alone in (file, str(file.parent), as_png(crop), crop, np.stack([crop])):
        (row,) = score(alone, model=str(calibrated), device="cpu")
        assert row["bpd"] == rows[0]["bpd"]
    assert score([], model=str(calibrated)) == []


def test_score_of_images_of_other_kinds(tiny_folder: Path, photo: np.ndarray) -> None:
    """Grey as it is, with or without an axis of channels; what is not 8-bit grey or RGB as RGB. No calibration."""
    crop, alpha = photo[:32, :32], np.dstack([photo[:32, :32], photo[:32, :32, :1]])
    grey, flat, rgb, rgba = score([crop[..., :1], crop[..., 0], crop, as_png(alpha)], model=str(tiny_folder))
    assert grey["channels"] == 1 and grey | {"name": "1"} == flat
    assert rgb["channels"] == 3 and rgb | {"name": "3"} == rgba
    assert "ood" not in rgb and "p" not in rgb


def test_16_bits_are_scored_by_the_highest_8(tiny_folder: Path, photo: np.ndarray, tmp_path: Path) -> None:
    low = np.random.default_rng(0).integers(0, 256, photo.shape, np.uint16)
    deep = photo.astype(np.uint16) << 8 | low
    packed = BytesIO()
    Image.fromarray(deep[..., 0]).save(packed, "TIFF", compression="tiff_lzw")
    (tmp_path / "packed.tif").write_bytes(packed.getvalue())
    wide, grey, file, eight, first = score(
        [deep, deep[..., :1], tmp_path / "packed.tif", photo, np.repeat(photo[..., :1], 3, 2)], model=str(tiny_folder)
    )
    assert wide["bpd"] == eight["bpd"] and file["bpd"] == first["bpd"]
    assert grey["bpd"] == score([photo[..., :1]], model=str(tiny_folder))[0]["bpd"]


def test_what_score_refuses(calibrated: Path, tiny_folder: Path, mixed: Path, photo: np.ndarray) -> None:
    model = str(tiny_folder)
    for bad in (mixed, mixed / "absent.png", photo.astype(float), photo[None, None, :0], [b""], [("odd", photo[:0])]):
        with pytest.raises(ImageError):
            score(bad, model=model)
    with pytest.raises(ImageError, match=r"absent\.png: No such file"):
        score(mixed / "absent.png", model=model)
    with pytest.raises(ModelError, match="samples = 1"):
        score(photo, model=str(calibrated), samples=2)
    with pytest.raises(ModelError, match="neither"):
        score(photo, model="absent")
    with pytest.raises(ValueError, match="samples"):
        score(photo, model=model, samples=0)


def test_score_finds_the_odd_ones(calibrated: Path, mixed: Path) -> None:
    (mixed / "broken.png").unlink()
    rows = score(mixed, model=str(calibrated))
    assert [row["name"] for row in rows] == sorted(row["name"] for row in rows) and len(rows) == 15
    flagged = {Path(row["name"]).stem for row in rows if row["p"] <= 0.02}
    assert {"odd-noise", "odd-flat"} <= flagged and sum(name.startswith("photo") for name in flagged) <= 2


def test_unreadable_images_are_named_and_left_out(tiny_model: Released, mixed: Path) -> None:
    failed: list[str] = []
    found = list(score_images(tiny_model.model, named(mixed), failed=failed.append))
    assert len(found) == 15 and len(failed) == 1 and "broken.png" in failed[0]


def test_few_images_are_held_at_a_time(tiny_model: Released, photo: np.ndarray) -> None:
    taken = 0

    def stream() -> Iterator[tuple[str, Source]]:
        nonlocal taken
        for n in range(100):
            taken += 1
            yield str(n), photo

    first = next(score_images(tiny_model.model, stream()))
    assert first.name == "0" and (taken - 1) * photo.size < 3 * BATCH_PIXELS["cpu"] <= taken * photo.size


def test_score_leaves_the_process_as_it_was(tiny_folder: Path, photo: np.ndarray) -> None:
    """And what the process has chosen changes no score."""

    def state() -> tuple[object, ...]:
        return (
            torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), torch.get_default_dtype(),
            torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_num_threads(),
            torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu"), Image.MAX_IMAGE_PIXELS,
        )

    usual = score(photo[:32, :32], model=str(tiny_folder), device="cpu")
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            before = state()
            assert score(photo[:32, :32], model=str(tiny_folder), device="cpu") == usual
            assert state() == before
    finally:
        torch.set_default_dtype(torch.float32)

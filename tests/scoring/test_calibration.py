"""Calibrations: the fit, p-values, and their files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vdvae_codec.codec.store import Released
from vdvae_codec.errors import ModelError
from vdvae_codec.scoring.calibration import Calibration, Fit, calibrate
from vdvae_codec.scoring.scores import Scored, features, row
from vdvae_codec.scoring.terms import Terms


def make_calibration(count: int = 400, seed: int = 0) -> Calibration:
    rng = np.random.default_rng(seed)
    return Calibration.of("00", "numbers", 1, ("a", "b"), rng.standard_normal((count, 2)), rng.standard_normal(count))


def test_fit_is_robust_and_sees_correlations() -> None:
    rng = np.random.default_rng(0)
    first = rng.standard_normal(2000)
    vectors = np.stack([first, first + 0.1 * rng.standard_normal(2000)], 1)
    vectors[:20] = 1e6  # does not move it
    fit = Fit.of(vectors)
    centre, across, along = fit.distance(np.array([[0.0, 0.0], [1.0, -1.0], [1.0, 1.0]]))
    assert centre < 0.2 and along < 2 and across > 5


def test_p_values_are_uniform_on_what_belongs() -> None:
    made = make_calibration()
    fresh = np.random.default_rng(1).standard_normal((4000, 2))
    p = np.array([made.p_value(made.surprise(v)) for v in fresh])
    for share in (0.01, 0.1, 0.5):
        assert float((p <= share).mean()) == pytest.approx(share, abs=0.015 + 0.1 * share)
    far = [made.p_value(d) for d in (4.0, 8.0, 16.0)]
    assert far[0] > far[1] > far[2] > 0 and far[1] < 1 / 401


def test_calibration_files(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    made = make_calibration()
    made.save(file)
    assert list(tmp_path.iterdir()) == [file]
    again = Calibration.load(file, "00", 1)
    assert again.surprise(np.array([1.0, 2.0])) == pytest.approx(made.surprise(np.array([1.0, 2.0])), rel=1e-3)
    for digest, samples in (("01", 1), ("00", 2)):
        with pytest.raises(ModelError, match="calibrate"):
            Calibration.load(file, digest, samples)
    with pytest.raises(ModelError, match="too few"):
        make_calibration(19)


@pytest.mark.parametrize("change", [
    {"version": 2}, {"vectors": None}, {"vectors": [[1.0], [2.0, 3.0]]}, {"bpd": [[1.0]] * 400}, {"bpd": [1.0]},
    {"features": ["a"]}, {"features": 3}, {"vectors": [[math.inf, 0.0]] * 400}, {"digest": 5},
])  # fmt: skip
def test_damaged_calibration_files(tmp_path: Path, change: dict[str, object]) -> None:
    file = tmp_path / "calibration.json"
    make_calibration().save(file)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ModelError, match=r"calibration\.json"):
        Calibration.load(file, "00", 1)


@pytest.mark.parametrize("text", ["", "[]", "3", '{"version": 1}', "\x00"])
def test_what_is_no_calibration(tmp_path: Path, text: str) -> None:
    file = tmp_path / "calibration.json"
    file.write_text(text)
    with pytest.raises(ModelError, match="cannot be read"):
        Calibration.load(file, "00", 1)


def test_calibration_on_scored_images(tiny_model: Released) -> None:
    config = tiny_model.config
    squares = (100 * (10.1**2 + 4**2),) * 4  # of bits with a standard deviation of 4
    terms = Terms((0.0, 10.0), (100.0,) * 10, (500.0, 250.0, 250.0), (90.0,) * 10, (1015.0,), squares, 1010.0)
    scored = Scored("x", 10, 10, 3, terms, 700.0)
    made = calibrate([scored] * 20, config, "00", "x", 1)
    assert made.typicality(scored.bpd + 1) == pytest.approx(1)
    usual = made.surprise(made.vector(features(scored, config)))
    assert math.isfinite(usual) and made.names == tuple(sorted(features(scored, config)))
    grey = replace(scored, terms=replace(terms, colour_bits=(1000.0,)))  # has no colours to surprise by
    assert made.surprise(made.vector(features(grey, config))) == usual
    assert calibrate([scored] * 20 + [grey] * 20, config, "00", "x", 1).names == made.names
    found = row(scored, config, made)
    assert found["ood"] == usual and found["p"] == made.p_value(usual) and found["typicality"] == pytest.approx(0)

"""Scores: terms by the walk, what they are made of, the calibration, the commands and the report."""

from __future__ import annotations

import base64
import csv
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import Arrays
from PIL import Image, ImageFilter

from vdvae_codec.cli.main import main
from vdvae_codec.errors import ModelError
from vdvae_codec.hierarchy import Group, exact_elbo
from vdvae_codec.released import Released
from vdvae_codec.scoring.scores import Calibration, Fit, Scored, calibrate, features
from vdvae_codec.scoring.stream import heat_picture, score_arrays
from vdvae_codec.scoring.terms import Terms, image_terms
from vdvae_codec.training.data import Crops

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def images(photo: np.ndarray) -> list[np.ndarray]:
    """Photographs of several sizes, one of them grey."""
    return [photo, photo[:32, :32], photo[5:60, 20:53, :1], photo[64:96, 32:64]]


@pytest.fixture(scope="module")
def terms(tiny_model: Released, images: list[np.ndarray]) -> list[Terms]:
    return image_terms(tiny_model.model, images)[0]


def test_terms_are_the_bits_of_the_codec(tiny_model: Released, photo: np.ndarray) -> None:
    tile = photo[:32, :32]
    (found,), (heat,) = image_terms(tiny_model.model, [tile])
    x = torch.from_numpy(tile[..., [1, 0, 2]].transpose(2, 0, 1).copy())[None].float()
    exact = exact_elbo(tiny_model.model, tiny_model.tables, Group(torch.ones(1, 32, 32, dtype=torch.bool), 3), x)
    assert sum(found.pixel_bits) == pytest.approx(sum(exact.pixel_bits), rel=0.02)
    assert found.bound_bits == pytest.approx(sum(found.pixel_bits) + sum(found.kl_bits))
    assert heat.shape == (32, 32) and float(heat.sum()) == pytest.approx(found.bound_bits, rel=1e-4)


def test_neither_batch_nor_order_matters(tiny_model: Released, images: list[np.ndarray], terms: list[Terms]) -> None:
    for chosen in ([2], [3, 1], [1, 0, 3, 2]):
        for n, again in zip(chosen, image_terms(tiny_model.model, [images[n] for n in chosen])[0]):
            for name, value in vars(terms[n]).items():
                assert getattr(again, name) == pytest.approx(value, abs=1e-3 * images[n].size), name


def test_terms_of_grey_images_leave_the_copies_out(tiny_model: Released, photo: np.ndarray) -> None:
    grey = photo[:32, :32, :1]
    (one, three), _ = image_terms(tiny_model.model, [grey, np.repeat(grey, 3, 2)])
    assert all(a < b for a, b in zip(one.pixel_bits, three.pixel_bits)) and one.kl_bits == three.kl_bits


def test_latents_from_their_priors(tiny_model: Released, terms: list[Terms]) -> None:
    """All from the prior: nothing of the posterior is left, so no KL; each further one drops its own."""
    found = terms[0]
    assert len(found.prior_bits) == len(found.kl_bits) == 2 and min(found.kl_bits) > 0
    scored = Scored("", 160, 120, 3, found, 1.0)
    total = sum(found.kl_bits) + sum(found.pixel_bits)
    assert scored.llr_bpd == pytest.approx([(b - total) / 57600 for b in found.prior_bits])


def test_samples_tighten_the_bound(tiny_model: Released, images: list[np.ndarray], terms: list[Terms]) -> None:
    (many,), _ = image_terms(tiny_model.model, [images[3]], samples=16)
    (fewer,), _ = image_terms(tiny_model.model, [images[3]], samples=2)
    assert many.bound_bits < fewer.bound_bits
    assert many.bound_bits < sum(many.kl_bits) + sum(many.pixel_bits)


def test_pixels_drawn_by_the_model_are_expected(tiny_model: Released) -> None:
    """An image that a model draws costs about what it expects; noise costs more."""
    torch.manual_seed(0)
    x = torch.zeros(1, 3, 32, 32)
    from vdvae_codec.model.vdvae import Sample

    with torch.inference_mode():
        tiny_model.model.walk(x, Sample())
    drawn = x[0, [1, 0, 2]].permute(1, 2, 0).to(torch.uint8).numpy()
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    (own, foreign), _ = image_terms(tiny_model.model, [drawn, noise])
    assert sum(own.pixel_bits) == pytest.approx(sum(own.expected_bits), rel=0.05)
    assert sum(foreign.pixel_bits) > 1.1 * sum(foreign.expected_bits)


def test_fit_is_robust_and_sees_correlations() -> None:
    rng = np.random.default_rng(0)
    first = rng.standard_normal(2000)
    vectors = np.stack([first, first + 0.1 * rng.standard_normal(2000)], 1)
    vectors[:20] = 1e6  # does not move it
    fit = Fit.of(vectors)
    inside, across, along = fit.distance(np.array([[0.0, 0.0], [1.0, -1.0], [1.0, 1.0]]))
    assert inside < 0.2 and along < 2 and across > 5


def make_calibration(count: int = 400, seed: int = 0) -> Calibration:
    rng = np.random.default_rng(seed)
    return Calibration.of("00", "numbers", 1, ("a", "b"), rng.standard_normal((count, 2)), rng.standard_normal(count))


def test_p_values_are_uniform_on_what_belongs() -> None:
    made = make_calibration()
    fresh = np.random.default_rng(1).standard_normal((4000, 2))
    p = np.array([made.p_value(made.surprise(v)) for v in fresh])
    for share in (0.01, 0.1, 0.5):
        assert float((p <= share).mean()) == pytest.approx(share, abs=0.015 + 0.1 * share)
    far = [made.p_value(d) for d in (4.0, 8.0, 16.0)]
    assert far[0] > far[1] > far[2] > 0 and far[1] < 1 / 401


def test_calibration_files(tmp_path: Path) -> None:
    made = make_calibration()
    made.save(tmp_path / "calibration.json")
    again = Calibration.load(tmp_path / "calibration.json", "00", 1)
    assert again.surprise(np.array([1.0, 2.0])) == pytest.approx(made.surprise(np.array([1.0, 2.0])), rel=1e-3)
    for digest, samples in (("01", 1), ("00", 2)):
        with pytest.raises(ModelError, match="calibrate"):
            Calibration.load(tmp_path / "calibration.json", digest, samples)
    (tmp_path / "calibration.json").write_text('{"version": 1}')
    with pytest.raises(ModelError, match="cannot be read"):
        Calibration.load(tmp_path / "calibration.json", "00", 1)
    with pytest.raises(ModelError, match="too few"):
        make_calibration(19)


def test_scores_by_their_formulas(tiny_model: Released) -> None:
    terms = Terms((0.0, 10.0), (100.0,) * 10, (500.0, 250.0, 250.0), (90.0,) * 10, (1015.0,), 1010.0)
    scored = Scored("x", 10, 10, 3, terms, 700.0)
    assert scored.bpd == pytest.approx(1010 / 300) and scored.corrected_bpd == pytest.approx(310 / 300)
    assert scored.llr_bpd == pytest.approx([5 / 300])
    found = features(scored, tiny_model.config)
    assert {"rate/8", "rate/4", "rate/2", "excess/2", "kl/1", "llr/1", "complexity", "ratio"} <= set(found)
    assert "kl/0" not in found and found["excess/2"] == pytest.approx(30 / (300 * 3 / 4))
    made = calibrate([replace(scored, name=str(n)) for n in range(20)], tiny_model.config, "00", "x", 1)
    assert made.typicality(scored.bpd + 1) == pytest.approx(1)
    assert math.isfinite(made.surprise(made.vector(scored, tiny_model.config)))
    assert found["colour/2"] == found["colour/3"] == pytest.approx(-1, abs=1e-3)
    grey = replace(scored, terms=replace(terms, colour_bits=(1000.0,)))  # has no colours to surprise by
    assert made.surprise(made.vector(grey, tiny_model.config)) == made.surprise(made.vector(scored, tiny_model.config))


def test_bits_by_colour_add_up(terms: list[Terms], images: list[np.ndarray]) -> None:
    for term, image in zip(terms, images):
        assert len(term.colour_bits) == image.shape[2]
        assert sum(term.colour_bits) == pytest.approx(sum(term.pixel_bits), rel=1e-4)


@pytest.fixture(scope="module")
def calibrated(tiny_folder: Path, photo: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny model, calibrated by the command on 80 crops of a photograph."""
    folder = tmp_path_factory.mktemp("scoring")
    shutil.copytree(tiny_folder, folder / "tiny")
    (folder / "reference").mkdir()
    crops = Crops(Arrays({"": photo}), 32, "none")
    for n in range(80):
        Image.fromarray(crops.crop((7, n))).save(folder / "reference" / f"{n:02}.png")
    result = invoke("calibrate", folder / "tiny", folder / "reference")
    assert "80 images" in result.output
    return folder / "tiny"


@pytest.fixture
def mixed(photo: np.ndarray, tmp_path: Path) -> Path:
    """Twelve crops of the photograph, and some that do not belong."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    crops = Crops(Arrays({"": photo}), 32, "none")
    for n in range(12):
        Image.fromarray(crops.crop((8, n))).save(folder / f"photo{n:02}.png")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / "odd-noise.png")
    Image.fromarray(np.full((32, 32, 3), 77, np.uint8)).save(folder / "odd-flat.png")
    blurred = Image.fromarray(crops.crop((8, 0))).filter(ImageFilter.GaussianBlur(4))
    blurred.save(folder / "odd-blur.png")
    (folder / "broken.png").write_text("no image")
    return folder


def invoke(*arguments: object, status: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == status, result.output
    return result


def test_score_finds_the_odd_ones(calibrated: Path, mixed: Path, tmp_path: Path) -> None:
    result = invoke("score", mixed, "--model", calibrated, "--json", "--fpr", 0.02)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) == 15 and [r["p"] for r in rows] == sorted(r["p"] for r in rows)
    flagged = {Path(r["name"]).stem for r in rows if r["flagged"]}
    assert {"odd-noise", "odd-flat"} <= flagged and sum(name.startswith("photo") for name in flagged) <= 2
    assert "broken.png" in result.stderr and "1 of 16 images could not be read" in result.stderr
    invoke("score", mixed, "--model", calibrated, "--fail-on-ood", status=1)
    text = invoke("score", mixed / "photo00.png", "--model", calibrated, "--heatmap", tmp_path / "heat.png")
    assert "of 1 images flagged" in text.output
    with Image.open(tmp_path / "heat.png") as heat:
        assert heat.size == (32, 32)


def test_rows_in_files(calibrated: Path, mixed: Path, tmp_path: Path) -> None:
    invoke("score", mixed, "--model", calibrated, "-o", tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open() as file:
        table = list(csv.DictReader(file))
    invoke("score", mixed, "--model", calibrated, "-o", tmp_path / "rows.jsonl")
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [r["name"] for r in rows] == [r["name"] for r in table] and len(rows) == 15
    assert [float(r["p"]) for r in table] == [r["p"] for r in rows]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mixed", "rows.csv", "rows.jsonl"]
    # an interrupted run left half of a line
    first = json.dumps({"digest": json.loads((calibrated / "calibration.json").read_text())["digest"], "samples": 1})
    marked = rows[0] | {"bpd": 123.0}
    (tmp_path / "half.jsonl.partial").write_text(f"{first}\n{json.dumps(marked)}\n{lines[1][:40]}")
    invoke("score", mixed, "--model", calibrated, "-o", tmp_path / "half.jsonl", "--resume")
    again = [json.loads(line) for line in (tmp_path / "half.jsonl").read_text().splitlines()]
    assert again[0] == marked and again[1:] == rows[1:]  # what was done is kept, the rest is made
    result = invoke("score", mixed, "--model", calibrated, "-o", tmp_path / "rows.csv", status=1)
    assert "--force" in result.output


def test_what_score_refuses(calibrated: Path, tiny_folder: Path, mixed: Path, tmp_path: Path) -> None:
    invoke("score", mixed, "--heatmap", tmp_path / "x.png", status=2)
    invoke("score", mixed, "-o", tmp_path / "x.csv", "--resume", status=2)
    result = invoke("score", mixed / "photo00.png", "--model", tiny_folder)
    assert "no calibration" in result.output
    result = invoke("score", mixed, "--model", calibrated, "--samples", 2, status=1)
    assert "--samples 1" in result.output
    result = invoke("score", tmp_path / "absent.png", "--model", calibrated, status=1)
    assert "absent.png" in result.output and "no images were scored" in result.output


def test_report_holds_everything(calibrated: Path, mixed: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    (mixed / "photo00.png").rename(mixed / "<b>photo & co.png")
    invoke("score", mixed, "--model", calibrated, "--report", report)
    page = report.read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    data = json.loads(found[1])
    assert len(data["rows"]) == 15 and len(data["pictures"]) == 15 and "<b>photo & co.png" in str(data)
    assert all(len(row["bars"]) == len(data["layers"]) for row in data["rows"])
    for row in data["rows"]:
        assert sum(row["bars"]) == pytest.approx(row["bpd"], abs=0.01)
    for picture in data["pictures"].values():
        base64.b64decode(picture["heat"].partition(",")[2], validate=True)
    outside = re.sub(r'data:image/jpeg;base64,[A-Za-z0-9+/=]+', "", page)
    assert not re.search(r"https?:|src=|url\(|@import", outside)  # nothing is fetched


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_report_in_a_browser(calibrated: Path, mixed: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    invoke("score", mixed, "--model", calibrated, "--report", report)
    probe = """<script>
      document.querySelector("#head th").click();
      document.querySelector("#rows tr").click();
      document.title = [document.querySelectorAll("#rows tr").length, document.querySelectorAll("figure img").length,
        document.querySelector("dialog").open, document.querySelector("#heat").naturalWidth > 0].join(" ");
    </script></body>"""
    (tmp_path / "probe.html").write_text(report.read_text().replace("</body>", probe))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, *flags, "--virtual-time-budget=5000", "--dump-dom", f"file://{tmp_path / 'probe.html'}"],
        capture_output=True, text=True, timeout=120,
    )
    assert "<title>15 15 true" in done.stdout


def test_heat_pictures() -> None:
    picture = np.asarray(heat_picture(np.linspace(0, 9, 600, dtype=np.float32).reshape(20, 30)))
    assert picture.shape == (20, 30, 3) and picture[0, 0].sum() < picture[-1, -1].sum() == 765


def test_scored_arrays_have_their_complexity(tiny_model: Released, photo: np.ndarray) -> None:
    flat = np.full_like(photo[:32, :32], 9)
    a, b = score_arrays(tiny_model.model, ["a", "b"], [photo[:32, :32], flat])
    assert (a.name, a.width, a.dims) == ("a", 32, 3072) and a.complexity_bits > 5 * b.complexity_bits > 0

"""Temperatures, samples, reconstructions that keep a part of an image, and the pictures that show them."""

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import TINY, untrained
from PIL import Image
from torch import Tensor

from vdvae_codec import api
from vdvae_codec.checkpoint import save_tensors
from vdvae_codec.cli.main import main
from vdvae_codec.config import TrainConfig
from vdvae_codec.distributions import Gaussian, PixelMixture
from vdvae_codec.images import write_image
from vdvae_codec.model.layers import LatentLayer, PixelLayer
from vdvae_codec.model.vdvae import VDVAE, Reconstruct, Sample
from vdvae_codec.pictures import GAP, reconstructions, samples, sheet, square, strides
from vdvae_codec.released import Released
from vdvae_codec.training.plots import plot_loss, sample_sheet


@pytest.fixture(scope="module")
def x(photo: np.ndarray) -> Tensor:
    """Two crops of the photograph, (2, 3, 40, 48) float32 G, R, B."""
    crops = np.stack([photo[:40, :48], photo[60:100, 80:128]])[..., [1, 0, 2]]
    return torch.from_numpy(crops).permute(0, 3, 1, 2).float()


@pytest.fixture(scope="module")
def loud() -> VDVAE:
    """A model whose latents say much of the image, and whose pixels follow them."""
    model = untrained(TINY)
    for layer in model.layers:
        if isinstance(layer, LatentLayer):
            layer.posterior.c4.weight.mul_(50)
            layer.z_proj.weight.mul_(10)
    return model


def mixture() -> PixelMixture:
    """Two components, far apart; the second is the more likely one."""
    shape = (1, 2, 3, 40, 40)
    logits, loc = torch.zeros(shape), torch.zeros(shape)
    logits[:, 1], loc[:, 0], loc[:, 1] = 1.0, -60.0, 30.0
    base, coupling = torch.full((1, 3, 40, 40), 100.0), torch.zeros(1, 3, 40, 40)
    return PixelMixture(logits, loc, torch.full(shape, 1.0), base, coupling)


def test_temperature_of_latents() -> None:
    q = Gaussian(torch.randn(1, 4, 30, 30), torch.full((1, 4, 30, 30), 0.7))
    torch.manual_seed(3)
    expected = q.mean + torch.randn_like(q.mean) * q.log_sigma.exp()  # as every training so far has drawn
    torch.manual_seed(3)
    assert torch.equal(q.sample(), expected)
    assert torch.equal(q.sample(0), q.mean)
    for temperature in (0.3, 1.5):
        spread = float((q.sample(temperature) - q.mean).std())
        assert spread == pytest.approx(temperature * math.exp(0.7), rel=0.1)


def test_temperature_of_pixels() -> None:
    p = mixture()
    assert torch.equal(p.sample(0), torch.full((1, 3, 40, 40), 130.0))
    for temperature in (0.25, 1.0, 2.0):
        drawn = p.sample(temperature)
        likely = drawn > 85
        assert float(likely.float().mean()) == pytest.approx(1 / (1 + math.exp(-1 / temperature)), abs=0.03)
        sigma = math.e * temperature * math.pi / math.sqrt(3)  # of a logistic of scale e times the temperature
        assert float((drawn[likely] - 130).std()) == pytest.approx(sigma, rel=0.15)


def test_samples(tiny_model: Released, tiny_float: VDVAE) -> None:
    for model in (tiny_model.model, tiny_float):
        assert torch.equal(samples(model, 2, 16, 16, 0.0), samples(model, 2, 16, 16, 0.0))
        cold = samples(model, 2, 16, 16, 0.0)
        distances = []
        for temperature in (0.1, 1.0):
            torch.manual_seed(0)
            drawn = samples(model, 2, 16, 16, temperature)
            torch.manual_seed(0)
            assert torch.equal(samples(model, 2, 16, 16, temperature), drawn)
            assert not torch.equal(samples(model, 2, 16, 16, temperature), drawn)
            distances.append(float((drawn - cold).abs().mean()))
        assert 0 < distances[0] < distances[1]
    assert samples(tiny_float, 3, 13, 21, 1.0).shape == (3, 3, 13, 21)


def test_samples_in_several_batches(tiny_float: VDVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vdvae_codec.pictures.BATCH_PIXELS", 2 * 8 * 8)
    drawn = samples(tiny_float, 5, 8, 8, 1.0)
    assert drawn.shape == (5, 3, 8, 8) and len(torch.unique(drawn, dim=0)) == 5


def test_dead_latents_stay_at_the_prior_mean(tiny_float: VDVAE) -> None:
    layer = untrained(TINY).layers[0]
    assert isinstance(layer, LatentLayer)
    layer.alive[1:3] = False
    p, q = (Gaussian(torch.full((1, 4, 2, 2), mean), torch.zeros(1, 4, 2, 2)) for mean in (5.0, 9.0))
    z = Sample().latent(layer, p, lambda acts: q)
    assert torch.equal(z == 5, layer.alive.logical_not()[None, :, None, None].expand(1, 4, 2, 2))
    z = Reconstruct({}, 8, None, 1.0).latent(layer, p, lambda acts: q)
    assert z[0, :, 0, 0].tolist() == [9, 5, 5, 9]


def test_reconstructions_keep_what_they_should(tiny_model: Released, tiny_float: VDVAE, x: Tensor) -> None:
    for model in (tiny_model.model, tiny_float):
        assert strides(model) == [8, 4, 2]
        images = list(reconstructions(model, x, True, 1.0))
        for stride, image in zip(strides(model), images, strict=True):
            kept = torch.zeros(x.shape[2:], dtype=torch.bool)
            for layer in model.layers:
                if isinstance(layer, PixelLayer) and layer.stride >= stride:
                    layer.plane(kept[None, None])[:] = True
            assert torch.equal(image[:, :, kept], x[:, :, kept])
            if stride > 2:  # what was drawn is not the image's
                assert float((image != x)[:, :, ~kept].float().mean()) > 0.8
        assert torch.equal(images[-1], x)


def test_reconstructions_of_latents_alone(loud: VDVAE, x: Tensor) -> None:
    """At temperature 0 they differ from the most likely image, from resolution to resolution, and from image to image.

    Stride 2 has no latents, and so adds nothing.
    """
    nothing = samples(loud, 1, 40, 48, 0.0)
    coarse, middle, fine = reconstructions(loud, x, False, 0.0)
    assert not torch.equal(coarse[0], nothing[0]) and not torch.equal(coarse[0], coarse[1])
    assert not torch.equal(coarse, middle) and torch.equal(middle, fine)


def test_kept_latents_are_posterior_means_and_finer_ones_are_drawn(loud: VDVAE, x: Tensor) -> None:
    assert loud.encoder is not None
    zs: list[tuple[Tensor, Tensor]] = []

    class Spy(Reconstruct):
        def latent(self, layer, p, posterior):  # type: ignore[no-untyped-def]
            z = super().latent(layer, p, posterior)
            zs.append((z - posterior(self.acts).mean, z - p.mean))
            return z

    loud.walk(torch.zeros_like(x), Spy(loud.encoder(x), 8, x, 1.0))
    (coarse_q, coarse_p), (fine_q, fine_p) = zs
    assert not coarse_q.any() and coarse_p.abs().mean() > 0.1
    assert fine_q.abs().mean() > 0.1 and fine_p.abs().mean() > 0.1


def test_sheet(x: Tensor) -> None:
    plain = sheet([x, x])
    assert plain.shape == (2 * 40 + GAP, 2 * 48 + GAP, 3) and plain.dtype == np.uint8
    assert np.array_equal(plain[:40, :48], x[0, [1, 0, 2]].permute(1, 2, 0).numpy())
    assert (plain[40 : 40 + GAP] == 255).all()
    labelled = sheet([x], ["a row"], ["first", "a column with a long name"])
    assert labelled.shape[0] > 40 and labelled.shape[1] > 2 * 48 + GAP
    top, left = labelled.shape[0] - 40, sheet([x], ["a row"]).shape[1] - (2 * 48 + GAP)
    assert np.array_equal(labelled[top:, left : left + 48], plain[:40, :48])
    assert (labelled[:top, left:] < 128).any() and (labelled[top:, :left] < 128).any()
    assert square(torch.zeros(7, 3, 8, 8)).shape == (3 * 8 + 2 * GAP, 3 * 8 + 2 * GAP, 3)


def invoke(*arguments: object, status: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == status, result.output
    return result


def test_sample_command(tiny_folder: Path, tmp_path: Path) -> None:
    a, b, c, d = (tmp_path / f"{name}.png" for name in "abcd")
    common = ("sample", "--model", tiny_folder, "-n", 6, "--size", 20, "--device", "cpu")
    for out, more in ((a, ()), (b, ()), (c, ("--seed", 1)), (d, ("--temperature", 0.5))):
        assert "6 images of 20x20" in invoke(*common, "-o", out, *more).output
    with Image.open(a) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (3 * 20 + 2 * GAP, 2 * 20 + GAP))
    assert a.read_bytes() == b.read_bytes()
    assert len({p.read_bytes() for p in (a, c, d)}) == 3
    assert "a.png: exists already; --force" in invoke(*common, "-o", a, "--seed", 1, status=1).output
    assert a.read_bytes() == b.read_bytes()
    invoke(*common, "-o", a, "--seed", 1, "--force")
    assert a.read_bytes() == c.read_bytes()
    invoke(*common, "-o", tmp_path, status=2)
    invoke(*common, "-o", tmp_path / "e.png", "--temperature", -1, status=2)
    assert "neither a shipped model" in invoke("sample", "--model", "none", "-o", tmp_path / "e.png", status=1).output
    assert ".jpg: not a lossless format" in invoke(*common, "-o", tmp_path / "e.jpg", status=1).output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png", "c.png", "d.png"]


def test_sample_from_a_run_and_its_checkpoint(tiny_float: VDVAE, tmp_path: Path) -> None:
    """Of the float weights, in the size of the crops that they were trained on."""
    run, recipe = tmp_path / "run", TrainConfig(steps=1, crop=24)
    meta = {"step": 7, "seconds": 0.0, "config": dataclasses.asdict(TINY), "recipe": dataclasses.asdict(recipe)}
    tensors = {f"ema.{k}": v for k, v in tiny_float.state_dict().items()}
    save_tensors(run / "checkpoint-00000007", tensors, meta)
    for folder in (run, run / "checkpoint-00000007"):
        out = tmp_path / f"{folder.name}.png"
        assert "4 images of 24x24" in invoke("sample", "--model", folder, "-n", 4, "--device", "cpu", "-o", out).output
        torch.manual_seed(0)
        with Image.open(out) as image:
            assert np.array_equal(np.asarray(image), square(samples(tiny_float, 4, 24, 24, 1.0)))


@pytest.mark.parametrize("channels", [1, 3])
def test_reconstruct_command(tiny_folder: Path, photo: np.ndarray, tmp_path: Path, channels: int) -> None:
    source, vdz, out = tmp_path / "in.png", tmp_path / "in.vdz", tmp_path / "out.png"
    pixels = photo[:43, :90, :channels]  # several tiles, and sides that are no multiples of the stride
    source.write_bytes(write_image(pixels, {}, ".png"))
    common = (source, "--model", tiny_folder, "--device", "cpu")
    report = json.loads(invoke("reconstruct", *common, "-o", out, "--json").output)
    invoke("compress", *common, "--no-fallback", "--no-verify")
    rates = json.loads(invoke("info", vdz, "--model", tiny_folder, "--rates", "--device", "cpu", "--json").output)

    assert (report["input"], report["output"], report["model"]) == (str(source), str(out), "tiny")
    assert (report["width"], report["height"], report["channels"]) == (90, 43, channels)
    rows = report["resolutions"]
    assert [row["stride"] for row in rows] == [8, 4, 2]
    assert report["elbo_bpd"] == pytest.approx(rates["elbo_bpd"], rel=1e-12)
    assert sum(row["bits"] for row in rows) == pytest.approx(rates["elbo_bpd"] * pixels.size, rel=1e-12)
    assert [row["kl_bpd"] for row in rows] == pytest.approx([*rates["kl_bpd"], 0])
    parts = np.split(np.array(rates["pixel_bpd"]), [4, 7])
    assert [row["pixel_bpd"] for row in rows] == pytest.approx([part.sum() for part in parts])

    with Image.open(out) as image:
        figure = np.asarray(image)
    images = np.stack([np.stack([figure[y : y + 43, x : x + 90] for x in figure_x]) for y, figure_x in (
        (row, [figure.shape[1] - n * 90 - (n - 1) * GAP for n in (4, 3, 2, 1)])
        for row in (figure.shape[0] - 2 * 43 - GAP, figure.shape[0] - 43)
    )])  # (2 rows, 4 columns, 43, 90, 3)
    assert (images[0, 3] == pixels).all() and (images[1, 2:] == pixels).all()
    assert (images[1, 0, ::8, ::8] == pixels[::8, ::8]).all() and (images[0, 0, ::8, ::8] != pixels[::8, ::8]).any()
    assert (images[1, 0] != pixels).any()
    if channels == 1:
        assert (images == images[..., :1]).all()

    text = invoke("reconstruct", *common, "-o", out, "--force").output.splitlines()
    assert [line.split()[0] for line in text] == ["resolution", "1/8", "1/4", "1/2", "total"]
    assert float(text[2].split()[1]) == pytest.approx(rows[1]["bits"], abs=0.51)
    before = out.read_bytes()
    assert "out.png: exists already; --force" in invoke(
        "reconstruct", *common, "-o", out, "--temperature", 1, status=1).output
    assert out.read_bytes() == before
    invoke("reconstruct", *common, "-o", out, "--temperature", 1, "--force")
    assert out.read_bytes() != before
    streamed = invoke("reconstruct", *common, "-o", "-", "--json")
    assert streamed.stdout_bytes == before and json.loads(streamed.stderr)["resolutions"] == rows


def test_large_images_are_cropped_at_the_centre(
    tiny_folder: Path, tiny_model: Released, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "RECONSTRUCTED_SIDE", 64)
    crop = photo[28:92, 48:112]
    figure, report = api.reconstruct(write_image(photo, {}, ".png"), model=str(tiny_folder), device="cpu")
    assert (report["height"], report["width"]) == (64, 64)
    assert np.array_equal(figure[-64:, -64:], crop)
    kl, pixel = api.elbo_bits(crop, tiny_model, (32, 32))
    assert report["elbo_bpd"] == pytest.approx((sum(kl) + sum(pixel)) / crop.size)


def test_what_no_model_codes_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "palette.png"
    Image.new("P", (20, 20)).save(source)
    out = tmp_path / "out.png"
    result = invoke("reconstruct", source, "-o", out, "--model", tiny_folder, status=1)
    assert re.fullmatch(r"Error: .*palette\.png: no 8-bit .*\n", result.output) and not out.exists()


def row(step: int, *, latents: int = 3, whole: bool = False, **changes: object) -> dict[str, object]:
    """A row of a log.jsonl; ``whole`` with validation."""
    found: dict[str, object] = {
        "step": step, "seconds": step / 2, "train_bpd": 4 + 10 / step,
        "train_kl_bpd": [10.0**-n for n in range(latents)], "learning_rate": 1e-3, "grad_norm": 0.5,
        "skipped": step // 200,
    }
    if whole:
        found |= {"validation_bpd": 4 + 12 / step, "kl_bpd": [0.1] * latents, "nll_bpd": [1.0, 3.0]}
    return found | changes


NAN = float("nan")
LOGS = {
    "usual": [row(100 * n, whole=n % 3 == 0) for n in range(1, 8)],
    "one row": [row(100)],
    "one row with validation": [row(100, whole=True)],
    "one layer": [row(100 * n, latents=1, whole=True) for n in range(1, 4)],
    "no latents": [row(100 * n, latents=0, whole=n == 2) for n in range(1, 4)],
    "no validation": [row(100 * n) for n in range(1, 4)],
    "all steps skipped": [row(100, latents=0, train_bpd=NAN, grad_norm=NAN, skipped=100)],
    "some steps skipped": [row(100), row(200, latents=0, train_bpd=NAN, grad_norm=math.inf), row(300)],
    "null": [row(100, train_bpd=None, train_kl_bpd=[None] * 3, grad_norm=None, whole=True, validation_bpd=None)],
    "collapsed": [row(100 * n, train_kl_bpd=[0.0] * 3) for n in range(1, 4)],
    "NaN": [row(100), row(200, train_kl_bpd=[NAN] * 3, whole=True, validation_bpd=NAN, nll_bpd=[NAN, NAN])],
    "diverged": [row(100), row(200, train_kl_bpd=[math.inf, 0.1, 0.1], train_bpd=math.inf)],
    "empty": [],
}


@pytest.mark.parametrize("name", LOGS)
def test_every_log_is_drawn(name: str, tmp_path: Path) -> None:
    log, out = tmp_path / "log.jsonl", tmp_path / "loss.png"
    log.write_text("".join(json.dumps(r) + "\n" for r in LOGS[name]))
    plot_loss(log, out)
    with Image.open(out) as image:
        assert image.format == "PNG" and min(image.size) > 400


def test_the_plot_shows_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: figures.append(figure))
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(r) + "\n" for r in LOGS["usual"]))
    plot_loss(log, tmp_path / "loss.png")
    panels = {axes.get_ylabel(): axes for axes in figures[0].axes}
    training, validation = panels["bits per dim"].lines
    assert training.get_xydata().tolist() == [[s, 4 + 10 / s] for s in range(100, 800, 100)]
    assert validation.get_xydata().tolist() == [[s, 4 + 12 / s] for s in (300, 600)]
    assert panels["skipped steps"].lines[0].get_ydata()[-1] == 3
    (mesh,) = panels["latent layer, from the top down"].collections
    assert mesh.get_array().shape == (3, 7) and mesh.get_array()[:, 0].tolist() == [1, 0.1, 0.01]
    bottom, top = panels["latent layer, from the top down"].get_ylim()
    assert bottom > top
    assert [line.get_ydata().tolist() for line in panels["pixel layers (bits per dim)"].lines] == [[1, 1], [3, 3]]


def test_sample_sheet(tiny_float: VDVAE, x: Tensor, tmp_path: Path) -> None:
    out = tmp_path / "samples.png"
    sample_sheet(tiny_float, x, out)
    with Image.open(out) as image:
        picture = np.asarray(image)
    rows = 1 + 2 * 3 + 1  # images, latents and pixels at three strides, samples
    assert picture.shape[0] == rows * (40 + GAP) - GAP
    images = [picture[n * (40 + GAP) :][:40, -48:] for n in range(rows)]
    original = x[1, [1, 0, 2]].permute(1, 2, 0).numpy()
    assert [n for n in range(rows) if np.array_equal(images[n], original)] == [0, 6]
    with_latents_gone = dataclasses.replace(TINY, stages=tuple(dataclasses.replace(s, latents=0) for s in TINY.stages))
    sample_sheet(untrained(with_latents_gone), x, out)

import dataclasses
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import TINY
from PIL import Image
from torch import Tensor

from vdvae_codec import api
from vdvae_codec.checkpoint import latest_checkpoint, load_tensors, save_tensors
from vdvae_codec.cli.main import main
from vdvae_codec.config import ModelConfig, TrainConfig, from_dict, read_config, write_config
from vdvae_codec.distributions import Gaussian, gaussian_kl
from vdvae_codec.errors import ConfigError, ModelError, TrainingError
from vdvae_codec.images import read_picture, write_image
from vdvae_codec.training.data import load_folder, random_crops, split_by_file
from vdvae_codec.training.loop import Trainer, kl_weight, learning_rate, train

CPU = torch.device("cpu")
RECIPE = TrainConfig(steps=6, batch=2, crop=32, warmup_steps=2, kl_warmup_steps=4, validate_every=4, seed=3)


@pytest.fixture(scope="module")
def folder(photo: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of at least 192x192, made of the photograph and its reflections."""
    folder = tmp_path_factory.mktemp("images")
    large = np.pad(photo, ((0, 80), (0, 40), (0, 0)), "symmetric")
    for name, pixels in (("a.png", large), ("b.png", large[::-1]), ("sub/c.png", large.swapaxes(0, 1))):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(write_image(pixels, {}, ".png"))
    return folder


@pytest.fixture(scope="module")
def toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    write_config(path, TINY, RECIPE)
    return path


@pytest.fixture(scope="module")
def run(folder: Path, toml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training, by the command line in its own process."""
    run = tmp_path_factory.mktemp("runs") / "run"
    done = subprocess.run(arguments(toml, folder, run), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{run}/checkpoint-00000006: done\n"
    return run


def arguments(toml: Path, folder: Path, run: Path, *more: str) -> list[str]:
    paths = ["--model", str(toml), "--data", str(folder), "--out", str(run)]
    return [str(Path(sys.executable).with_name("vdvae-codec")), "train", *paths, "--threads", "1", *more]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def rows(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_what_a_training_writes(run: Path) -> None:
    names = sorted(p.name for p in run.iterdir())
    samples = ["samples-00000004.png", "samples-00000006.png"]
    assert names == ["checkpoint-00000004", "checkpoint-00000006", "log.jsonl", "loss.png", *samples]
    for name in ("loss.png", *samples):
        with Image.open(run / name) as image:
            assert image.size == ((800, 320) if name == "loss.png" else (8 * 128, 3 * 128))
            assert len(image.convert("RGB").getcolors(1 << 24) or []) > 10
    log = rows(run)
    assert [row["step"] for row in log] == [4, 6]
    for row in log:
        terms = row["kl_bpd"] + row["nll_bpd"]  # type: ignore[operator]
        assert len(terms) == 2 + 10 and all(t >= 0 for t in terms)
        assert row["validation_bpd"] == pytest.approx(sum(terms)) and 1 < row["validation_bpd"] < 10
        assert row["skipped"] == 0
    tensors, meta = load_tensors(run / "checkpoint-00000006")
    assert meta["step"] == 6 and from_dict(ModelConfig, meta["config"]) == TINY
    assert from_dict(TrainConfig, meta["recipe"]) == RECIPE
    assert all(bool(t.isfinite().all()) for t in tensors.values())


def test_resumed_until_sigterm(run: Path, toml: Path, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    save_tensors(other / "checkpoint-00000006", *load_tensors(run / "checkpoint-00000006"))
    (other / "log.jsonl").write_text((run / "log.jsonl").read_text())
    command = arguments(toml, folder, other, "--resume", "--steps", "1000000")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (other / "checkpoint-00000008").exists() and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate()
    last = latest_checkpoint(other)
    assert (process.returncode, out) == (0, f"{last}: done\n"), err
    assert last is not None and load_tensors(last)[1]["step"] == rows(other)[-1]["step"]
    assert [row["step"] for row in rows(other)][:3] == [4, 6, 8]
    assert len(list(other.glob("checkpoint-*"))) == 2  # older ones are removed


def test_a_run_is_not_overwritten(run: Path, toml: Path, folder: Path, tmp_path: Path) -> None:
    before = (run / "log.jsonl").read_text()
    result = invoke(*arguments(toml, folder, run)[1:])
    assert result.exit_code == 1 and "checkpoint-00000006; resume it" in result.output
    assert result.output.count("\n") == 1 and (run / "log.jsonl").read_text() == before
    result = invoke(*arguments(toml, folder, tmp_path / "new", "--resume")[1:])
    assert result.exit_code == 1 and "no checkpoint to resume" in result.output
    assert not (tmp_path / "new").exists()
    wider = dataclasses.replace(TINY, mixtures=3)
    images = list(load_folder(folder, 32).values())
    with pytest.raises(TrainingError, match="differs"):
        train(wider, RECIPE, images, images, run, CPU, resume=True)


def test_resuming_a_finished_run_changes_nothing(run: Path, toml: Path, folder: Path) -> None:
    before = (run / "log.jsonl").read_text()
    result = invoke(*arguments(toml, folder, run, "--resume")[1:])
    assert (result.exit_code, result.output) == (0, f"{run}/checkpoint-00000006: done\n")
    assert (run / "log.jsonl").read_text() == before


def test_bad_training_data_is_refused(toml: Path, tmp_path: Path, photo: np.ndarray) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    result = invoke(*arguments(toml, empty, tmp_path / "run")[1:])
    assert result.exit_code == 1 and "no image of at least 32x32" in result.output
    (empty / "one.png").write_bytes(write_image(photo, {}, ".png"))
    result = invoke(*arguments(toml, empty, tmp_path / "run")[1:])
    assert result.exit_code == 1 and "at least two images" in result.output
    result = invoke(*arguments(toml, empty, tmp_path / "run", "--val", str(empty))[1:], "--steps", 0)
    assert result.exit_code == 1 and "steps" in result.output
    text = toml.read_text().replace("crop = 32", "crop = 36")
    (tmp_path / "odd.toml").write_text(text)
    result = invoke(*arguments(tmp_path / "odd.toml", empty, tmp_path / "run", "--val", str(empty))[1:])
    assert result.exit_code == 1 and "crop 36" in result.output
    assert not (tmp_path / "run").exists()


def batch(photo: np.ndarray, step: int) -> Tensor:
    return random_crops([photo], 2, 32, (0, step))


def state(trainer: Trainer) -> dict[str, Tensor]:
    tensors = {f"model.{k}": v.clone() for k, v in trainer.model.state_dict().items()}
    tensors |= {f"ema.{k}": v.clone() for k, v in trainer.ema.model.state_dict().items()}
    for n, values in trainer.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{n}.{k}": v.clone() for k, v in values.items()}
    return tensors


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_resumed_run_equals_an_uninterrupted_one(photo: np.ndarray, tmp_path: Path) -> None:
    whole = Trainer(TINY, RECIPE, CPU)
    seen = [whole.update(batch(photo, step)) for step in range(4)]
    first = Trainer(TINY, RECIPE, CPU)
    again = [first.update(batch(photo, step)) for step in range(2)]
    first.save(tmp_path, shard_mib=0.05)
    assert len(list((tmp_path / "checkpoint-00000002").glob("part-*"))) > 2
    second = Trainer(TINY, dataclasses.replace(RECIPE, seed=99), CPU)
    assert not same(state(first), state(second))
    second.recipe = RECIPE
    second.load(tmp_path / "checkpoint-00000002")
    assert same(state(first), state(second))
    torch.rand(7)  # the state of the generator does not matter
    again += [second.update(batch(photo, step)) for step in range(2, 4)]
    assert again == seen
    assert same(state(whole), state(second))
    assert (whole.step, whole.running_norm) == (second.step, second.running_norm)


def test_steps_that_are_not_finite_are_skipped(photo: np.ndarray) -> None:
    trainer = Trainer(TINY, RECIPE, CPU)
    trainer.update(batch(photo, 0))
    before, norm = state(trainer), trainer.running_norm
    poisoned = batch(photo, 1)
    poisoned[0, 0, 5, 5] = torch.inf
    loss, bad_norm = trainer.update(poisoned)
    assert not math.isfinite(bad_norm) and not math.isfinite(loss)
    assert same(state(trainer), before)
    assert (trainer.step, trainer.skipped, trainer.running_norm) == (2, 1, norm)
    trainer.update(batch(photo, 2))
    assert trainer.skipped == 1 and not same(state(trainer), before)


def test_steps_with_an_outlying_gradient_are_skipped_but_not_for_ever(photo: np.ndarray) -> None:
    trainer = Trainer(TINY, RECIPE, CPU)
    _, norm = trainer.update(batch(photo, 0))
    before = state(trainer)
    trainer.step, trainer.running_norm = 30, norm / 100
    norms = []
    while trainer.skipped == len(norms):
        trainer.update(batch(photo, 0))
        norms.append(trainer.running_norm)
        assert len(norms) < 200
    assert len(norms) > 1 and norms == sorted(norms)
    assert not same(state(trainer), before)


def test_schedules() -> None:
    recipe = TrainConfig(steps=1000, learning_rate=0.1, warmup_steps=10, cooldown=0.5, kl_warmup_steps=100)
    rates = [learning_rate(recipe, step) for step in range(1001)]
    assert rates[0] == pytest.approx(0.01) and rates[9] == rates[500] == 0.1
    assert rates[750] == pytest.approx(0.05) and rates[1000] == pytest.approx(0)
    assert rates[500:] == sorted(rates[500:], reverse=True)
    weights = [kl_weight(recipe, step) for step in range(1001)]
    assert weights[0] < 0.05 and weights == sorted(weights) and weights[100] == weights[-1] == 1


def test_gaussian_kl() -> None:
    torch.manual_seed(0)
    q, p = (Gaussian(torch.randn(2, 3, 4, 4).double(), torch.randn(2, 3, 4, 4).double()) for _ in range(2))
    normals = (torch.distributions.Normal(g.mean, g.log_sigma.exp()) for g in (q, p))
    assert torch.allclose(gaussian_kl(q, p), torch.distributions.kl_divergence(*normals))
    assert torch.allclose(gaussian_kl(q, q), torch.zeros(1).double())


# --- export ---


def test_export(run: Path, folder: Path, tmp_path: Path, photo: np.ndarray) -> None:
    out = tmp_path / "mine"
    result = invoke("export", run, "--data", folder, "-o", out, "--json")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown["step"] == 6 and shown["exact_elbo_bpd"] == pytest.approx(shown["float_elbo_bpd"], rel=0.02)
    assert read_config(out / "config.toml") == (TINY, RECIPE)
    data, report = api.compress(write_image(photo, {}, ".png"), "x.png", str(out), "cpu", fallback=False)
    assert (report.kind, report.model) == ("model", "mine")
    assert api.info(data)["digest"] == shown["digest"]
    image, _ = api.decompress(data, model=str(out), device="cpu")
    assert np.array_equal(read_picture(image, "x.png").pixels, photo)
    again = invoke("export", run, "--data", folder, "-o", out)
    assert again.exit_code == 1 and "--force" in again.output
    assert invoke("export", tmp_path, "--data", folder, "-o", out).exit_code == 1


# --- data ---


def test_load_folder(folder: Path, tmp_path: Path, photo: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    images = load_folder(folder, 32)
    assert list(images) == ["a.png", "b.png", "sub/c.png"]
    assert np.array_equal(images["b.png"][::-1], images["a.png"])
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "small.png").write_bytes(write_image(photo[:31], {}, ".png"))
    (tmp_path / "grey.png").write_bytes(write_image(photo[..., :1], {}, ".png"))
    assert [(name, image.shape) for name, image in load_folder(tmp_path, 32).items()] == [("grey.png", photo.shape)]
    assert "broken.png" in caplog.text and "small.png" in caplog.text
    with pytest.raises(TrainingError, match="no image of at least 121x121"):
        load_folder(tmp_path, 121)


@pytest.mark.parametrize("count, share, held", [(2, 0.05, 1), (3, 0.05, 1), (40, 0.05, 2), (10, 0.5, 5)])
def test_split_by_file(count: int, share: float, held: int) -> None:
    images = {f"{n}.png": np.full((1, 1, 3), n, np.uint8) for n in range(count)}
    training, validation = split_by_file(images, share, 0)
    assert (len(training), len(validation)) == (count - held, held)
    assert sorted(int(i.max()) for i in training + validation) == list(range(count))
    backwards = dict(reversed(images.items()))
    assert [int(i.max()) for i in split_by_file(backwards, share, 0)[1]] == [int(i.max()) for i in validation]
    others = {tuple(int(i.max()) for i in split_by_file(images, share, seed)[1]) for seed in range(20)}
    assert len(others) > 1
    with pytest.raises(TrainingError, match="at least two"):
        split_by_file({"a": images["0.png"]}, share, 0)


def test_random_crops(photo: np.ndarray) -> None:
    grb = photo[..., [1, 0, 2]].astype(np.float32)
    windows = {grb[y : y + 64, x : x + 64].tobytes() for y in range(57) for x in range(97)}
    crops = random_crops([photo], 20, 64, (1, 2), augment=False)
    assert crops.shape == (20, 3, 64, 64) and crops.dtype == torch.float32
    seen = [crop.permute(1, 2, 0).numpy().tobytes() for crop in crops]
    assert set(seen) <= windows and len(set(seen)) > 15
    assert torch.equal(crops, random_crops([photo], 20, 64, (1, 2), augment=False))
    assert not torch.equal(crops, random_crops([photo], 20, 64, (1, 3), augment=False))


def test_crops_are_turned_and_drawn_by_area(photo: np.ndarray) -> None:
    square = photo[:64, :64]
    turned = {crop.numpy().tobytes() for crop in random_crops([square], 100, 64, (0,))}
    assert len(turned) == 8
    small, large = np.zeros((10, 10, 3), np.uint8), np.full((30, 30, 3), 255, np.uint8)
    share = float(random_crops([small, large], 2000, 2, (0,)).mean()) / 255
    assert share == pytest.approx(0.9, abs=0.03)


# --- checkpoints and configurations ---


def test_checkpoints_round_trip_and_damage(tmp_path: Path) -> None:
    tensors = {f"t{n}": torch.arange(n * 100, dtype=torch.int32).view(n, 10, 10) for n in range(8)}
    tensors["scalar"] = torch.tensor(1.5, dtype=torch.bfloat16)
    save_tensors(tmp_path / "c", tensors, {"step": 3, "norm": float("inf")}, shard_mib=1e-3)
    save_tensors(tmp_path / "c", tensors, {"step": 4}, shard_mib=1e-3)
    loaded, meta = load_tensors(tmp_path / "c")
    assert same(loaded, tensors) and meta["step"] == 4
    assert meta["parts"] == len(list((tmp_path / "c").glob("part-*"))) > 2
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    part = tmp_path / "c" / "part-001.safetensors"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(ModelError, match="not a readable checkpoint"):
        load_tensors(tmp_path / "c")
    part.unlink()
    with pytest.raises(ModelError, match="not a readable checkpoint"):
        load_tensors(tmp_path / "c")


def test_latest_checkpoint(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    for name in ("checkpoint-00000002", "checkpoint-00000010", "checkpoint-00000011.tmp"):
        save_tensors(tmp_path / name, {}, {})
    (tmp_path / "checkpoint-00000012").mkdir()  # without its meta.json
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-00000010"


def test_configurations_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    write_config(path, TINY, RECIPE)
    assert read_config(path) == (TINY, RECIPE)
    path.write_text("# a comment\n" + path.read_text())
    write_config(path, TINY, RECIPE)
    assert path.read_text().startswith("# a comment")
    write_config(path, TINY, dataclasses.replace(RECIPE, steps=7))
    assert read_config(path)[1].steps == 7


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("[train]", "[train]\nspeed = 1", r"train: unknown key speed"),
        ("[model]", "[model]\ndepth = 1\nwidth = 2", r"model: unknown key depth, width"),
        ("zdim = 4", "zdims = 4", r"model.stages\[0\]: unknown key zdims"),
        ("[train]", "[other]\nx = 1\n[train]", r"unknown table other"),
        ("[train]", "[training]", r"unknown table training"),
        ("steps = 6\n", "", r"train: missing key steps"),
        ("steps = 6\n", "steps = 6.0\n", r"train.steps: expected int, got 6.0"),
        ("steps = 6\n", "steps = true\n", r"train.steps: expected int, got True"),
        ("mixtures = 2", 'mixtures = "2"', r"model.mixtures: expected int, got '2'"),
        ("mixtures = 2", "mixtures = [", r"tiny.toml: "),
        ("stride = 8", "stride = 7", r"powers of two"),
        ("stride = 8", "stride = 0", r"powers of two"),
        ("stride = 8", "stride = 2", r"from coarse to fine"),
        ("tile = 32", "tile = 0", r"tile 0 is no multiple"),
        ("tile = 32", "tile = 33", r"tile 33 is no multiple"),
        ("blocks = [\n    1,\n    1,\n    1,\n]", "blocks = [1, 1]", r"3 pixel layers, 2 block counts"),
    ],
)
def test_bad_configurations_are_refused(toml: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    text = toml.read_text()
    assert old in text
    path = tmp_path / "tiny.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message) as error:
        read_config(path)
    assert "\n" not in str(error.value)


def test_pixel_layers_must_hold_the_image() -> None:
    first, *others = TINY.stages
    corners = ((0, 0), (4, 4), (0, 4))
    cases = [(corners, "63 of the 64"), ((*corners, (0, 4)), "the same"), ((*corners, (8, 0)), "outside")]
    for pixels, message in cases:
        stage = dataclasses.replace(first, pixels=pixels, blocks=(1,) * len(pixels))
        with pytest.raises(ConfigError, match=message):
            ModelConfig(2, (stage, *others), tile=32)
    with pytest.raises(ConfigError, match="stage"):
        ModelConfig(2, ())

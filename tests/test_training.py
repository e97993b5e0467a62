import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import TINY, Arrays
from PIL import Image
from torch import Tensor
from torch.distributed.run import get_args_parser

from vdvae_codec import api
from vdvae_codec.checkpoint import latest_checkpoint, load_tensors, save_tensors
from vdvae_codec.cli.main import main
from vdvae_codec.cli.train import train as train_command
from vdvae_codec.config import ModelConfig, TrainConfig, from_dict, read_config, write_config
from vdvae_codec.distributions import Gaussian, gaussian_kl
from vdvae_codec.errors import ConfigError, ModelError, TrainingError
from vdvae_codec.images import read_picture, write_image
from vdvae_codec.model.vdvae import VDVAE, elbo
from vdvae_codec.pictures import samples
from vdvae_codec.training.data import Crops, ahead, split_by_image
from vdvae_codec.training.loop import RunOptions, train
from vdvae_codec.training.sources import open_images
from vdvae_codec.training.trainer import Trainer, kl_weight, learning_rate, stack_terms

CPU = torch.device("cpu")
RECIPE = TrainConfig(steps=6, batch=2, crop=32, warmup_steps=2, kl_warmup_steps=4, validate_every=4, seed=3, muon=2.0)


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


def torchrun(toml: Path, folder: Path, run: Path, *more: str) -> list[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*launch, "-m", "vdvae_codec.training", *arguments(toml, folder, run, *more)[2:]]


def without_time(run: Path) -> list[dict[str, object]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows(run)]


def test_what_a_training_writes(run: Path) -> None:
    names = sorted(p.name for p in run.iterdir() if not p.name.startswith("events."))  # TensorBoard's
    samples = ["samples-00000004.png", "samples-00000006.png"]
    assert names == ["cache", "checkpoint-00000004", "checkpoint-00000006", "log.jsonl", "loss.png", *samples]
    for name in ("loss.png", *samples):
        with Image.open(run / name) as image:
            assert len(image.convert("RGB").getcolors(1 << 24) or []) > 10
    log = rows(run)
    assert [row["step"] for row in log] == [4, 6]
    for row in log:
        terms = row["kl_bpd"] + row["nll_bpd"]  # type: ignore[operator]
        assert len(terms) == 2 + 10 and all(t >= 0 for t in terms)
        assert row["validation_bpd"] == pytest.approx(sum(terms)) and 1 < row["validation_bpd"] < 10
        assert row["skipped"] == 0 and len(row["train_kl_bpd"]) == 2 and 1 < row["train_bpd"] < 10
    tensors, meta = load_tensors(run / "checkpoint-00000006")
    assert meta["step"] == 6 and from_dict(ModelConfig, meta["config"]) == TINY
    assert from_dict(TrainConfig, meta["recipe"]) == RECIPE
    assert all(bool(t.isfinite().all()) for t in tensors.values())


@pytest.fixture(scope="module")
def long_run(toml: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that nothing interrupted."""
    run = tmp_path_factory.mktemp("runs") / "long"
    subprocess.run(arguments(toml, folder, run, "--steps", "24", "--keep", "3"), check=True, capture_output=True)
    return run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_equals_an_uninterrupted_one(
    long_run: Path, toml: Path, folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    command = arguments(toml, folder, run, "--steps", "24", "--keep", "3", "--shard-mib", "0.1")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (run / "checkpoint-00000008").exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate()
    last = latest_checkpoint(run)
    assert last is not None and load_tensors(last)[1]["step"] < 24
    if number != signal.SIGKILL:
        assert (process.returncode, out) == (0, f"{last}: done\n"), err
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 23}\n{"step": 2')  # what a run killed between row and checkpoint would leave
    subprocess.run([*command, "--resume"], check=True, capture_output=True)
    assert len(list((run / "checkpoint-00000024").glob("part-*"))) > 2
    assert len(list(run.glob("checkpoint-*"))) == 3
    (ours, our_meta), (theirs, their_meta) = (load_tensors(r / "checkpoint-00000024") for r in (run, long_run))
    assert same(ours, theirs)
    assert {k: v for k, v in our_meta.items() if k not in ("seconds", "parts")} == {
        k: v for k, v in their_meta.items() if k not in ("seconds", "parts")
    }
    assert without_time(run) == without_time(long_run)


def test_the_time_budget_ends_with_a_checkpoint(toml: Path, folder: Path, tmp_path: Path) -> None:
    command = arguments(toml, folder, tmp_path / "run", "--steps", "1000000", "--minutes", "0.05")
    done = subprocess.run(command, capture_output=True, text=True)
    last = latest_checkpoint(tmp_path / "run")
    assert (done.returncode, done.stdout) == (0, f"{last}: done\n"), done.stderr
    assert last is not None and 0 < load_tensors(last)[1]["step"] < 1000


def test_two_processes_train_as_one(toml: Path, folder: Path, tmp_path: Path) -> None:
    """Same losses, same skipped steps, same weights up to rounding as one process that accumulates both's chunks."""
    text = toml.read_text().replace("skip = 20.0", "skip = 1.0").replace("batch = 2", "batch = 4")
    (tmp_path / "config.toml").write_text(text)
    more = ["--steps", "36", "--val", str(folder)]
    alone, both = tmp_path / "alone", tmp_path / "both"
    subprocess.run(
        arguments(tmp_path, folder, alone, "--micro-batch", "2", *more), check=True, capture_output=True
    )
    done = subprocess.run(torchrun(tmp_path, folder, both, *more), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{both}/checkpoint-00000036: done\n"  # the first process speaks
    assert 0 < rows(alone)[-1]["skipped"] < 16  # type: ignore[operator]
    for one, two in zip(without_time(alone), without_time(both), strict=True):
        assert one.keys() == two.keys()
        for key in one:
            expected = two[key] if two[key] is None else pytest.approx(two[key], rel=1e-3, abs=1e-6)
            assert one[key] == expected, key
    (ours, _), (theirs, _) = (load_tensors(r / "checkpoint-00000036") for r in (alone, both))
    assert all(torch.allclose(ours[k].float(), theirs[k].float(), atol=2e-3) for k in ours if k.startswith("model."))
    names = {p.name for p in both.iterdir() if not p.name.startswith("events.")}
    assert names == {p.name for p in alone.iterdir() if not p.name.startswith("events.")}


def test_two_processes_stop_together(toml: Path, folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = torchrun(toml, folder, run, "--steps", "1000000")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (run / "checkpoint-00000004").exists() and process.poll() is None:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        process.communicate()
    last = latest_checkpoint(run)
    assert last is not None
    step = load_tensors(last)[1]["step"]
    done = subprocess.run(
        torchrun(toml, folder, run, "--resume", "--steps", str(step + 4)), capture_output=True, text=True
    )
    assert done.returncode == 0 and latest_checkpoint(run) == run / f"checkpoint-{step + 4:08d}", done.stderr


def test_a_run_is_not_overwritten(run: Path, toml: Path, folder: Path, tmp_path: Path) -> None:
    before = (run / "log.jsonl").read_text()
    result = invoke(*arguments(toml, folder, run)[1:])
    assert result.exit_code == 1 and "checkpoint-00000006; resume it" in result.output
    assert result.output.count("\n") == 1 and (run / "log.jsonl").read_text() == before
    result = invoke(*arguments(toml, folder, tmp_path / "new", "--resume")[1:])
    assert result.exit_code == 1 and "no checkpoint to resume" in result.output
    assert not (tmp_path / "new").exists()
    wider = dataclasses.replace(TINY, mixtures=3)
    images = open_images(folder, 32, tmp_path)
    with pytest.raises(TrainingError, match="differs"):
        train(wider, RECIPE, images, images, run, CPU, RunOptions(resume=True))


def test_resuming_a_finished_run_changes_nothing(run: Path, toml: Path, folder: Path) -> None:
    before = (run / "log.jsonl").read_text()
    result = invoke(*arguments(toml, folder, run, "--resume")[1:])
    assert (result.exit_code, result.output) == (0, f"{run}/checkpoint-00000006: done\n")
    assert (run / "log.jsonl").read_text() == before


def test_starting_from_another_run(run: Path, folder: Path, toml: Path, tmp_path: Path) -> None:
    before = float(str(rows(run)[-1]["validation_bpd"]))
    # A learning rate of zero changes nothing; a command without --model takes the run's architecture and recipe.
    still = ["--data", folder, "--init", run, "--learning-rate", 0, "--threads", 1]
    assert invoke("train", "--out", tmp_path / "a", "--steps", 2, *still).exit_code == 0
    last = rows(tmp_path / "a")[-1]
    assert (last["step"], last["validation_bpd"]) == (2, pytest.approx(before))
    meta = load_tensors(tmp_path / "a/checkpoint-00000002")[1]
    recipe = dataclasses.replace(RECIPE, steps=2, learning_rate=0.0, kl_warmup_steps=0)
    assert from_dict(TrainConfig, meta["recipe"]) == recipe
    resumed = invoke("train", "--out", tmp_path / "a", "--data", folder, "--resume", "--steps", 4, "--threads", 1)
    assert resumed.exit_code == 0, resumed.output
    meta = load_tensors(tmp_path / "a/checkpoint-00000004")[1]
    assert from_dict(TrainConfig, meta["recipe"]) == dataclasses.replace(recipe, steps=4)

    checkpoint = run / "checkpoint-00000006"
    other = invoke("train", "--model", "photo", "--out", tmp_path / "b", "--data", folder, "--init", checkpoint)
    assert (other.exit_code, other.output.count("\n")) == (1, 1), other.output
    tensors, meta = load_tensors(checkpoint)
    averages = {k: v for k, v in tensors.items() if k.startswith("ema.")}
    save_tensors(tmp_path / "d" / checkpoint.name, averages, {k: v for k, v in meta.items() if k != "parts"})
    resumed = invoke("train", "--out", tmp_path / "d", "--data", folder, "--resume", "--steps", 8, "--threads", 1)
    assert resumed.exit_code == 1 and resumed.output.endswith("averaged weights only; begin a new run with --init\n")
    nothing = invoke("train", "--out", tmp_path / "c", "--data", folder, "--init", tmp_path / "nowhere")
    assert (nothing.exit_code, nothing.output.count("\n")) == (1, 1)
    assert "nowhere: holds no checkpoint to start from" in nothing.output and not (tmp_path / "c").exists()


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
    result = invoke(*arguments(toml, empty, tmp_path / "run", "--val", str(empty))[1:], "--micro-batch", 3)
    assert result.exit_code == 1 and "batch of 2 is no multiple" in result.output
    assert not list((tmp_path / "run").glob("*.jsonl"))


def batch(photo: np.ndarray, step: int) -> list[Tensor]:
    return [Crops(Arrays({"": photo}), 32, "turn").batch((0, step), 0, 2)]


def state(trainer: Trainer) -> dict[str, Tensor]:
    tensors = {f"model.{k}": v.clone() for k, v in trainer.model.state_dict().items()}
    tensors |= {f"ema.{k}": v.clone() for k, v in trainer.ema.model.state_dict().items()}
    for name, optimizer in trainer.optimizers.items():
        for n, values in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{n}.{k}": v.clone() for k, v in values.items()}
    return tensors


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_resumed_run_equals_an_uninterrupted_one(photo: np.ndarray, tmp_path: Path) -> None:
    whole = Trainer(TINY, RECIPE, CPU)
    seen = [whole.update(batch(photo, step)) for step in range(4)]
    first = Trainer(TINY, RECIPE, CPU)
    again = [first.update(batch(photo, step)) for step in range(2)]
    first.save(tmp_path, 0.05, 1, {})
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
    poisoned = batch(photo, 1)[0].float()
    poisoned[0, 0, 5, 5] = torch.inf
    step = trainer.update([poisoned])
    assert not math.isfinite(step.grad_norm) and not step.taken
    assert same(state(trainer), before)
    assert (trainer.step, trainer.skipped, trainer.running_norm) == (2, 1, norm)
    trainer.update(batch(photo, 2))
    assert trainer.skipped == 1 and not same(state(trainer), before)


def test_steps_with_an_outlying_gradient_are_skipped_but_not_for_ever(photo: np.ndarray) -> None:
    trainer = Trainer(TINY, RECIPE, CPU)
    norm = trainer.update(batch(photo, 0)).grad_norm
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
    short = dataclasses.replace(recipe, steps=50)
    assert [learning_rate(short, step) for step in (2, 5, 25)] == pytest.approx([0.05, 0.1, 0.1])
    weights = [kl_weight(recipe, step) for step in range(1001)]
    assert weights[0] < 0.05 and weights == sorted(weights) and weights[100] == weights[-1] == 1
    assert kl_weight(dataclasses.replace(recipe, kl_warmup_steps=0), 0) == 1


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


@pytest.mark.parametrize("count, share, held", [(2, 0.05, 1), (3, 0.05, 1), (40, 0.05, 2), (10, 0.5, 5)])
def test_split_by_image(count: int, share: float, held: int) -> None:
    images = {f"{n}.png": np.full((1, 1, 3), n, np.uint8) for n in range(count)}
    training, validation = split_by_image(Arrays(images), share, 0)
    assert (len(training.names), len(validation.names)) == (count - held, held)
    assert sorted([*training.names, *validation.names]) == sorted(images)
    assert all(int(s[n].max()) == int(s.names[n][:-4]) for s in (training, validation) for n in range(len(s.names)))
    backwards = dict(reversed(images.items()))
    assert set(split_by_image(Arrays(backwards), share, 0)[1].names) == set(validation.names)
    assert len({tuple(split_by_image(Arrays(images), share, seed)[1].names) for seed in range(20)}) > 1
    with pytest.raises(TrainingError, match="at least two"):
        split_by_image(Arrays({"a": images["0.png"]}), share, 0)


def test_crops(photo: np.ndarray) -> None:
    grb = photo[..., [1, 0, 2]]
    windows = {grb[y : y + 64, x : x + 64].tobytes() for y in range(57) for x in range(97)}
    crops = Crops(Arrays({"": photo}), 64, "none")
    batch = crops.batch((1, 2), 0, 20)
    assert batch.shape == (20, 3, 64, 64) and batch.dtype == torch.uint8
    seen = [crop.permute(1, 2, 0).numpy().tobytes() for crop in batch]
    assert set(seen) <= windows and len(set(seen)) > 15
    assert torch.equal(batch[5:12], crops.batch((1, 2), 5, 7))  # whatever part of a batch a process makes
    assert not torch.equal(batch, crops.batch((1, 3), 0, 20))
    with pytest.raises(TrainingError, match="at least 121x121"):
        Crops(Arrays({"": photo}), 121, "none")


@pytest.mark.parametrize("augment, ways", [("turn", 8), ("mirror", 2), ("none", 1)])
def test_crops_are_turned_and_mirrored(photo: np.ndarray, augment: str, ways: int) -> None:
    square = photo[:64, :64]
    crops = Crops(Arrays({"": square}), 64, augment).batch((0,), 0, 100)
    seen = {crop.permute(1, 2, 0).numpy().tobytes() for crop in crops}
    assert len(seen) == ways and square[..., [1, 0, 2]].tobytes() in seen
    if augment == "mirror":
        assert square[:, ::-1, [1, 0, 2]].tobytes() in seen


def test_photographs_get_random_histories(photo: np.ndarray) -> None:
    crops = Crops(Arrays({"": photo}), 64, "photo")
    batch = crops.batch((0,), 0, 400)
    assert torch.equal(batch[50:60], crops.batch((0,), 50, 10))
    windows = np.lib.stride_tricks.sliding_window_view(photo[..., 0], (64, 64)).reshape(-1, 64 * 64)
    reds = {red.tobytes() for red in windows}
    seen = batch[:, 1].numpy()
    turned = [[np.rot90(red, k)[:, ::way].tobytes() for k in range(4) for way in (1, -1)] for red in seen]
    assert 0.3 < np.mean([any(t in reds for t in ways) for ways in turned]) < 0.6  # the others were processed
    grey = (batch[:, :1] == batch).flatten(1).all(1)
    assert 0 < int(grey.sum()) < 30


def test_no_option_is_an_abbreviation_of_one_of_torchrun() -> None:
    theirs = [option for action in get_args_parser()._actions for option in action.option_strings]
    ours = [option for parameter in train_command.params for option in parameter.opts]
    assert [o for o in ours if any(their.startswith(o) for their in theirs)] == []


def test_crops_are_drawn_by_number_of_places() -> None:
    small, large = np.zeros((10, 10, 3), np.uint8), np.full((30, 28, 3), 255, np.uint8)
    crops = Crops(Arrays({"small": small, "large": large}), 2, "turn").batch((0,), 0, 2000)
    assert float(crops.float().mean()) / 255 == pytest.approx(29 * 27 / (29 * 27 + 81), abs=0.03)


def test_batches_made_ahead_come_in_order_and_stop() -> None:
    made = []

    def batch(step: int) -> Tensor:
        made.append(step)
        return torch.tensor(step)

    assert [int(b) for b in ahead(batch, range(3, 20))] == list(range(3, 20))
    made.clear()
    for b in ahead(batch, range(1000)):
        if int(b) == 5:
            break
    assert len(made) < 20


def test_recomputing_activations_changes_no_gradient(photo: np.ndarray) -> None:
    kept, again = (Trainer(TINY, dataclasses.replace(RECIPE, recompute=r), CPU) for r in (False, True))
    sizes: dict[bool, int] = {}
    for trainer in (kept, again):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.update({trainer.recipe.recompute: sizes.get(  # noqa: B023
                trainer.recipe.recompute, 0) + t.numel()}) or t, lambda t: t):  # noqa: B023
            trainer.update(batch(photo, 0))
    assert same(state(kept), state(again))


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


@torch.no_grad()
def test_models_of_grey_images_count_one_colour(photo: np.ndarray) -> None:
    """The others are copies: they cost nothing, change no gradient, and are drawn as copies."""
    torch.manual_seed(0)
    model = VDVAE(dataclasses.replace(TINY, channels=1))
    grey = torch.from_numpy(photo[:32, :32, 1].copy())[None, None].float().expand(1, 3, -1, -1)
    terms = elbo(model, grey)
    assert terms.dims == 32 * 32
    bits = float(stack_terms(terms, grey)[1].sum())
    assert 4 < bits < 10  # bits per dim of one colour, untrained
    three = VDVAE(TINY)
    three.load_state_dict(model.state_dict())
    torch.manual_seed(1)
    one = sum(float(t) for t in elbo(model, grey).nll_nats)
    torch.manual_seed(1)
    assert one < sum(float(t) for t in elbo(three, grey).nll_nats)
    drawn = samples(model, 2, 32, 32, 1.0)
    assert torch.equal(drawn[:, 0], drawn[:, 1]) and torch.equal(drawn[:, 0], drawn[:, 2])
    with pytest.raises(ConfigError, match="channels"):
        dataclasses.replace(TINY, channels=2)

"""Whole trainings: what they write, leave alone, and how they end, go on and begin."""

import dataclasses
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY, random_crops
from training_worker import CPU, RECIPE, command, rows, same, without_time, work, write_images

from vdvae_codec.codec.group import Group
from vdvae_codec.codec.store import Released
from vdvae_codec.codec.visitors import exact_elbo
from vdvae_codec.errors import ModelError, TrainingError
from vdvae_codec.model.config import read_config, to_dict
from vdvae_codec.model.layers.phase import PhaseConfig
from vdvae_codec.training.checkpoint import latest_checkpoint, load_tensors, read_checkpoint, save_tensors
from vdvae_codec.training.export import export_run
from vdvae_codec.training.loop import RunOptions, train, validate
from vdvae_codec.training.recipe import read_recipe, write_config
from vdvae_codec.training.sources import open_images
from vdvae_codec.training.start import starting_point
from vdvae_codec.training.trainer import Trainer


@pytest.fixture(scope="module")
def run(folder: Path, toml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training."""
    run = tmp_path_factory.mktemp("runs") / "run"
    assert work(toml, folder, run) == run / "checkpoint-00000006"
    return run


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
        terms = row["kl_bpd"] + row["nll_bpd"]
        assert len(terms) == 2 + 10 and all(t >= 0 for t in terms)
        assert row["validation_bpd"] == pytest.approx(sum(terms)) and 1 < row["validation_bpd"] < 10
        assert row["skipped"] == 0 and len(row["train_kl_bpd"]) == 2 and 1 < row["train_bpd"] < 10
    tensors, meta = load_tensors(run / "checkpoint-00000006")
    assert meta["step"] == 6 and read_checkpoint(run / "checkpoint-00000006") == (TINY, RECIPE)
    assert all(bool(t.isfinite().all()) for t in tensors.values())


def test_idle_latent_layers_are_named(
    run: Path, toml: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training that goes on from weights whose second latent layer says nothing: its posterior is the prior."""
    tensors, meta = load_tensors(run / "checkpoint-00000004")
    for name in tensors:
        if "layers.5.prior.c4" in name or "layers.5.posterior.c4" in name:
            tensors[name].zero_()
    save_tensors(tmp_path / "run" / "checkpoint-00000004", tensors, meta)
    work(toml, folder, tmp_path / "run", {"learning_rate": 0.0}, resume=True)
    (row,) = rows(tmp_path / "run")
    assert row["step"] == 6 and row["idle"] == [1] and row["kl_bpd"][1] == 0
    assert "step 6: idle latent layers, KL below 1e-05 bits per dim: 1 (stride 4)" in capsys.readouterr().err


def test_colour_images_for_a_grey_model_are_said(
    folder: Path, photo: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grey = dataclasses.replace(TINY, channels=1)
    write_config(tmp_path / "grey.toml", grey, RECIPE)
    work(tmp_path / "grey.toml", folder, tmp_path / "run", {"steps": 1})
    assert "learns green alone" in capsys.readouterr().err
    (tmp_path / "grey").mkdir()
    write_images(tmp_path / "grey", photo[..., 1:2].repeat(3, 2))
    work(tmp_path / "grey.toml", tmp_path / "grey", tmp_path / "other", {"steps": 1})
    assert "green" not in capsys.readouterr().err


def test_a_training_leaves_the_process_as_it_was(toml: Path, folder: Path, tmp_path: Path) -> None:
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    work(toml, folder, tmp_path / "run", {"steps": 3})
    trainer = Trainer(TINY, RECIPE, CPU)
    x = torch.zeros(1, 3, 32, 32)
    trainer.update([x])
    validate(trainer.model, [x])
    export_run(tmp_path / "run", folder, tmp_path / "model", force=False)
    starting_point(str(tmp_path / "model"))
    assert torch.equal(torch.get_rng_state(), before)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    torch.manual_seed(6)
    work(toml, folder, tmp_path / "again", {"steps": 3})
    weights = [load_tensors(tmp_path / name / "checkpoint-00000003")[0] for name in ("run", "again")]
    assert same(*weights)  # and what the process drew before changes nothing


# --- how they end, and go on ---


@pytest.fixture(scope="module")
def long_run(toml: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that nothing interrupted."""
    run = tmp_path_factory.mktemp("runs") / "long"
    work(toml, folder, run, {"steps": 24}, keep=3)
    return run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_equals_an_uninterrupted_one(
    long_run: Path, toml: Path, folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    started = command(toml, folder, run, recipe={"steps": 24}, keep=3, shard_mib=0.1)
    with subprocess.Popen(started, stderr=subprocess.PIPE, text=True) as process:
        while not (run / "checkpoint-00000008").exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        _, err = process.communicate()
    last = latest_checkpoint(run)
    assert last is not None and load_tensors(last)[1]["step"] < 24
    assert process.returncode == (-9 if number == signal.SIGKILL else 0), err
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 23}\n{"step": 2')  # what a run killed between row and checkpoint would leave
    work(toml, folder, run, {"steps": 24}, keep=3, shard_mib=0.1, resume=True)
    assert len(list((run / "checkpoint-00000024").glob("part-*"))) > 2
    assert len(list(run.glob("checkpoint-*"))) == 3
    (ours, our_meta), (theirs, their_meta) = (load_tensors(r / "checkpoint-00000024") for r in (run, long_run))
    assert same(ours, theirs)
    assert {k: v for k, v in our_meta.items() if k not in ("seconds", "parts")} == {
        k: v for k, v in their_meta.items() if k not in ("seconds", "parts")
    }
    assert without_time(run) == without_time(long_run)


def test_the_time_budget_ends_with_a_checkpoint(toml: Path, folder: Path, tmp_path: Path) -> None:
    last = work(toml, folder, tmp_path / "run", {"steps": 1_000_000}, minutes=0.02)
    assert 0 < load_tensors(last)[1]["step"] < 1000


def test_two_processes_train_as_one(toml: Path, folder: Path, tmp_path: Path) -> None:
    """Same losses, same skipped steps, same weights up to rounding as one process that accumulates both's chunks."""
    alone, both = tmp_path / "alone", tmp_path / "both"
    recipe = {"steps": 36, "skip": 1.0, "batch": 4}
    work(toml, folder, alone, {**recipe, "micro_batch": 2}, validate=True)
    done = subprocess.run(command(toml, folder, both, 2, recipe=recipe, validate=True), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 0 < rows(alone)[-1]["skipped"] < 16
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
    started = command(toml, folder, run, 2, recipe={"steps": 1_000_000})
    with subprocess.Popen(started, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (run / "checkpoint-00000004").exists() and process.poll() is None:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        process.communicate()
    last = latest_checkpoint(run)
    assert last is not None
    step = load_tensors(last)[1]["step"]
    again = command(toml, folder, run, 2, recipe={"steps": step + 4}, resume=True)
    done = subprocess.run(again, capture_output=True, text=True)
    assert done.returncode == 0 and latest_checkpoint(run) == run / f"checkpoint-{step + 4:08d}", done.stderr


def test_a_run_is_not_overwritten(run: Path, toml: Path, folder: Path, tmp_path: Path) -> None:
    before = (run / "log.jsonl").read_text()
    with pytest.raises(TrainingError, match="checkpoint-00000006; resume it"):
        work(toml, folder, run)
    with pytest.raises(TrainingError, match="no checkpoint to resume"):
        work(toml, folder, tmp_path / "new", resume=True)
    layers = [dataclasses.replace(c, mixtures=3) if isinstance(c, PhaseConfig) else c for c in TINY.layers]
    wider = dataclasses.replace(TINY, layers=tuple(layers))
    images = open_images(folder, 32, tmp_path)
    with pytest.raises(TrainingError, match="checkpoint-00000006: its model differs"):
        train(wider, RECIPE, images, images, run, CPU, RunOptions(resume=True))
    with pytest.raises(TrainingError, match="run: its model differs"):
        train(wider, RECIPE, images, images, tmp_path / "other", CPU, RunOptions(start=starting_point(str(run))))
    assert (run / "log.jsonl").read_text() == before


def test_resuming_a_finished_run_changes_nothing(run: Path, toml: Path, folder: Path) -> None:
    before = (run / "log.jsonl").read_text()
    assert work(toml, folder, run, resume=True) == run / "checkpoint-00000006"
    assert (run / "log.jsonl").read_text() == before


def test_recipes_that_do_not_fit_are_refused(toml: Path, folder: Path, tmp_path: Path) -> None:
    for recipe, message in (
        ({"steps": 0}, "steps: expected at least 1"),
        ({"crop": 36}, "crop 36 is no multiple"),
        ({"micro_batch": 3}, "a batch of 2 is no multiple"),
        ({"crop": 320}, "no image of at least 320x320"),
    ):
        with pytest.raises(TrainingError, match=message):
            work(toml, folder, tmp_path / "run", recipe)
    assert not list((tmp_path / "run").glob("*.jsonl"))


# --- how they begin ---


def test_starting_from_another_run(run: Path, toml: Path, folder: Path, tmp_path: Path) -> None:
    """A learning rate of zero changes nothing but the KL warm-up, which is left out."""
    for name in (run, run / "checkpoint-00000006"):
        start = starting_point(str(name))
        assert (start.config, start.recipe) == (TINY, RECIPE)
        out = tmp_path / name.name
        final = work(toml, folder, out, {"steps": 2, "learning_rate": 0.0}, start=start)
        assert rows(out)[-1]["validation_bpd"] == pytest.approx(rows(run)[-1]["validation_bpd"])
        recipe = dataclasses.replace(RECIPE, steps=2, learning_rate=0.0, kl_warmup_steps=0)
        assert read_checkpoint(final) == (TINY, recipe)


def test_averaged_weights_alone_begin_but_do_not_resume(run: Path, toml: Path, folder: Path, tmp_path: Path) -> None:
    tensors, meta = load_tensors(run / "checkpoint-00000006")
    averages = {k: v for k, v in tensors.items() if k.startswith("ema.")}
    alone = tmp_path / "alone"
    save_tensors(alone / "checkpoint-00000006", averages, {k: v for k, v in meta.items() if k != "parts"})
    with pytest.raises(TrainingError, match="averaged weights only; begin a new run with --init"):
        work(toml, folder, alone, {"steps": 8}, resume=True)
    assert same(starting_point(str(alone)).state, {k[4:]: v for k, v in averages.items()})


@pytest.fixture(scope="module")
def released(tiny_folder: Path, toml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny_folder`` with a recipe."""
    folder = tmp_path_factory.mktemp("released") / "tiny"
    folder.mkdir()
    (folder / "weights.safetensors").symlink_to(tiny_folder / "weights.safetensors")
    write_config(folder / "config.toml", TINY, RECIPE)
    return folder


@torch.no_grad()
def test_starting_from_a_released_model(
    released: Path, tiny_model: Released, photo: np.ndarray, folder: Path, toml: Path, tmp_path: Path
) -> None:
    """Its integers as floats have its ELBO, and train on."""
    start = starting_point(str(released))
    assert (start.config, start.recipe) == (TINY, RECIPE)
    trainer = Trainer(TINY, RECIPE, CPU)
    trainer.start_from(start)
    x = random_crops(photo, 16, 64, (7,))
    count = exact_elbo(tiny_model.model, tiny_model.tables, Group(torch.ones_like(x, dtype=torch.bool)), x)
    exact_bpd = (sum(count.kl_bits) + sum(count.pixel_bits)) / x.numel()
    for model in (trainer.model, trainer.ema.model):
        assert validate(model, [x])["validation_bpd"] == pytest.approx(exact_bpd, rel=0.01)
    with torch.enable_grad():
        final = work(toml, folder, tmp_path / "run", start=start)
    assert read_checkpoint(final)[0] == TINY


def test_nothing_to_start_from(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", str(tmp_path / "empty")):
        with pytest.raises(TrainingError, match=f"{name}: neither a run, nor a checkpoint, nor a model to start from"):
            starting_point(name)


# --- export ---


def test_export(run: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    shown = export_run(run, folder, out, force=False)
    assert shown["step"] == 6 and shown["exact_elbo_bpd"] == pytest.approx(shown["float_elbo_bpd"], rel=0.02)
    assert (read_config(out / "config.toml"), read_recipe(out / "config.toml")) == (TINY, RECIPE)
    assert to_dict(starting_point(str(out)).config) == to_dict(TINY)
    assert (out / "loss.png").read_bytes() == (run / "loss.png").read_bytes()
    with pytest.raises(ModelError, match="--force"):
        export_run(run, folder, out, force=False)
    with torch.autocast("cpu", torch.bfloat16):  # what the program around has chosen changes nothing
        assert export_run(run, folder, out, force=True) == shown
    with pytest.raises(ModelError, match="holds no checkpoint"):
        export_run(tmp_path, folder, out, force=True)

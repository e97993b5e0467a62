"""``vdvae-codec train``, and what torchrun starts."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from tiny import TINY
from torch.distributed.run import get_args_parser
from training_worker import RECIPE, rows

from vdvae_codec.cli.main import main
from vdvae_codec.cli.train import train as train_command
from vdvae_codec.images.files import write_image
from vdvae_codec.training.checkpoint import latest_checkpoint, load_tensors, read_checkpoint


@pytest.fixture(scope="module")
def run(folder: Path, toml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training, in its own process."""
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


def test_many_processes_take_the_same_options(toml: Path, folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    more = arguments(toml, folder, run, "--steps", "2", "--batch", "4", "--micro-batch", "1", "--keep", "1")[2:]
    done = subprocess.run([*launch, "-m", "vdvae_codec.training", *more], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{run}/checkpoint-00000002: done\n"  # the first process speaks
    recipe = dataclasses.replace(RECIPE, steps=2, batch=4, micro_batch=1)
    assert read_checkpoint(run / "checkpoint-00000002") == (TINY, recipe)


def test_the_time_budget_ends_with_a_checkpoint(toml: Path, folder: Path, tmp_path: Path) -> None:
    result = invoke(*arguments(toml, folder, tmp_path / "run", "--steps", "1000000", "--minutes", "0.02")[1:])
    last = latest_checkpoint(tmp_path / "run")
    assert (result.exit_code, result.stdout) == (0, f"{last}: done\n"), result.output
    assert last is not None and 0 < load_tensors(last)[1]["step"] < 1000


def test_a_run_is_not_overwritten(run: Path, toml: Path, folder: Path, tmp_path: Path) -> None:
    before = (run / "log.jsonl").read_text()
    result = invoke(*arguments(toml, folder, run)[1:])
    assert result.exit_code == 1 and "checkpoint-00000006; resume it" in result.output
    assert result.output.count("\n") == 1 and (run / "log.jsonl").read_text() == before
    result = invoke(*arguments(toml, folder, tmp_path / "new", "--resume")[1:])
    assert result.exit_code == 1 and "no checkpoint to resume" in result.output
    assert not (tmp_path / "new").exists()


def test_resuming_a_finished_run_changes_nothing(run: Path, toml: Path, folder: Path) -> None:
    before = (run / "log.jsonl").read_text()
    result = invoke(*arguments(toml, folder, run, "--resume")[1:])
    assert (result.exit_code, result.output) == (0, f"{run}/checkpoint-00000006: done\n")
    assert (run / "log.jsonl").read_text() == before


def test_starting_from_another_run(run: Path, folder: Path, toml: Path, tmp_path: Path) -> None:
    before = rows(run)[-1]["validation_bpd"]
    # A learning rate of zero changes nothing; a command without --model takes the run's architecture and recipe.
    still = ["--data", folder, "--init", run, "--learning-rate", 0, "--threads", 1]
    assert invoke("train", "--out", tmp_path / "a", "--steps", 2, *still).exit_code == 0
    last = rows(tmp_path / "a")[-1]
    assert (last["step"], last["validation_bpd"]) == (2, pytest.approx(before))
    recipe = dataclasses.replace(RECIPE, steps=2, learning_rate=0.0, kl_warmup_steps=0)
    assert read_checkpoint(tmp_path / "a/checkpoint-00000002") == (TINY, recipe)
    resumed = invoke("train", "--out", tmp_path / "a", "--data", folder, "--resume", "--steps", 4, "--threads", 1)
    assert resumed.exit_code == 0, resumed.output
    assert read_checkpoint(tmp_path / "a/checkpoint-00000004") == (TINY, dataclasses.replace(recipe, steps=4))

    checkpoint = run / "checkpoint-00000006"
    other = invoke("train", "--model", "photo-2", "--out", tmp_path / "b", "--data", folder, "--init", checkpoint)
    assert (other.exit_code, other.output.count("\n")) == (1, 1), other.output
    nothing = invoke("train", "--out", tmp_path / "c", "--data", folder, "--init", tmp_path / "nowhere")
    assert (nothing.exit_code, nothing.output.count("\n")) == (1, 1)
    assert "nowhere: neither a run" in nothing.output and not (tmp_path / "c").exists()


def test_starting_from_a_shipped_model(folder: Path, tmp_path: Path) -> None:
    short = ["--steps", 1, "--learning-rate", 0, "--batch", 1, "--threads", 1]
    result = invoke("train", "--init", "photo-2", "--data", folder, "--out", tmp_path / "a", *short)
    assert result.exit_code == 0, result.output
    recipe = read_checkpoint(tmp_path / "a/checkpoint-00000001")[1]
    assert (recipe.steps, recipe.kl_warmup_steps, recipe.muon) == (1, 0, 2.5)
    assert rows(tmp_path / "a")[-1]["validation_bpd"] < 4


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


def test_no_option_is_an_abbreviation_of_one_of_torchrun() -> None:
    theirs = [option for action in get_args_parser()._actions for option in action.option_strings]
    ours = [option for parameter in train_command.params for option in parameter.opts]
    assert [o for o in ours if any(their.startswith(o) for their in theirs)] == []

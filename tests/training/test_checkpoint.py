import dataclasses
from pathlib import Path

import pytest
import torch
from tiny import TINY
from training_worker import RECIPE, same

from vdvae_codec.errors import ConfigError, ModelError
from vdvae_codec.model.config import read_config
from vdvae_codec.model.vdvae import VDVAE
from vdvae_codec.training.checkpoint import (
    describe,
    find_checkpoint,
    latest_checkpoint,
    load_float,
    load_tensors,
    read_checkpoint,
    save_tensors,
)
from vdvae_codec.training.recipe import read_recipe, write_config


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
    assert find_checkpoint(tmp_path) == find_checkpoint(tmp_path / "checkpoint-00000010") == latest_checkpoint(tmp_path)
    assert find_checkpoint(tmp_path / "checkpoint-00000012") is None


def test_what_a_checkpoint_says_it_is(tmp_path: Path) -> None:
    state = VDVAE(TINY).state_dict()
    save_tensors(tmp_path / "c", {f"ema.{k}": v for k, v in state.items()}, describe(TINY, RECIPE) | {"step": 7})
    assert read_checkpoint(tmp_path / "c") == (TINY, RECIPE)
    model, recipe, meta = load_float(tmp_path / "c")
    assert same(model.state_dict(), state) and (model.config, recipe, meta["step"]) == (TINY, RECIPE, 7)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    save_tensors(tmp_path / "d", {}, describe(TINY, RECIPE))
    with pytest.raises(ModelError, match="does not hold what its configuration says"):
        load_float(tmp_path / "d")
    save_tensors(tmp_path / "e", {}, {"step": 1})
    with pytest.raises(ModelError, match="no config and recipe"):
        read_checkpoint(tmp_path / "e")


def test_configurations_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    write_config(path, TINY, RECIPE)
    assert (read_config(path), read_recipe(path)) == (TINY, RECIPE)
    assert "weight_decay" not in path.read_text()  # a default
    path.write_text("# a comment\n" + path.read_text())
    write_config(path, TINY, RECIPE)
    assert path.read_text().startswith("# a comment")
    write_config(path, TINY, dataclasses.replace(RECIPE, steps=7, betas=(0.8, 0.9)))
    assert (read_recipe(path).steps, read_recipe(path).betas) == (7, (0.8, 0.9))


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("[train]", "[train]\nspeed = 1", r"train: unknown key speed"),
        ("[train]", "[other]\nx = 1\n[train]", r"unknown table other"),
        ("[train]", "[training]", r"unknown table training"),
        ("steps = 6\n", "", r"train: missing key steps"),
        ("steps = 6\n", "steps = 6.0\n", r"train.steps: expected int, got 6.0"),
        ("steps = 6\n", "steps = true\n", r"train.steps: expected int, got True"),
        ("steps = 6\n", "steps = [\n", r"tiny.toml: "),
        ("steps = 6\n", 'steps = 6\naugment = "blur"\n', r"augment: expected one of turn, photo, mirror, none, got"),
    ],
)
def test_bad_recipes_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "tiny.toml"
    write_config(path, TINY, RECIPE)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message) as error:
        read_recipe(path)
    assert "\n" not in str(error.value) and str(error.value).startswith(str(path))


def test_a_model_without_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    write_config(path, TINY, RECIPE)
    path.write_text(path.read_text().split("[train]")[0])
    assert read_config(path) == TINY
    with pytest.raises(ConfigError, match=r"tiny\.toml: table train is missing"):
        read_recipe(path)


def test_shipped_recipes_are_read() -> None:
    paths = sorted((Path(__file__).parents[2] / "models").glob("*/config.toml"))
    assert len(paths) > 3
    for path in paths:
        assert read_recipe(path).crop % read_config(path).multiple == 0

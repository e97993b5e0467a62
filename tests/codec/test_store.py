import copy
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vdvae_codec.codec.store import WEIGHTS, Released, digest, load_released, model_named, save_released
from vdvae_codec.errors import ExactnessError, ModelError
from vdvae_codec.exact.conv import ExactConv
from vdvae_codec.model.config import read_config
from vdvae_codec.model.vdvae import prepare


@pytest.mark.parametrize("change", ["high", "weight", "bias", "parts"])
def test_a_broken_bound_is_refused(tiny_model: Released, change: str) -> None:
    model = copy.deepcopy(tiny_model.model)
    conv = next(m for m in model.modules() if isinstance(m, ExactConv) and m.weight.shape[1] == 16)
    if change == "high":
        conv.grid[2] *= 1000
    elif change == "weight":
        conv.weight[3] = 2**15 - 1
    elif change == "bias":
        conv.bias[3] = -(2**24)
    else:
        conv.grid[3] = 3
    with pytest.raises(ExactnessError, match=r"^encoder\.\S+: .*(2\^24|cannot be split)"):
        prepare(model)


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Changes a model's tensors and gives it the digest that they have."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    config = read_config(folder / "config.toml")
    save_file(tensors, folder / WEIGHTS, {"digest": digest(config, tensors).hex()})


def test_released_model(tiny_model: Released, tiny_folder: Path, tmp_path: Path) -> None:
    folder = copied(tiny_folder, tmp_path)
    rewrite(folder, lambda tensors: None)
    again = load_released(str(folder), "cpu")
    assert (again.name, again.digest, again.config) == ("copy", tiny_model.digest, tiny_model.config)
    assert tiny_model.name == "tiny" and len(tiny_model.digest) == 16


def test_damaged_weights_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    data = (tiny_folder / WEIGHTS).read_bytes()
    for place in sorted({*range(0, len(data), len(data) // 60), len(data) // 2}):
        folder = copied(tiny_folder, tmp_path / str(place))
        damaged = bytearray(data)
        damaged[place] ^= 1
        (folder / WEIGHTS).write_bytes(damaged)
        with pytest.raises(ModelError) as error:
            load_released(str(folder), "cpu")
        assert "\n" not in str(error.value) and str(folder) in str(error.value)
    (folder / WEIGHTS).write_bytes(data[:-1])
    with pytest.raises(ModelError, match="cannot be read"):
        load_released(str(folder), "cpu")


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("tile = 32", "tile = 64", "do not match their digest"),
        ("zdim = 4", "zdim = 8", "do not match their digest"),
        ("tile = 32", "tile = 33", "tile 33 is no multiple"),
        ("tile = 32", "tiles = 32", "unknown key tiles"),
        ("tile = 32", "tile = ", "Invalid value"),
    ],
)
def test_another_configuration_is_refused(tiny_folder: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    folder = copied(tiny_folder, tmp_path)
    text = (folder / "config.toml").read_text()
    assert old in text
    (folder / "config.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(ModelError, match=message) as error:
        load_released(str(folder), "cpu")
    assert str(folder) in str(error.value) and WEIGHTS not in str(error.value) and "\n" not in str(error.value)


def test_comments_and_recipe_are_no_part_of_a_model(tiny_folder: Path, tmp_path: Path, tiny_model: Released) -> None:
    folder = copied(tiny_folder, tmp_path)
    with (folder / "config.toml").open("a") as file:
        file.write("\n# a recipe\n[train]\nsteps = 2\n")
    assert load_released(str(folder), "cpu").digest == tiny_model.digest


@pytest.mark.parametrize("name", ["known.answer", "known.image", "model.encoder.stem.weight", "tables.weight"])
def test_inexact_arithmetic_is_refused(tiny_folder: Path, tmp_path: Path, name: str) -> None:
    folder = copied(tiny_folder, tmp_path)

    rewrite(folder, lambda tensors: tensors.update({name: tensors[name] ^ 1}))
    with pytest.raises(ExactnessError, match="known answer"):
        load_released(str(folder), "cpu")


def test_absent_models_are_named(tmp_path: Path) -> None:
    for name in ("no-such-model", str(tmp_path)):
        with pytest.raises(ModelError, match=rf"{re.escape(name)}.*photo-2"):
            load_released(name)


def test_weights_exchanged_on_disk_are_noticed(tiny_folder: Path, tmp_path: Path, tiny_model: Released) -> None:
    folder = copied(tiny_folder, tmp_path)
    first = load_released(str(folder), "cpu")
    assert load_released(str(folder), "cpu") is first and first.digest == tiny_model.digest
    tensors = load_file(folder / WEIGHTS)
    image = tensors["known.image"].flip(2)
    save_released(folder, first.config, first.model, image)
    second = load_released(str(folder), "cpu")
    assert second.digest != first.digest and second is load_released(str(folder), "cpu")
    (folder / WEIGHTS).write_bytes((tiny_folder / WEIGHTS).read_bytes())
    assert load_released(str(folder), "cpu").digest == tiny_model.digest


def test_loading_leaves_the_random_state(tiny_folder: Path, tmp_path: Path) -> None:
    folder = copied(tiny_folder, tmp_path)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    load_released(str(folder), "cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_file_may_only_name_shipped_models(tiny_folder: Path, tmp_path: Path, tiny_model: Released) -> None:
    assert model_named("anything", tiny_model.digest, tiny_model, "cpu") is tiny_model
    for name in (str(tiny_folder), "photo-2", "../tiny", ""):
        with pytest.raises(ModelError, match=rf"{re.escape(repr(name))}.*{tiny_model.digest.hex()}.*absent"):
            model_named(name, tiny_model.digest, None, "cpu")


@pytest.mark.parametrize("name", ["photo-2", "cifar10-vdvae", "mnist", "fashion-mnist"])
def test_shipped_models_load_and_their_latents_pay(name: str) -> None:
    released = load_released(name, "cpu")
    assert released.name == name
    assert any(layer.active.any() for layer in released.model.latent_layers)


@pytest.mark.parametrize("name", ["photo-2", "cifar10-causal"])
def test_shipped_causal_models_load(name: str) -> None:
    released = load_released(name, "cpu")
    assert released.name == name and released.config.causal


def test_models_are_saved_alike_under_any_setting(tiny_model: Released, tiny_folder: Path, tmp_path: Path) -> None:
    image = load_file(tiny_folder / WEIGHTS)["known.image"]
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            save_released(tmp_path, tiny_model.config, tiny_model.model, image)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (tmp_path / WEIGHTS).read_bytes() == (tiny_folder / WEIGHTS).read_bytes()

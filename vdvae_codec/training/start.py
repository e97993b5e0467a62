"""What a training may begin with: another training's averaged weights, or a released model's integers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vdvae_codec import DEFAULT_MODEL
from vdvae_codec.codec.store import CONFIG, WEIGHTS, find_config, find_folder, load_released
from vdvae_codec.errors import ModelError, TrainingError
from vdvae_codec.model.config import ModelConfig, read_config
from vdvae_codec.model.vdvae import VDVAE, float_state
from vdvae_codec.training.chance import seeded
from vdvae_codec.training.checkpoint import find_checkpoint, latest_checkpoint, load_float, read_checkpoint
from vdvae_codec.training.recipe import Recipe, read_recipe

CPU = torch.device("cpu")


def architecture(model: str | None, run: Path | None, start: Start | None) -> tuple[ModelConfig, Recipe]:
    """What is trained, and how: those of ``model`` (a shipped one, a folder, a .toml file), else those of the ``run``
    that goes on, else those of ``start``, else the default model's. Raises ModelError or ConfigError."""
    own = latest_checkpoint(run) if run is not None else None
    if model is None and own is not None:
        return read_checkpoint(own)
    if model is None and start is not None:
        return start.config, start.recipe
    path = find_config(model or DEFAULT_MODEL)
    return read_config(path), read_recipe(path)


@dataclass(frozen=True, eq=False)
class Start:
    """A model to begin with, and the recipe that made it."""

    name: str
    config: ModelConfig
    recipe: Recipe
    state: dict[str, Tensor]  # of a float VDVAE, on the CPU


def starting_point(name: str) -> Start:
    """``name`` is the path of a run or of a checkpoint, a shipped model, or the folder of a released one.

    Raises TrainingError if it is none of them; ModelError or ConfigError if it is damaged.
    """
    checkpoint = find_checkpoint(Path(name))
    if checkpoint is not None:
        model, recipe, _ = load_float(checkpoint)
        return Start(name, model.config, recipe, model.state_dict())
    try:
        folder = find_folder(name, WEIGHTS)
    except ModelError as error:
        raise TrainingError(f"{name}: neither a run, nor a checkpoint, nor a model to start from") from error
    recipe, released = read_recipe(folder / CONFIG), load_released(str(folder), "cpu")
    with seeded(0, CPU):
        model = VDVAE(released.config)
    return Start(name, released.config, recipe, float_state(released.model, model))

"""Training checkpoints: safetensors shards and one JSON file in a folder that appears at once or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vdvae_codec.errors import ModelError
from vdvae_codec.model import config as configs
from vdvae_codec.model.config import ModelConfig, from_dict, model_from_dict
from vdvae_codec.model.vdvae import VDVAE
from vdvae_codec.training import recipe as recipes
from vdvae_codec.training.chance import seeded
from vdvae_codec.training.recipe import Recipe


def save_tensors(folder: Path, tensors: dict[str, Tensor], meta: dict[str, Any], shard_mib: float = 1024) -> None:
    """Writes tensors as ``part-N.safetensors`` and ``meta`` as ``meta.json`` into ``folder``, which is replaced.

    A part has at most ``shard_mib`` MiB unless one tensor is larger. A temporary folder is renamed when it is complete.
    """
    shards: list[dict[str, Tensor]] = [{}]
    room = shard_mib * 2**20
    for name in sorted(tensors):
        size = tensors[name].numel() * tensors[name].element_size()
        if shards[-1] and size > room:
            shards.append({})
            room = shard_mib * 2**20
        shards[-1][name] = tensors[name].detach().cpu().contiguous()
        room -= size
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for n, shard in enumerate(shards):
        save_file(shard, temporary / f"part-{n:03d}.safetensors")
    (temporary / "meta.json").write_text(json.dumps({**meta, "parts": len(shards)}, indent=1))
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(temporary, folder)


def load_tensors(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what ``save_tensors`` wrote; raises ModelError if a part is absent or damaged."""
    meta = read_meta(folder)
    tensors: dict[str, Tensor] = {}
    try:
        for n in range(meta["parts"]):
            tensors.update(load_file(folder / f"part-{n:03d}.safetensors"))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder}: not a readable checkpoint ({error})") from error
    return tensors, meta


def read_meta(folder: Path) -> dict[str, Any]:
    """A checkpoint's meta data; raises ModelError."""
    try:
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
        meta["parts"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}: not a readable checkpoint ({error})") from error
    return meta


def describe(config: ModelConfig, recipe: Recipe) -> dict[str, Any]:
    """The part of a checkpoint's meta data that says what it is of, for ``read_checkpoint``."""
    return {"config": configs.to_dict(config), "recipe": recipes.to_dict(recipe)}


def read_checkpoint(folder: Path) -> tuple[ModelConfig, Recipe]:
    """A checkpoint's architecture and recipe, without its tensors; raises ModelError or ConfigError."""
    meta = read_meta(folder)
    if not {"config", "recipe"} <= meta.keys():
        raise ModelError(f"{folder}: not a readable checkpoint (no config and recipe)")
    return model_from_dict(meta["config"]), from_dict(Recipe, meta["recipe"], "recipe")


def averaged(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the moving average among a checkpoint's tensors."""
    return {name[4:]: tensor for name, tensor in tensors.items() if name.startswith("ema.")}


def load_float(folder: Path) -> tuple[VDVAE, Recipe, dict[str, Any]]:
    """A checkpoint's float model with its averaged weights, its recipe and all meta data.

    Raises ModelError or ConfigError.
    """
    config, recipe = read_checkpoint(folder)
    tensors, meta = load_tensors(folder)
    with seeded(0, torch.device("cpu")):
        model = VDVAE(config)
    try:
        model.load_state_dict(averaged(tensors))
    except RuntimeError as error:
        raise ModelError(f"{folder}: does not hold what its configuration says") from error
    return model.requires_grad_(False).eval(), recipe, meta


def find_checkpoint(folder: Path) -> Path | None:
    """``folder`` if it is a checkpoint, else the latest one of the run ``folder``, or None."""
    return folder if (folder / "meta.json").is_file() else latest_checkpoint(folder)


def latest_checkpoint(run: Path) -> Path | None:
    """The checkpoint of a run with the highest step, or None."""
    found = [p for p in run.glob("checkpoint-*") if p.suffix != ".tmp" and (p / "meta.json").exists()]
    return max(found, key=lambda p: int(p.name.split("-")[1]), default=None)

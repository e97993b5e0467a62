"""Training checkpoints: safetensors shards and one JSON file in a folder that appears at once or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vdvae_codec.config import ModelConfig, TrainConfig, from_dict
from vdvae_codec.errors import ModelError


def save_tensors(folder: Path, tensors: dict[str, Tensor], meta: dict[str, Any], shard_mib: float = 1024) -> None:
    """Writes tensors as ``part-N.safetensors``, each at most ``shard_mib`` large unless one tensor is larger, and
    ``meta`` as ``meta.json``, into a temporary folder that is then renamed to ``folder`` (which is replaced)."""
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
    try:
        meta = json.loads((folder / "meta.json").read_text())
        tensors: dict[str, Tensor] = {}
        for n in range(meta["parts"]):
            tensors.update(load_file(folder / f"part-{n:03d}.safetensors"))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(f"{folder}: not a readable checkpoint ({error})") from error
    return tensors, meta


def read_checkpoint(folder: Path) -> tuple[ModelConfig, TrainConfig]:
    """A checkpoint's architecture and recipe, without its tensors; raises ModelError or ConfigError."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        values = meta["config"], meta["recipe"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}: not a readable checkpoint ({error})") from error
    return from_dict(ModelConfig, values[0]), from_dict(TrainConfig, values[1], "recipe")


def find_checkpoint(folder: Path) -> Path | None:
    """``folder`` if it is a checkpoint, else the latest one of the run ``folder``, or None."""
    return folder if (folder / "meta.json").is_file() else latest_checkpoint(folder)


def latest_checkpoint(run: Path) -> Path | None:
    """The checkpoint of a run with the highest step, or None."""
    found = [p for p in run.glob("checkpoint-*") if p.suffix != ".tmp" and (p / "meta.json").exists()]
    return max(found, key=lambda p: int(p.name.split("-")[1]), default=None)

"""Checkpoints of OpenAI's VDVAE code (github.com/openai/vdvae) as ours: every key is mapped, or complained about."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import torch
from torch import Tensor

from vdvae_codec.checkpoint import save_tensors
from vdvae_codec.config import ModelConfig, TrainConfig, write_config
from vdvae_codec.errors import ModelError
from vdvae_codec.model.layers import LatentLayer
from vdvae_codec.model.published import PublishedLatentLayer
from vdvae_codec.model.vdvae import VDVAE

G_R_B = [1, 0, 2]  # our order of the channels, by theirs
SHOWN = 5  # keys in an error


def import_published(file: Path, config: ModelConfig, recipe: TrainConfig, output: Path) -> int:
    """Writes the state dict in ``file`` as a checkpoint of the run ``output``; returns its number of parameters.

    Nothing is executed: the file is read with ``weights_only``. Raises ModelError if it is not a state dict, if keys
    are left over or missing, if shapes differ, or if ``output`` exists.
    """
    if not config.side:
        raise ModelError("only models of a VDVAE as published (presets with side) can be imported")
    if output.exists():
        raise ModelError(f"{output}: exists already")
    model = VDVAE(config)
    state = model.state_dict()
    found = read_state(file)
    keys = published_keys(model)
    for what, names in (("unknown", found.keys() - keys.keys()), ("missing", keys.keys() - found.keys())):
        if names:
            shown = ", ".join(sorted(names)[:SHOWN])
            raise ModelError(f"{file}: {len(names)} {what} keys: {shown}{', ...' * (len(names) > SHOWN)}")
    for theirs, ours in keys.items():
        value = found[theirs]
        if value.shape != state[ours].shape:
            raise ModelError(f"{file}: {theirs} is {tuple(value.shape)}, expected {tuple(state[ours].shape)}")
        state[ours] = value[:, G_R_B] if theirs == "encoder.in_conv.weight" else value
    output.mkdir(parents=True)
    write_config(output / "config.toml", config, recipe)
    meta = {"config": dataclasses.asdict(config), "recipe": dataclasses.asdict(recipe), "step": 0, "seconds": 0.0}
    save_tensors(output / "checkpoint-00000000", {f"ema.{k}": v for k, v in state.items()}, meta)
    return sum(p.numel() for p in model.parameters())


def read_state(file: Path) -> dict[str, Tensor]:
    """A state dict; raises ModelError."""
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ModelError(f"{file}: cannot be read as a state dict ({str(error).splitlines()[0]})") from error
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise ModelError(f"{file}: holds something else than a state dict")
    return {str(k).removeprefix("module."): v.float() for k, v in found.items()}


def published_keys(model: VDVAE) -> dict[str, str]:
    """Their name of every parameter of ours."""
    starts = [
        f"layers.{n}.start" for n, layer in enumerate(model.layers)
        if isinstance(layer, PublishedLatentLayer) and layer.start is not None
    ]
    last = len(model.layers) - 1
    named = {name: f"decoder.bias_xs.{n}" for n, name in enumerate(["bias", *starts])}
    named |= {f"layers.{last}.{part}": f"decoder.{part}" for part in ("gain", "bias")}
    named |= {f"layers.{last}.head.{part}": f"decoder.out_net.out_conv.{part}" for part in ("weight", "bias")}
    keys = {}
    for name, _ in model.named_parameters():
        if name in named:
            keys[named[name]] = name
        elif name.startswith("encoder."):
            keys[name] = name
        else:
            _, n, part = name.split(".", 2)
            assert isinstance(model.layers[int(n)], LatentLayer)
            keys[f"decoder.dec_blocks.{n}.{part.replace('posterior.', 'enc.')}"] = name
    return keys

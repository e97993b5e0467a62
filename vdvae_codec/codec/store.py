"""An exact model as a folder: config.toml, weights.safetensors, card.md; written by export, checked when loaded.

Weights are part of the file format. A model is identified by a digest of its integers and architecture; a .vdz holds
its name (the folder's) and its digest. Every model carries a known answer: loading runs it, and where the arithmetic of
this device gives anything else, the model is refused instead of writing files that no one can read.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vdvae_codec.codec.group import Group
from vdvae_codec.codec.visitors import push_group
from vdvae_codec.entropy.ans import Stack
from vdvae_codec.errors import ConfigError, ExactnessError, ModelError
from vdvae_codec.exact.activations import activations_are_exact
from vdvae_codec.exact.arithmetic import eager, plain
from vdvae_codec.exact.cdf import Tables, make_tables
from vdvae_codec.model.config import ModelConfig, read_config, to_dict
from vdvae_codec.model.vdvae import VDVAE, exact_twin, prepare

WEIGHTS = "weights.safetensors"
CONFIG = "config.toml"


@dataclass(frozen=True, eq=False)
class Released:
    """A model that can code: ready to run on one device."""

    name: str
    digest: bytes  # 16 bytes
    config: ModelConfig
    model: VDVAE
    tables: Tables
    device: torch.device
    folder: Path


def digest(config: ModelConfig, tensors: dict[str, Tensor]) -> bytes:
    """SHA-256 (first 16 bytes) over the architecture and every tensor's name, type, shape and bytes.

    Settings at their defaults are left out, so that one that is added later changes no digest.
    """
    architecture = to_dict(config, single=True)
    sha = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
    for name in sorted(tensors):
        array = tensors[name].contiguous().numpy()
        sha.update(f"{name} {array.dtype.str} {array.shape}".encode() + array.tobytes())
    return sha.digest()[:16]


def known_answer(model: VDVAE, tables: Tables, image: Tensor) -> bytes:
    """SHA-256 of the words that coding ``image`` (3, H, W) uint8 twice gives: once directly, once borrowing bits.

    The second coding runs through prior, posterior, likelihood and tables alike.
    """
    device = next(model.parameters()).device
    x = image.to(device).float()[None].contiguous(memory_format=torch.channels_last)
    stack = Stack()
    for direct in (True, False):
        push_group(model, tables, Group(torch.ones_like(x, dtype=torch.bool)), x, stack, direct)
    return hashlib.sha256(stack.words().astype("<u4").tobytes()).digest()


@plain()
def save_released(folder: Path, config: ModelConfig, model: VDVAE, image: Tensor) -> bytes:
    """Writes ``weights.safetensors`` of an exact model, with its known answer on ``image`` (3, H, W) uint8, G, R, B.

    Returns the digest.
    """
    tables = make_tables()
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"tables.{k}": v for k, v in tables._asdict().items()}
    tensors["known.image"] = image
    tensors["known.answer"] = torch.from_numpy(np.frombuffer(known_answer(model, tables, image), np.uint8).copy())
    tensors = {k: v.cpu().contiguous() for k, v in tensors.items()}
    name = digest(config, tensors)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / (WEIGHTS + ".tmp")
    save_file(tensors, temporary, {"digest": name.hex()})
    temporary.chmod(0o644)
    temporary.replace(folder / WEIGHTS)
    return name


def find_folder(name: str, file: str) -> Path:
    """The folder of a model: a path, or the name of a shipped one that has ``file``; raises ModelError."""
    for folder in (shipped() / name, Path(name)) if name == Path(name).name else (Path(name),):
        if (folder / file).is_file():
            return folder
    names = sorted(p.parent.name for p in shipped().glob(f"*/{file}"))
    shown = ", ".join(names) or "none"
    raise ModelError(f"model {name!r} is neither a shipped model ({shown}) nor a folder with {file}")


def shipped() -> Path:
    """The folder of the shipped models."""
    return Path(str(importlib.resources.files("vdvae_codec.models")))


def find_config(name: str) -> Path:
    """The config.toml of a shipped model, of a folder, or a path to one; raises ModelError."""
    return Path(name) if Path(name).suffix == ".toml" else find_folder(name, CONFIG) / CONFIG


def pick_device(name: str) -> torch.device:
    """'auto', 'cpu' or 'cuda' to a device; raises ModelError if CUDA is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError("device cuda was asked for, but no CUDA device is available")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@eager
def load_released(name: str | Released, device_name: str = "auto") -> Released:
    """Loads a model by name or folder and verifies digest, bounds and known answer; a loaded one is what it is.

    The last few are kept, by their digests. Raises ModelError for absent or damaged models, ExactnessError where this
    machine's arithmetic is not exact.
    """
    if isinstance(name, Released):
        return name
    folder, device = find_folder(name, WEIGHTS), pick_device(device_name)
    try:
        config = read_config(folder / CONFIG)
        with safe_open(folder / WEIGHTS, "pt") as file:
            expected = bytes.fromhex((file.metadata() or {}).get("digest", ""))
    except (OSError, SafetensorError, ValueError, ConfigError) as error:
        raise ModelError(f"{folder}: cannot be read ({error})") from error
    with plain():
        return _load(folder.resolve(), config, expected, device)


@functools.lru_cache(maxsize=4)
def _load(folder: Path, config: ModelConfig, expected: bytes, device: torch.device) -> Released:
    path = folder / WEIGHTS
    try:
        with safe_open(path, "pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read ({error})") from error
    if digest(config, tensors) != expected:
        raise ModelError(f"{folder}: weights and configuration do not match their digest; the model is damaged")
    with torch.random.fork_rng(devices=[]):
        model = exact_twin(VDVAE(config))
    try:
        model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        tables = Tables(*(tensors[f"tables.{field}"].to(device) for field in Tables._fields))
        image, answer = tensors["known.image"], bytes(tensors["known.answer"].numpy())
    except (RuntimeError, KeyError) as error:
        raise ModelError(f"{path}: does not hold what its configuration says") from error
    prepare(model)
    model = model.to(device)
    if not activations_are_exact(device) or known_answer(model, tables, image) != answer:
        raise ExactnessError(f"{folder}: the arithmetic of this device ({device}) does not give the known answer")
    return Released(folder.name, expected, config, model, tables, device, folder)


def model_named(name: str, wanted: bytes, model: str | Released | None, device: str) -> Released:
    """The model with the digest ``wanted`` that a file names, shipped or else ``model``.

    A file can name no other folder. Raises ModelError with name and digest where the model is absent.
    """
    for candidate in (str(shipped() / name) if name == Path(name).name else None, model):
        if candidate is not None:
            try:
                released = load_released(candidate, device)
            except ExactnessError:
                raise
            except ModelError:
                continue
            if released.digest == wanted:
                return released
    raise ModelError(f"model {name!r} with digest {wanted.hex()} is needed to decode, and absent")

"""How a model is trained: the table [train] of its config.toml; unknown keys raise."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vdvae_codec.errors import ConfigError
from vdvae_codec.model import config as configs
from vdvae_codec.model.config import ModelConfig, from_dict, plain, read_tables, write_tables
from vdvae_codec.training.augment import AUGMENTS


@dataclass(frozen=True)
class Recipe:
    """Recipe of one model; the command line may override single values."""

    steps: int
    batch: int = 8  # images of a step, over all processes
    micro_batch: int = 0  # images of one forward and backward pass, whose gradients are accumulated; 0 = all at once
    recompute: bool = False  # trade time for memory: keep only the inputs of residual blocks for the backward pass
    crop: int = 64
    augment: str = "turn"  # one of ``augment.AUGMENTS``
    learning_rate: float = 1e-3
    muon: float = 0.0  # learning rate of Muon, for the weights between features, relative to learning_rate; 0 = AdamW
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = 500
    cooldown: float = 1.0  # last part of the steps over which the rate falls as a cosine; 1 = pure cosine
    kl_warmup_steps: int = 2000  # the KL weight rises from 0.001 to 1 over these steps
    free_nats: float = 0.0  # KL of a latent layer's position that costs nothing
    ema: float = 0.999
    clip: float = 2.0  # gradient norms over clip * running norm are scaled down
    skip: float = 20.0  # updates with a norm over skip * running norm (or not finite) are skipped
    validate_every: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.augment not in AUGMENTS:
            raise ConfigError(f"augment: expected one of {', '.join(AUGMENTS)}, got {self.augment!r}")


def read_recipe(path: Path) -> Recipe:
    """The recipe in a config.toml; raises ConfigError naming the file."""
    tables = read_tables(path)
    try:
        if "train" not in tables:
            raise ConfigError("table train is missing")
        return from_dict(Recipe, tables["train"], "train")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """The table [train], without values that are their defaults."""
    return plain(dataclasses.asdict(recipe), Recipe)


def write_config(path: Path, config: ModelConfig, recipe: Recipe) -> None:
    """Writes a config.toml with architecture and recipe; a file that says the same already keeps its comments."""
    write_tables(path, configs.to_dict(config) | {"train": to_dict(recipe)})

"""Frozen configurations, read from a model's ``config.toml``; unknown keys raise."""

from __future__ import annotations

import dataclasses
import itertools
import tomllib
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from vdvae_codec.errors import ConfigError

T = TypeVar("T")

DEFAULT_MODEL = "photo-3"


@dataclass(frozen=True)
class StageConfig:
    """Layers that share one grid, in coding order: ``latents`` latent layers, then the pixel layers.

    A pixel layer holds the sub-pixels ``x[:, :, dy::stride, dx::stride]`` of one offset ``(dy, dx)``.
    """

    stride: int  # image pixels per grid step
    width: int  # channels of the shared state
    bottleneck: int  # channels inside residual blocks
    latents: int = 0  # number of latent layers
    zdim: int = 0  # channels of each latent
    encoder_blocks: int = 0  # bottom-up residual blocks at this stride; as published, the last one is pooled
    pixels: tuple[tuple[int, int], ...] = ()  # offset (dy, dx) of each pixel layer
    blocks: tuple[int, ...] = ()  # residual blocks in front of each pixel layer's head
    pairs: bool = False  # residual blocks are two 3x3 convolutions in place of VDVAE's bottleneck


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of one model: a top-down list of stages."""

    mixtures: int  # logistic components of a sub-pixel's distribution
    stages: tuple[StageConfig, ...]
    joint: bool = False  # whether components span the colours, each with linear predictors of its own
    predictor: int = 5  # kernel size of the linear predictors of each pixel layer
    texture: bool = False  # whether the encoder sees second differences as well
    tile: int = 256  # largest side of the tiles that the codec cuts images into
    side: int = 0  # of the square images of a VDVAE as published (``model.published``); 0 = ours, of any size
    mean: float = 128.0  # pixel levels that the encoder sees as zero ...
    std: float = 64.0  # ... and their unit
    bits: int = 8  # of a sub-pixel; fewer for scores only: the codec does not drop bits
    channels: int = 3  # 1: made for grey images; the first colour counts, the others copy it

    def __post_init__(self) -> None:
        strides = [stage.stride for stage in self.stages]
        if not strides:
            raise ConfigError("a model needs at least one stage")
        if any(s < 1 or s & (s - 1) for s in strides) or strides != sorted(strides, reverse=True):
            raise ConfigError(f"stage strides must be powers of two, from coarse to fine: {strides}")
        for stage in self.stages:
            if len(stage.pixels) != len(stage.blocks):
                counts = f"{len(stage.pixels)} pixel layers, {len(stage.blocks)} block counts"
                raise ConfigError(f"stride {stage.stride}: {counts}")
            if any(not 0 <= d < stage.stride for offset in stage.pixels for d in offset):
                raise ConfigError(f"stride {stage.stride}: a pixel offset lies outside the grid step")
        if self.tile < 1 or self.tile % self.max_stride:
            raise ConfigError(f"tile {self.tile} is no multiple of the largest stride {self.max_stride}")
        if self.side:
            last = self.stages[-1]
            if self.side != self.max_stride or self.tile != self.side:
                raise ConfigError(f"a VDVAE as published begins at stride {self.side}, and its tiles have that size")
            if last.pixels != ((0, 0),) or last.blocks != (0,) or any(s.pixels for s in self.stages[:-1]):
                raise ConfigError("a VDVAE as published has one pixel layer, the last, without blocks")
        if self.channels not in (1, 3):
            raise ConfigError(f"channels: expected 1 or 3, got {self.channels}")
        if not 1 <= self.bits <= 8:
            raise ConfigError(f"bits: expected 1 to 8, got {self.bits}")
        cell = self.max_stride
        held = [
            (y, x) for s in self.stages for dy, dx in s.pixels
            for y in range(dy, cell, s.stride) for x in range(dx, cell, s.stride)
        ]
        if len(held) != len(set(held)):
            raise ConfigError("two pixel layers hold the same pixels")
        if len(held) != cell**2:
            raise ConfigError(f"the pixel layers hold {len(held)} of the {cell**2} pixels of a grid cell")

    @property
    def max_stride(self) -> int:
        """Sides of coded tiles are multiples of this many pixels."""
        return self.stages[0].stride

    def by_stride(self, latents: Sequence[float], pixels: Sequence[float]) -> dict[int, tuple[float, float]]:
        """Sums over the layers of each stride, from coarse to fine, of a value for each latent and each pixel layer."""
        left, right = iter(latents), iter(pixels)
        sums = {stage.stride: (0.0, 0.0) for stage in self.stages}
        for stage in self.stages:
            kl, pixel = sums[stage.stride]
            sums[stage.stride] = (
                kl + sum(itertools.islice(left, stage.latents)),
                pixel + sum(itertools.islice(right, len(stage.pixels))),
            )
        return sums


@dataclass(frozen=True)
class TrainConfig:
    """Recipe of one model; the command line may override single values."""

    steps: int
    batch: int = 8  # images of a step, over all processes
    micro_batch: int = 0  # images of one forward and backward pass, whose gradients are accumulated; 0 = all at once
    recompute: bool = False  # trade time for memory: keep only the inputs of residual blocks for the backward pass
    crop: int = 64
    augment: str = "turn"  # or "photo" (and random processing), "mirror" (left to right), "none"
    learning_rate: float = 1e-3
    muon: float = 0.0  # learning rate of Muon, for the weights between features, relative to learning_rate; 0 = AdamW
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = 500
    cooldown: float = 1.0  # last part of the steps over which the rate falls as a cosine; 1 = pure cosine
    kl_warmup_steps: int = 2000  # the KL weight rises from 0.001 to 1 over these steps
    ema: float = 0.999
    clip: float = 2.0  # gradient norms over clip * running norm are scaled down
    skip: float = 20.0  # updates with a norm over skip * running norm (or not finite) are skipped
    validate_every: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.augment not in ("turn", "photo", "mirror", "none"):
            raise ConfigError(f"augment: expected turn, photo, mirror or none, got {self.augment!r}")


def _convert(value: Any, kind: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return from_dict(kind, value, where)
    if origin is tuple:
        args = typing.get_args(kind)
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        kinds = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            raise ConfigError(f"{where}: expected {len(kinds)} values, got {len(value)}")
        return tuple(_convert(v, k, f"{where}[{i}]") for i, (v, k) in enumerate(zip(value, kinds)))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool):
        raise ConfigError(f"{where}: expected {kind.__name__}, got {value!r}")
    return value


def from_dict(kind: type[T], values: Any, where: str = "config") -> T:
    """Builds the frozen dataclass ``kind`` from plain values (TOML or JSON).

    Raises ConfigError for unknown keys, missing keys and wrong types, naming the place.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected a table, got {values!r}")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(f"{where}: unknown key {', '.join(unknown)}")
    missing = [
        f.name for f in dataclasses.fields(kind)  # type: ignore[arg-type]
        if f.default is dataclasses.MISSING and f.name not in values
    ]
    if missing:
        raise ConfigError(f"{where}: missing key {', '.join(missing)}")
    return kind(**{k: _convert(v, hints[k], f"{where}.{k}") for k, v in values.items()})


def read_config(path: Path) -> tuple[ModelConfig, TrainConfig]:
    """Reads ``[model]`` (with ``[[model.stages]]``) and ``[train]`` from a TOML file; raises ConfigError."""
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    unknown = sorted(set(values) - {"model", "train"})
    if unknown:
        raise ConfigError(f"{path}: unknown table {', '.join(unknown)}")
    for table in ("model", "train"):
        if table not in values:
            raise ConfigError(f"{path}: table [{table}] is missing")
    return from_dict(ModelConfig, values["model"], "model"), from_dict(TrainConfig, values["train"], "train")


def write_config(path: Path, model: ModelConfig, train: TrainConfig) -> None:
    """Writes what ``read_config`` reads; a file that says the same already keeps its comments."""
    if path.exists() and read_config(path) == (model, train):
        return
    path.write_text(tomli_w.dumps({"model": dataclasses.asdict(model), "train": dataclasses.asdict(train)}))

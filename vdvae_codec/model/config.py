"""What a model is: frozen configurations, read from its ``config.toml``; unknown keys raise."""

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
from vdvae_codec.images.tiling import tile_grid, wave_tile
from vdvae_codec.model.encoder import EncoderConfig
from vdvae_codec.model.kinds import ENCODERS, KINDS
from vdvae_codec.model.layers.base import LayerConfig
from vdvae_codec.model.layers.causal import CausalConfig

T = TypeVar("T")
TABLES = ("model", "encoder", "layers", "train")  # of a config.toml; ``train`` is a recipe's (training.recipe)


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of one model: a top-down list of layers, each entry a config of its kind, and the encoder."""

    layers: tuple[LayerConfig, ...]
    encoder: EncoderConfig | None = None
    tile: int = 256  # largest side of the tiles that the codec cuts images into
    side: int = 0  # of the square images that the model is for; 0 = any size
    channels: int = 3  # 1: made for grey images; the first colour counts, the others copy it

    def __post_init__(self) -> None:
        strides = [layer.stride for layer in self.layers]
        if not strides:
            raise ConfigError("a model needs at least one layer")
        if any(s < 1 or s & (s - 1) for s in strides) or strides != sorted(strides, reverse=True):
            raise ConfigError(f"strides of layers must be powers of two, from coarse to fine: {strides}")
        if self.tile < 1 or self.tile % self.multiple:
            raise ConfigError(f"tile {self.tile} is no multiple of {self.multiple}, which the layers need")
        if self.side and self.tile != self.side:
            raise ConfigError(f"a model for images of {self.side}x{self.side} has tiles of that size")
        if self.channels not in (1, 3):
            raise ConfigError(f"channels: expected 1 or 3, got {self.channels}")
        self._check_pixels()
        seen = {stage.stride: stage.width for stage in self.encoder.stages} if self.encoder else {}
        for layer in self.layers:
            if layer.needs_encoder and seen.get(layer.stride) != layer.width:
                raise ConfigError(f"stride {layer.stride}: the encoder has no stage of width {layer.width} there")

    def _check_pixels(self) -> None:
        """Every pixel must be held by one layer."""
        step = max((layer.stride for layer in self.layers if layer.holds), default=1)
        held = [
            (y, x) for layer in self.layers for dy, dx in layer.holds
            for y in range(dy, step, layer.stride) for x in range(dx, step, layer.stride)
        ]
        if len(held) != len(set(held)):
            raise ConfigError("two layers hold the same pixels")
        if len(held) != step**2:
            raise ConfigError(f"the layers hold {len(held)} of the {step**2} pixels of a grid step")

    @property
    def max_stride(self) -> int:
        return self.layers[0].stride

    @property
    def multiple(self) -> int:
        """Sides of coded tiles are multiples of this many pixels."""
        if self.encoder is not None and not self.encoder.COVERS:
            return self.max_stride
        return max(2, *(layer.stride for layer in self.layers if layer.holds))

    @property
    def strides(self) -> list[int]:
        """Of all layers, from coarse to fine."""
        return list(dict.fromkeys(layer.stride for layer in self.layers))

    @property
    def causal(self) -> bool:
        """Whether one causal layer holds all pixels, which are then decoded in wavefronts."""
        return any(isinstance(layer, CausalConfig) and layer.stride == 1 for layer in self.layers)

    def tile_of(self, height: int, width: int) -> tuple[int, int]:
        """The tiles that images of a size are cut into: part of the format, never to be changed."""
        rule = wave_tile if self.causal and not self.side else tile_grid
        return rule(height, width, self.tile, self.multiple)

    def single_layers(self) -> list[LayerConfig]:
        """One config for each layer."""
        return [one for layer in self.layers for one in layer.single()]

    def by_stride(self, latents: Sequence[float], pixels: Sequence[float]) -> dict[int, tuple[float, float]]:
        """Sums over the layers of each stride, from coarse to fine, of a value for each latent and each pixel layer."""
        left, right = iter(latents), iter(pixels)
        sums = dict.fromkeys(self.strides, (0.0, 0.0))
        for layer in self.layers:
            kl, pixel = sums[layer.stride]
            count = len(layer.single())
            if layer.holds:
                pixel += sum(itertools.islice(right, count))
            elif layer.needs_encoder:
                kl += sum(itertools.islice(left, count))
            sums[layer.stride] = (kl, pixel)
        return sums


def to_dict(config: ModelConfig, *, single: bool = False) -> dict[str, Any]:
    """The tables [model], [encoder] and [[layers]] of a config.toml, without values that are their defaults; with
    ``single`` an entry for each layer."""
    layers = config.single_layers() if single else config.layers
    model = {"tile": config.tile} | plain({"side": config.side, "channels": config.channels}, ModelConfig)
    tables: dict[str, Any] = {"model": model}
    if config.encoder is not None:
        tables["encoder"] = kind_to_dict(config.encoder)
    return tables | {"layers": [kind_to_dict(layer) for layer in layers]}


def kind_to_dict(config: Any) -> dict[str, Any]:
    return {"kind": config.KIND} | plain(dataclasses.asdict(config), type(config))


def plain(values: dict[str, Any], kind: Any) -> dict[str, Any]:
    """Without the defaults of the dataclass ``kind``."""
    defaults = {f.name: f.default for f in dataclasses.fields(kind)}
    return {name: value for name, value in values.items() if value != defaults[name]}


def model_from_dict(tables: dict[str, Any]) -> ModelConfig:
    """Of the tables [model], [encoder] and [[layers]]; raises ConfigError."""
    for table in ("model", "layers"):
        if table not in tables:
            raise ConfigError(f"table {table} is missing")
    if not isinstance(tables["layers"], list):
        raise ConfigError("layers: expected a list of tables, [[layers]]")
    kinds = {kind: layer.Config for kind, layer in KINDS.items()}
    encoders = {kind: encoder.Config for kind, encoder in ENCODERS.items()}
    layers = tuple(of_kind(kinds, values, f"layers[{n}]") for n, values in enumerate(tables["layers"]))
    encoder = of_kind(encoders, tables["encoder"], "encoder") if "encoder" in tables else None
    model = tables["model"]
    if not isinstance(model, dict) or {"layers", "encoder"} & set(model):
        raise ConfigError("model: expected a table of plain values")
    others = from_dict(_ModelTable, model, "model")
    return ModelConfig(layers, encoder, others.tile, others.side, others.channels)


@dataclass(frozen=True)
class _ModelTable:
    """The table [model]."""

    tile: int = 256
    side: int = 0
    channels: int = 3


def of_kind(kinds: dict[str, Any], values: Any, where: str) -> Any:
    """The config of a table whose ``kind`` names it; raises ConfigError."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected a table, got {values!r}")
    kind = values.get("kind")
    if kind not in kinds:
        raise ConfigError(f"{where}: kind must be one of {', '.join(kinds)}, got {kind!r}")
    return from_dict(kinds[kind], {k: v for k, v in values.items() if k != "kind"}, where)


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
    hints = {f.name: hint for f in dataclasses.fields(kind)  # type: ignore[arg-type]
             if (hint := typing.get_type_hints(kind)[f.name])}
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


def read_tables(path: Path) -> dict[str, Any]:
    """The tables of a config.toml; raises ConfigError for unknown ones, or if the file cannot be read."""
    try:
        tables = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    unknown = sorted(set(tables) - set(TABLES))
    if unknown:
        raise ConfigError(f"{path}: unknown table {', '.join(unknown)}")
    return tables


def read_config(path: Path) -> ModelConfig:
    """The architecture in a config.toml; raises ConfigError naming the file."""
    tables = read_tables(path)
    try:
        return model_from_dict(tables)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def write_tables(path: Path, tables: dict[str, Any]) -> None:
    """Writes a config.toml; a file that says the same already keeps its comments."""
    text = tomli_w.dumps(tables)
    if not path.exists() or tomllib.loads(path.read_text()) != tomllib.loads(text):
        path.write_text(text)

"""The VDVAE of the paper and of OpenAI's code (arXiv 2011.10650; github.com/openai/vdvae), as kinds of our layer list.

It differs from this package's own models by gelu, 1x1 kernels where the grid is a point, features learned for each
position at the start of a stage, a convolutional encoder down to one point, and one pixel layer for the whole image.
Its images have one size. A checkpoint of theirs becomes ours by the names of its keys.
"""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vdvae_codec.errors import ConfigError, ModelError
from vdvae_codec.exact.activations import GELU
from vdvae_codec.model.blocks import Block, Conv, Gives, Tanh, full, pool
from vdvae_codec.model.distributions.joint import JointMixture
from vdvae_codec.model.encoder import EncoderConfig
from vdvae_codec.model.layers.base import Layer, Offset, Place, State, Visitor
from vdvae_codec.model.layers.latent import LatentConfig, LatentLayer
from vdvae_codec.model.layers.phase import PhaseLayer

if TYPE_CHECKING:
    from vdvae_codec.model.vdvae import VDVAE

UNIT = 127.5  # pixel levels in which the output's mixtures are given, and of their centre
ORDER = (1, 0, 2)  # colours are coded as R, G, B, while ours begin with G
G_R_B = [1, 0, 2]  # our order of the channels, by theirs
LOWEST_LOG_SCALE = -7.0
SHOWN = 5  # keys in an error


@dataclass(frozen=True)
class PublishedEncoderConfig(EncoderConfig):
    """``[encoder]`` of the kind "child2021": the last block of each stage but the coarsest is pooled."""

    KIND: ClassVar[str] = "child2021"

    mean: float = 128.0  # pixel levels that the encoder sees as zero ...
    std: float = 64.0  # ... and their unit


class PublishedEncoder(nn.Module):
    """x (B, 3, H, W) in pixel levels -> {stride: activations (B, width, H/stride, W/stride)}."""

    Config = PublishedEncoderConfig

    def __init__(self, config: PublishedEncoderConfig):
        super().__init__()
        self.mean, self.std = config.mean, config.std
        self.stages = config.stages[::-1]  # fine to coarse
        side = self.stages[-1].stride  # of the images: the coarsest grid is a point
        self.in_conv = Conv(3, self.stages[0].width, 3)
        gain = sum(s.blocks for s in self.stages) ** -0.5
        self.enc_blocks = nn.ModuleList(
            Block(s.width, s.bottleneck, gain, act=GELU, kernel=3 if side // s.stride > 2 else 1)
            for s in self.stages for _ in range(s.blocks)
        )

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        acts: dict[int, Tensor] = {}
        blocks = iter(self.enc_blocks)
        h = self.in_conv((x - self.mean) / self.std)
        for stage, coarser in zip(self.stages, (*self.stages[1:], None)):
            for _ in range(stage.blocks - (coarser is not None)):
                h = next(blocks)(h)
            acts[stage.stride] = h
            if coarser is not None:
                h = pool(next(blocks)(h), coarser.stride // stage.stride)
                h = F.pad(h, (0, 0, 0, 0, 0, coarser.width - h.shape[1]))
        return acts


@dataclass(frozen=True)
class PublishedLatentConfig(LatentConfig):
    """Latent layers of a stage; ``start`` is the side of the grid of features learned for each position, which the
    first of them adds, 0 for none ("no_bias_above")."""

    KIND: ClassVar[str] = "child2021.latent"

    start: int = 0

    @property
    def depth(self) -> int:
        return 1

    def single(self) -> list[Self]:
        return [replace(self, repeat=1), *[replace(self, repeat=1, start=0)] * (self.repeat - 1)]


class PublishedLatentLayer(LatentLayer):
    """A latent layer on the first channels of the state."""

    Config = PublishedLatentConfig

    def __init__(self, config: PublishedLatentConfig, place: Place):
        super().__init__(config, replace(place, width=config.width), act=GELU)
        self.width, side = config.width, config.start
        self.start = nn.Parameter(torch.zeros(1, config.width, side, side)) if side else None

    def enter(self, state: State) -> Tensor:
        h = super().enter(state)[:, : self.width]
        return h if self.start is None else h + self.start


@dataclass(frozen=True)
class PublishedPixelConfig:
    """The one pixel layer."""

    KIND: ClassVar[str] = "child2021.pixels"

    width: int
    mixtures: int
    bits: int = 8  # of a sub-pixel; fewer for scores only: the codec does not drop bits

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ConfigError(f"bits: expected 1 to 8, got {self.bits}")

    @property
    def stride(self) -> int:
        return 1

    @property
    def depth(self) -> int:
        return 0

    @property
    def holds(self) -> tuple[Offset, ...]:
        return ((0, 0),)

    @property
    def needs_encoder(self) -> bool:
        return False

    def single(self) -> list[Self]:
        return [self]


class PublishedPixelLayer(PhaseLayer):
    """p(x | z) of all pixels: a mixture whose components span the colours."""

    Config = PublishedPixelConfig  # type: ignore[assignment]

    def __init__(self, config: PublishedPixelConfig, place: Place):
        Layer.__init__(self, config, replace(place, width=config.width))
        self.offset, self.context, self.mixtures, self.bits = (0, 0), [], config.mixtures, config.bits
        self.channels = place.channels
        self.gain = nn.Parameter(torch.ones(1, config.width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, config.width, 1, 1))
        self.head = Conv(config.width, 10 * config.mixtures, 1, gives=Gives.PARAMETERS)
        self.tanh = Tanh()

    def forward(self, state: State, visit: Visitor) -> State:
        h = self.enter(state)
        b, _, height, width = h.shape
        out = full(self.head(h * self.gain + self.bias)).contiguous()
        logits, rest = out[:, : self.mixtures], out[:, self.mixtures :]
        rest = rest.reshape(b, 3, 3, self.mixtures, height, width).transpose(1, 3)  # (B, K, parameter, R G B, h, w)
        mean, log_scale, coupling = rest.unbind(2)
        loc = (mean * UNIT)[:, :, G_R_B]
        log_sigma = (log_scale.clamp(min=LOWEST_LOG_SCALE) + math.log(UNIT))[:, :, G_R_B]
        base = torch.full_like(loc[:, :1, :, :1, :1], UNIT)
        p = JointMixture(logits, loc, log_sigma, base, self.tanh(coupling), ORDER, self.bits)
        visit.pixels(self, p, state.x)
        return State(h, self.stride, state.x)


def published_state(file: Path, model: VDVAE) -> dict[str, Tensor]:
    """The state dict of OpenAI's code in ``file`` as one of ``model``: every key is mapped, or complained about.

    Nothing is executed: the file is read with ``weights_only``. Raises ModelError if it is not a state dict, if keys
    are left over or missing, or if shapes differ.
    """
    state = model.state_dict()
    found, keys = read_state(file), published_keys(model)
    for what, names in (("unknown", found.keys() - keys.keys()), ("missing", keys.keys() - found.keys())):
        if names:
            shown = ", ".join(sorted(names)[:SHOWN])
            raise ModelError(f"{file}: {len(names)} {what} keys: {shown}{', ...' * (len(names) > SHOWN)}")
    for theirs, ours in keys.items():
        value = found[theirs]
        if value.shape != state[ours].shape:
            raise ModelError(f"{file}: {theirs} is {tuple(value.shape)}, expected {tuple(state[ours].shape)}")
        state[ours] = value[:, G_R_B] if theirs == "encoder.in_conv.weight" else value
    return state


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
    """Their name of every parameter of ours; raises ModelError for a model of other kinds of layers."""
    latents, last = list(model.layers)[:-1], len(model.layers) - 1
    published = all(isinstance(layer, PublishedLatentLayer) for layer in latents)
    if not published or not isinstance(model.layers[last], PublishedPixelLayer):
        raise ModelError("only models of a VDVAE as published (kinds child2021) can be imported")
    starts = [f"layers.{n}.start" for n, layer in enumerate(latents) if layer.start is not None]
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
            keys[f"decoder.dec_blocks.{n}.{part.replace('posterior.', 'enc.')}"] = name
    return keys

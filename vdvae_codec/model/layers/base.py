"""What all layers share: the state that they pass on, the visitor, and what a kind of layer must have.

A layer takes the state, hands what it knows to the visitor, and leaves the state richer for the next layer. It does
not know whether it is trained, scored, sampled, or coded: that is the visitor's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import torch.nn as nn
from torch import Tensor

from vdvae_codec.model.blocks import Conv, cells, full, upsample
from vdvae_codec.model.distributions.gaussian import Gaussian
from vdvae_codec.model.distributions.logistics import Mixture

if TYPE_CHECKING:
    from vdvae_codec.model.layers.causal import CausalLayer
    from vdvae_codec.model.layers.latent import LatentLayer

Offset = tuple[int, int]  # dy, dx within a grid step
Acts = Mapping[int, Tensor]  # the encoder's activations (B, width, H/stride, W/stride) by stride


@dataclass
class State:
    """What the layers share: features (B, C, H/stride, W/stride) and the image, known as far as it is coded.

    ``x`` is (B, 3, H, W) float32 in pixel levels, channels G, R, B.
    """

    h: Tensor
    stride: int
    x: Tensor


class Visitor(Protocol):
    """What happens at each layer of the walk."""

    def latent(self, layer: LatentLayer, p: Gaussian, posterior: Callable[[Acts], Gaussian]) -> Tensor:
        """Returns z (B, zdim, h, w), given the prior; ``posterior`` computes q from the encoder's activations."""

    def pixels(self, layer: PixelLayer, p: Mixture, x: Tensor) -> None:
        """Makes ``layer.plane(x)`` valid, if it is not yet."""

    def causal(self, layer: CausalLayer, state: State) -> None:
        """The same for a layer whose pixels depend on each other; here all of them are known."""
        self.pixels(layer, layer.distributions(state), state.x)


class LayerConfig(Protocol):
    """What a config.toml says of layers of one kind: a frozen dataclass that is an entry of ``[[layers]]``."""

    KIND: ClassVar[str]

    @property
    def stride(self) -> int:
        """Image pixels per grid step."""

    @property
    def width(self) -> int:
        """Channels of the shared state."""

    @property
    def depth(self) -> int:
        """Residual branches of one layer, of which all of a model share the variance."""

    @property
    def holds(self) -> tuple[Offset, ...]:
        """Offsets within the grid step of the pixels that these layers hold."""

    @property
    def needs_encoder(self) -> bool:
        """Whether a posterior reads the encoder's activations at this stride."""

    def single(self) -> list[Self]:
        """One config for each layer that this entry stands for."""


@dataclass(frozen=True)
class Place:
    """What a layer finds where it is built: what is above it in the list."""

    width: int  # channels of the state that it takes
    gain: float  # of residual branches: 1/sqrt(depth of the model)
    known: tuple[tuple[int, Offset], ...]  # (stride, offset) of the pixels held by the layers before
    channels: int  # colours that count, 1 or 3


class Layer(nn.Module):
    """A layer of one kind. Built as ``Kind(config, place)`` from an entry of the registry (``layers.KINDS``)."""

    Config: ClassVar[Any]
    stride: int

    def __init__(self, config: LayerConfig, place: Place):
        super().__init__()
        self.stride = config.stride
        self.widen = None if place.width == config.width else Conv(place.width, config.width, 1)

    def enter(self, state: State) -> Tensor:
        """The state's features at this layer's stride."""
        height, width = (cells(side, self.stride) for side in state.x.shape[2:])
        return upsample(self.widened(state), state.stride // self.stride)[:, :, :height, :width]

    def widened(self, state: State) -> Tensor:
        """The state's features at its own stride."""
        return state.h if self.widen is None else full(self.widen(state.h))

    def forward(self, state: State, visit: Visitor) -> State:
        raise NotImplementedError


class PixelLayer(Layer):
    """A layer that holds the pixels at one ``offset`` of its grid.

    Of images with one of its ``channels`` the others copy the first in the order of coding.
    """

    offset: Offset
    channels: int

    def plane(self, x: Tensor, offset: Offset | None = None) -> Tensor:
        """This layer's sub-pixels (or those at another offset) of x: (B, C, H, W) -> (B, C, H/stride, W/stride)."""
        dy, dx = offset or self.offset
        return x[:, :, dy :: self.stride, dx :: self.stride]

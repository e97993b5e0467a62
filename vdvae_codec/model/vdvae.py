"""The model: one top-down list of layers and the one function that walks it."""

from __future__ import annotations

import copy

import torch
import torch.nn as nn
from torch import Tensor

from vdvae_codec.errors import ModelError
from vdvae_codec.exact.conv import ExactConv
from vdvae_codec.model.blocks import Conv, Gives, Tanh
from vdvae_codec.model.config import ModelConfig
from vdvae_codec.model.kinds import ENCODERS, KINDS
from vdvae_codec.model.layers.base import Acts, Offset, PixelLayer, Place, State, Visitor
from vdvae_codec.model.layers.latent import LatentLayer


class VDVAE(nn.Module):
    """A very deep VAE (arXiv 2011.10650) whose list of layers may interleave latents and pixels.

    Fully convolutional: images are (B, 3, H, W) float32 in pixel levels 0..255, channels G, R, B, H and W multiples of
    ``config.multiple``; or all of ``config.side``.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        singles = config.single_layers()
        self.bias = nn.Parameter(torch.zeros(1, singles[0].width, 1, 1))
        self.encoder: nn.Module | None = None
        if config.encoder is not None:
            self.encoder = ENCODERS[config.encoder.KIND](config.encoder)  # type: ignore[attr-defined]
        gain = max(1, sum(single.depth for single in singles)) ** -0.5
        self.layers = nn.ModuleList()
        known: list[tuple[int, Offset]] = []
        width = singles[0].width
        for single in singles:
            self.layers.append(KINDS[single.KIND](single, Place(width, gain, tuple(known), config.channels)))
            known += [(single.stride, offset) for offset in single.holds]
            width = single.width

    def walk(self, x: Tensor, visit: Visitor) -> None:
        """Walks the layers from the top down. ``x`` is the image as far as it is known; visitors may fill it in.

        Raises ModelError if the model is for images of another size.
        """
        stride, side = self.config.max_stride, self.config.side
        if side and x.shape[2:] != (side, side):
            raise ModelError(f"this model is for images of {side}x{side}, not of {x.shape[2]}x{x.shape[3]}")
        while stride < max(x.shape[2:]):  # one cell
            stride *= 2
        state = State(self.bias.expand(x.shape[0], -1, 1, 1), stride, x)
        for layer in self.layers:
            state = layer(state, visit)

    def encode(self, x: Tensor) -> Acts:
        """The encoder's activations of images x (B, 3, H, W) by stride; none where nothing is inferred."""
        acts: Acts = self.encoder(x) if self.encoder is not None else {}
        return acts

    @property
    def latent_layers(self) -> list[LatentLayer]:
        """In the order of the walk."""
        return [layer for layer in self.layers if isinstance(layer, LatentLayer)]

    @property
    def pixel_layers(self) -> list[PixelLayer]:
        """In the order of the walk."""
        return [layer for layer in self.layers if isinstance(layer, PixelLayer)]


def muon_weights(model: nn.Module) -> list[Tensor]:
    """Weights between features, which Muon trains."""
    return [m.weight for m in model.modules() if isinstance(m, Conv) and m.gives is Gives.FEATURES]


def exact_twin(model: VDVAE) -> VDVAE:
    """The same layers with every ``Conv`` and ``Tanh`` replaced by its empty exact twin, for a state dict to be loaded
    into."""
    twin = copy.deepcopy(model).requires_grad_(False).eval()
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (Conv, Tanh)):
                setattr(parent, name, child.twin())
    return twin


def prepare(model: VDVAE) -> None:
    """Proves every bound of an exact model and makes it ready to run; raises ExactnessError."""
    for name, module in model.named_modules():
        if isinstance(module, ExactConv):
            module.prepare(name)


def float_state(exact: VDVAE, model: VDVAE) -> dict[str, Tensor]:
    """The state of a float ``model`` that has the weights of its ``exact`` twin, every latent channel active."""
    state = model.state_dict()
    own = exact.state_dict()
    for name, module in exact.named_modules():
        if isinstance(module, ExactConv):
            weight, bias = module.float_weights()
            own |= {f"{name}.weight": weight, f"{name}.bias": bias}
    return {name: value if name.endswith(".active") else own[name].clone() for name, value in state.items()}

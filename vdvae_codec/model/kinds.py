"""The kinds of layers and encoders that a config.toml may name. A new kind is one file, and one line here."""

from __future__ import annotations

from typing import Any

from vdvae_codec.model.child2021 import PublishedEncoder, PublishedLatentLayer, PublishedPixelLayer
from vdvae_codec.model.encoder import ResidualEncoder, StyleEncoder
from vdvae_codec.model.layers.base import Layer
from vdvae_codec.model.layers.causal import CausalLayer
from vdvae_codec.model.layers.latent import LatentLayer
from vdvae_codec.model.layers.phase import PhaseLayer

KINDS: dict[str, type[Layer]] = {
    layer.Config.KIND: layer
    for layer in (LatentLayer, PhaseLayer, CausalLayer, PublishedLatentLayer, PublishedPixelLayer)
}
ENCODERS: dict[str, Any] = {
    encoder.Config.KIND: encoder for encoder in (ResidualEncoder, StyleEncoder, PublishedEncoder)
}

"""A lossless image codec: a very deep hierarchical VAE and bits-back coding. See ``vdvae_codec.api``."""

__version__ = "0.1.0"

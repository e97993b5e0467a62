"""`python -m vdvae_codec` is the command line."""

import importlib

importlib.import_module("vdvae_codec.cli.main").main()

"""`python -m vdvae_codec` is the command line."""

from vdvae_codec.cli.main import main

main()

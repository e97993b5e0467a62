"""The command line: one module a command, thin over ``vdvae_codec.api``; torch is imported when a command runs."""

"""Writes docs/cli.md from the help texts of the command line: ``python docs/generate_cli.py``."""

from __future__ import annotations

from pathlib import Path

import click

from vdvae_codec.cli.main import main

PAGE = Path(__file__).with_name("cli.md")
WIDTH = 100  # characters
INTRODUCTION = """\
What `vdvae-codec --help` and `vdvae-codec COMMAND --help` print; `python docs/generate_cli.py` writes this page."""


def page() -> str:
    """The whole page: the program's help, and a section for each command."""
    parts = ["# Command line", INTRODUCTION, block(main, "vdvae-codec")]
    for name, command in main.commands.items():
        parts += [f"## {name}", block(command, f"vdvae-codec {name}")]
    return "\n\n".join(parts) + "\n"


def block(command: click.Command, name: str) -> str:
    context = click.Context(command, info_name=name, terminal_width=WIDTH, help_option_names=["-h", "--help"])
    return f"```text\n{command.get_help(context)}\n```"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

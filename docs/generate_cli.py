"""Writes docs/cli.md and the man page docs/vdvae-codec.1 from the help texts of the command line:
``python docs/generate_cli.py``."""

from __future__ import annotations

import re
from pathlib import Path

import click

from vdvae_codec.cli.main import EPILOG, main

PAGE = Path(__file__).with_name("cli.md")
MANUAL = Path(__file__).with_name("vdvae-codec.1")
WIDTH = 100  # characters
INTRODUCTION = """\
What `vdvae-codec --help` and `vdvae-codec COMMAND --help` print; `python docs/generate_cli.py` writes this page and the
manual page `docs/vdvae-codec.1` (`man -l docs/vdvae-codec.1` shows it)."""


def page() -> str:
    """The whole page: the program's help, and a section for each command."""
    parts = ["# Command line", INTRODUCTION, block(main, "vdvae-codec")]
    for name, command in main.commands.items():
        parts += [f"## {name}", block(command, f"vdvae-codec {name}")]
    return "\n\n".join(parts) + "\n"


def block(command: click.Command, name: str) -> str:
    return f"```text\n{command.get_help(context_of(command, name))}\n```"


def context_of(command: click.Command, name: str) -> click.Context:
    return click.Context(command, info_name=name, terminal_width=WIDTH, help_option_names=["-h", "--help"])


def manual() -> str:
    """The man page, in the macros of man(7)."""
    lines = ['.TH VDVAE\\-CODEC 1 "" "vdvae\\-codec" "User Commands"', ".SH NAME"]
    lines += [roff("vdvae-codec - lossless image compression with a very deep VAE"), ".SH SYNOPSIS"]
    lines += ["\\fBvdvae\\-codec\\fR \\fICOMMAND\\fR [\\fIOPTIONS\\fR] \\fIARGUMENTS\\fR...", ".SH DESCRIPTION"]
    lines += paragraphs(main.help or "") + [".SH COMMANDS"]
    for name, command in main.commands.items():
        lines += section(name, command)
    return "\n".join([*lines, ".SH NOTES", *paragraphs(EPILOG)]) + "\n"


def section(name: str, command: click.Command) -> list[str]:
    """Usage, text, options and example of a command."""
    context = context_of(command, f"vdvae-codec {name}")
    lines = [f".SS {roff(name)}", roff(command.get_usage(context).removeprefix("Usage: "))]
    lines += paragraphs(command.help or "")
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record and isinstance(parameter, click.Option):
            lines += [".TP", f"\\fB{roff(record[0])}\\fR", roff(record[1])]
    return [*lines, *paragraphs(command.epilog or "")]


def paragraphs(text: str) -> list[str]:
    """Filled paragraphs; those behind a backspace keep their lines, as in click."""
    lines: list[str] = []
    for part in re.split(r"\n\s*\n", text):
        own = [line.strip() for line in part.strip("\n ").splitlines()]
        if own[:1] == ["\b"] or part.lstrip("\n ").startswith("\b"):
            lines += [".PP", ".nf", *map(roff, own[1:]), ".fi"]
        elif own:
            lines += [".PP", roff(" ".join(own))]
    return lines


def roff(text: str) -> str:
    """Text that roff prints as it is."""
    text = " ".join(text.split()) if "  " not in text else text
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga").replace("^", "\\(ha")
    return f"\\&{text}" if text[:1] in (".", "'") else text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    MANUAL.write_text(manual(), encoding="utf-8")

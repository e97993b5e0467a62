"""docs/cli.md is what the help texts say."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from click.testing import CliRunner

from vdvae_codec.cli.main import main

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "generate_cli.py"))["page"]()
    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == page, "run python docs/generate_cli.py"


@pytest.mark.parametrize("command", sorted(main.commands))
def test_help_shows_an_example(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0 and f"Example: vdvae-codec {command} " in " ".join(result.output.split())
    assert {"--help", *main.commands[command].params[-1].opts} <= set(re.findall(r"(?<= )--?[a-z-]+", result.output))

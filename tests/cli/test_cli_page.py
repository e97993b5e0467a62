"""docs/cli.md is what the help texts say."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from command_line import PROGRAM

from vdvae_codec.cli.main import main

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "generate_cli.py"))["page"]()
    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == page, "run python docs/generate_cli.py"


def test_the_manual_is_up_to_date() -> None:
    manual = runpy.run_path(str(ROOT / "docs" / "generate_cli.py"))["manual"]()
    path = ROOT / "docs" / "vdvae-codec.1"
    assert path.read_text(encoding="utf-8") == manual, "run python docs/generate_cli.py"
    if shutil.which("man") and shutil.which("groff"):
        done = subprocess.run(["man", "--warnings", "-l", str(path)], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        text = re.sub("\\s+", " ", re.sub("\u2010\\s+", "", done.stdout))
        assert "vdvae-codec test [OPTIONS] INPUTS..." in text and "Exit status: 0 done" in text


def test_a_shell_completes_commands() -> None:
    words = {"_VDVAE_CODEC_COMPLETE": "bash_complete", "COMP_WORDS": "vdvae-codec deco", "COMP_CWORD": "1"}
    done = subprocess.run([PROGRAM], capture_output=True, text=True, env=os.environ | words)
    assert done.stdout == "plain,decompress\n"


@pytest.mark.parametrize("command", sorted(main.commands))
def test_help_shows_an_example(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0 and f"Example: vdvae-codec {command} " in " ".join(result.output.split())
    assert {"--help", *main.commands[command].params[-1].opts} <= set(re.findall(r"(?<= )--?[a-z-]+", result.output))

"""The README's Python runs as it stands, and its shell commands name commands and options that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_block_runs(block: str) -> None:
    done = subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "bits per dim" in done.stdout


def test_every_command_and_option_in_the_readme_exists() -> None:
    from vdvae_codec.cli.main import main

    used = re.findall(rf"vdvae-codec ({'|'.join(main.commands)})\b([^\n`#]*)", README)
    assert {name for name, _ in used} == set(main.commands)
    for name, rest in used:
        known = {option for parameter in main.commands[name].params for option in parameter.opts}
        assert set(re.findall(r"(?<= )--?[a-z][a-z-]*", rest)) <= known | {"--help"}, (name, rest)

"""The README's Python runs, its commands and options exist, and the lists of layers in docs can be walked."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from vdvae_codec.config import ModelConfig, from_dict
from vdvae_codec.model.vdvae import VDVAE, elbo

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
LISTS = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "layers.md").read_text(), re.DOTALL)


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


@pytest.mark.parametrize("block", LISTS)
def test_lists_of_layers_in_the_docs_can_be_walked(block: str) -> None:
    config = from_dict(ModelConfig, tomllib.loads(block)["model"])
    torch.manual_seed(0)
    model = VDVAE(config)
    terms = elbo(model, torch.full((1, 3, 8, 8), 100.0))
    latents = sum(stage.latents for stage in config.stages)
    assert (len(terms.kl_nats), len(terms.nll_nats)) == (latents, len(model.layers) - latents)
    assert all(bool(torch.isfinite(t).all()) for t in terms.kl_nats + terms.nll_nats)

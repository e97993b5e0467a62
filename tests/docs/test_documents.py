"""What the documents say can be done: their Python runs, their commands and options exist, their lists of layers can be
walked, their links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from vdvae_codec.codec.store import find_config
from vdvae_codec.format import vdz
from vdvae_codec.model.config import from_dict, model_from_dict
from vdvae_codec.model.elbo import elbo
from vdvae_codec.model.vdvae import VDVAE
from vdvae_codec.training.recipe import Recipe

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.md"),
                *(ROOT / "models").glob("*/*.md")])  # fmt: skip


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=name)
def test_python_of_a_page_runs_from_top_to_bottom(page: Path, photo_png: Path, tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "photos").mkdir()
    shutil.copy(ROOT / "examples" / "coast.png", tmp_path / "examples")
    shutil.copy(photo_png, tmp_path / "photos")
    program = "\n".join(block.replace("from __future__ import annotations\n", "") for block in blocks(page, "python"))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "from __future__ import annotations\n" + program],
        cwd=tmp_path, capture_output=True, text=True, env=environment,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_and_options_exist(page: Path) -> None:
    from vdvae_codec.cli.main import main

    used = re.findall(r"(?:^|[ /`])vdvae-codec ([a-z]+)\b([^\n`]*)", page.read_text(), re.MULTILINE)
    for command, rest in used:
        assert command in main.commands, command
        known = {option for parameter in main.commands[command].params for option in parameter.opts}
        words = shlex.split(re.sub(r"\s{2,}.*|[;,|>].*", "", rest).replace("'", ""), comments=True)
        options = {word.split("=")[0] for word in words if re.fullmatch(r"--?[a-z][a-z-]*(=.*)?", word)}
        assert options <= known | {"--help", "-h"}, (command, rest)


def test_the_readme_shows_every_command() -> None:
    from vdvae_codec.cli.main import main

    shown = set(re.findall(r"vdvae-codec ([a-z]+)\b", (ROOT / "README.md").read_text()))
    assert set(main.commands) <= shown


CONFIGS = [(page, n, text) for page in PAGES for n, text in enumerate(blocks(page, "toml"))]


@pytest.mark.parametrize(("page", "n", "text"), CONFIGS, ids=lambda v: name(v) if isinstance(v, Path) else "")
def test_lists_of_layers_can_be_walked(page: Path, n: int, text: str) -> None:
    """A whole model is built, its ELBO computed; of an excerpt the keys are checked by the kinds."""
    tables = tomllib.loads(text)
    if "train" in tables:
        from_dict(Recipe, tables["train"])
    if "model" not in tables:
        assert tables.keys() <= {"encoder", "layers", "train"}
        return
    config = model_from_dict(tables)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VDVAE(config)
        terms = elbo(model, torch.full((1, 3, config.tile, config.tile), 100.0))
    assert (len(terms.kl_nats), len(terms.nll_nats)) == (len(model.latent_layers), len(model.pixel_layers))
    assert all(bool(torch.isfinite(t).all()) for t in terms.kl_nats + terms.nll_nats)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target or target.startswith("mailto:"):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), target
        assert not anchor or there.suffix != ".md" or anchor in anchors(there), target


def test_the_page_on_the_format_has_the_constants() -> None:
    text = (ROOT / "docs" / "format.md").read_text()
    assert " ".join(f"{byte:02X}" for byte in vdz.MAGIC) in text
    assert f"format version: {vdz.VERSION}" in text and vdz._INDEX.decode() in text and vdz._MARKER.decode() in text


@pytest.mark.parametrize("model", sorted(p.parent.name for p in (ROOT / "models").glob("*/config.toml")))
def test_cards_name_the_digest_of_their_model(model: str) -> None:
    folder = find_config(model).parent
    if (folder / "weights.safetensors").exists():
        from safetensors import safe_open

        with safe_open(folder / "weights.safetensors", "pt") as file:
            assert f"`{file.metadata()['digest']}`" in (folder / "card.md").read_text()

"""The parts of the package import downwards only, without circles, and the heavy libraries only where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import vdvae_codec
import vdvae_codec.cli

# From the top down: a module imports only from lines below its own, and from its own part.
LEVELS = [
    {"cli"},
    {"plugins"},
    {"bulk"},
    {"training", "scoring"},
    {"codec"},
    {"model"},
    {"transforms"},
    {"images"},
    {"exact", "entropy", "format"},
    {"errors"},
]
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}
NO_TORCH = {"format", "entropy", "images", "transforms", "errors"}


def modules() -> dict[str, Path]:
    """Every module of the package by its name below ``vdvae_codec``, such as ``entropy.ans``; "" is the package."""
    folders = {"": Path(vdvae_codec.__path__[0]), "cli": Path(vdvae_codec.cli.__path__[0])}
    found = {}
    for prefix, folder in folders.items():
        for path in folder.rglob("*.py"):
            parts = [*prefix.split("."), *path.relative_to(folder).with_suffix("").parts]
            found[".".join(p for p in parts if p and p != "__init__")] = path
    return found


MODULES = modules()


def statements(node: ast.AST, *, inside_functions: bool) -> Iterator[ast.stmt]:
    """Every statement but those under ``if TYPE_CHECKING``, with or without those of functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.stmt):
            yield child
        if inside_functions or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from statements(child, inside_functions=inside_functions)


def imports(module: str, *, inside_functions: bool = True) -> set[str]:
    """Full names of what a module imports: ``torch.nn``, ``vdvae_codec.entropy.ans``."""
    path, names = MODULES[module], set()
    package = f"vdvae_codec.{module}".strip(".").split(".")[: None if path.stem == "__init__" else -1]
    for node in statements(ast.parse(path.read_text()), inside_functions=inside_functions):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            near = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*near, *([node.module] if node.module else [])])
            for full in (f"{source}.{alias.name}" for alias in node.names):
                names.add(full if full.removeprefix("vdvae_codec.") in MODULES else source)
    return names


def own_modules(names: set[str]) -> set[str]:
    """The modules of this package among full names, without the package itself."""
    return {name.removeprefix("vdvae_codec.") for name in names} & set(MODULES) - {""}


def top(name: str) -> str:
    """The part of the package, or the library, that a full name belongs to."""
    return name.removeprefix("vdvae_codec.").split(".")[0]


def test_all_modules_are_found() -> None:
    assert {top(m) for m in MODULES if m and m != "__main__"} == set(LEVEL)
    assert {"entropy.ans", "cli.main", "model.layers.latent", "training.loop"} <= set(MODULES)


@pytest.mark.parametrize("module", sorted(m for m in MODULES if m))
def test_imports_point_down(module: str) -> None:
    own, used = "cli" if module.endswith("__main__") else top(module), imports(module)  # an entry point
    for name in own_modules(used):
        assert LEVEL[top(name)] > LEVEL[own] or top(name) == own, f"{module} imports {name}"
        if own == "scoring" and top(name) == "codec":
            assert name in {"codec", "codec.store"}, f"{module} imports {name}"
    if own in NO_TORCH:
        assert "torch" not in {top(name) for name in used if not name.startswith("vdvae_codec")}
    assert ("constriction" in {top(name) for name in used}) == (module == "entropy.ans")


def test_no_circles() -> None:
    graph = {module: own_modules(imports(module, inside_functions=False)) for module in MODULES}
    others = {module: used - {module} for module, used in graph.items()}
    tuple(TopologicalSorter(others).static_order())  # raises CycleError, which names the circle


def test_the_package_itself_imports_nothing_heavy() -> None:
    used = {top(name) for name in imports("", inside_functions=False)}
    assert used <= {"__future__", "importlib", "typing"}


def in_a_new_process(program: str, *arguments: str) -> str:
    program += '\nprint(*(name in sys.modules for name in ("torch", "numpy", "PIL", "constriction", "safetensors")))'
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_is_light() -> None:
    assert in_a_new_process("import sys, vdvae_codec\nvdvae_codec.__version__") == "False False False False False\n"


def commands() -> list[str]:
    from vdvae_codec.cli.main import main

    return sorted(main.commands)


def test_help_waits_for_no_library() -> None:
    """Of any command: all in one process, so that the test is quick."""
    program = """
import sys
from click.testing import CliRunner
from vdvae_codec.cli.main import main
for arguments in (["--help"], ["--version"], *([name, "--help"] for name in sys.argv[1:])):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0 and result.output, (arguments, result.output)
"""
    names = commands()
    assert len(names) > 5
    assert in_a_new_process(program, *names) == "False False False False False\n"

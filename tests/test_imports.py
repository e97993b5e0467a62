import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vdvae_codec
import vdvae_codec.cli

# From the top down: a module imports only from lines below its own, and from its own package.
LEVELS = [
    {"cli"},
    {"export", "openai", "sets"},
    {"api", "scoring", "training"},
    {"tiles"},
    {"released"},
    {"hierarchy"},
    {"exact", "coding", "pictures", "colours"},
    {"model"},
    {"distributions", "archive", "checkpoint", "images"},
    {"container"},
    {"config"},
    {"errors"},
]
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}
CODER = {"coding", "exact", "hierarchy", "released", "tiles"}
FORBIDDEN = {
    "archive": {"torch"},
    "container": {"torch"},
    "colours": {"torch"},
    "images": {"torch"},
    "config": {"torch"},
    "errors": {"torch"},
    "coding": {"torch", "model"},
    "scoring": CODER | {"container"},
    "training": CODER | {"container"},
    "model": CODER,
}


def modules() -> dict[str, Path]:
    """Every module of the package by its name below ``vdvae_codec``, such as ``coding.stack``."""
    folders = {"": Path(vdvae_codec.__path__[0]), "cli": Path(vdvae_codec.cli.__path__[0])}
    found = {}
    for prefix, folder in folders.items():
        for path in folder.rglob("*.py"):
            parts = [*prefix.split("."), *path.relative_to(folder).with_suffix("").parts]
            found[".".join(p for p in parts if p and p != "__init__")] = path
    return found


MODULES = modules()


def imports(path: Path) -> set[str]:
    """Full names of what a module imports anywhere, in functions too: ``torch.nn``, ``vdvae_codec.coding.stack``."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative import"
            names |= {node.module} if node.module != "vdvae_codec" else {f"vdvae_codec.{a.name}" for a in node.names}
    return names


def top(name: str) -> str:
    """The part of the package, or the library, that a full name belongs to."""
    return name.removeprefix("vdvae_codec.").split(".")[0]


def test_all_modules_are_found() -> None:
    assert {top(m) for m in MODULES if m} == set(LEVEL)
    assert {"coding.stack", "cli.main", "training.loop"} <= set(MODULES)


@pytest.mark.parametrize("module", sorted(m for m in MODULES if m))
def test_imports_point_down(module: str) -> None:
    own, used = "cli" if module.endswith("__main__") else top(module), imports(MODULES[module])  # an entry point
    for name in used:
        if name.startswith("vdvae_codec.") and top(name) != "__version__":
            assert LEVEL[top(name)] > LEVEL[own] or top(name) == own, f"{module} imports {name}"
    assert not {top(name) for name in used} & FORBIDDEN.get(own, set())
    assert ("constriction" in {top(name) for name in used}) == (module == "coding.stack")


def test_the_package_itself_imports_nothing() -> None:
    assert imports(MODULES[""]) == set()


@pytest.mark.parametrize("arguments", [["--help"], ["compress", "--help"], ["train", "--help"], ["--version"]])
def test_help_does_not_wait_for_torch(arguments: list[str]) -> None:
    program = """
import sys
from vdvae_codec.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print("torch" in sys.modules, "numpy" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\nFalse False\n")

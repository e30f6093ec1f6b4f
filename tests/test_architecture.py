"""The picture of imports in gradalign_jax/README.md, held against the source."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "gradalign_jax"

# From top to bottom; a part imports only from the rows below its own. Files that are not listed are at the bottom row.
ROWS = (
    ("main", "convert"),
    ("tasks",),
    ("experiment",),
    ("training", "evaluation"),
    ("data", "models", "gradients", "measures"),
    ("deltax", "alignment", "memory", "parallel", "storage"),
    ("attacks",),
    ("ops",),
)
RANK = {part: len(ROWS) - row for row, parts in enumerate(ROWS) for part in parts}


def imported(file):
    """The full names that a file imports anywhere, functions included."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if file.relative_to(PACKAGE).parts[0] != "__init__.py"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_down(file):
    part, name = part_of(file), str(file.relative_to(PACKAGE))
    for module in imported(file):
        first, *rest = module.split(".")
        assert first != "configs", "the package does not depend on configs/"
        if first == "gradalign_jax" and rest and rest[0] != part:
            if part == "report":
                assert RANK.get(rest[0], 0) == 0, f"{name} imports {module}"
            else:
                assert RANK.get(rest[0], 0) < max(RANK.get(part, 0), 1), f"{name} imports {module}"


@pytest.mark.parametrize(
    "part", ["attacks", "deltax", "gradients", "measures", "alignment", "ops", "models", "training", "report"]
)
def test_kernels_know_no_configs_and_the_report_no_jax(part):
    forbidden = {"jax", "flax"} if part == "report" else {"ml_collections", "absl.flags"}
    for file in (file for file in FILES if part_of(file) == part):
        names = set(imported(file))
        assert not {name for name in names if name.split(".")[0] in forbidden or name in forbidden}, file


def test_the_picture_shows_every_part():
    readme = (PACKAGE / "README.md").read_text(encoding="utf-8")
    picture = readme[readme.index("## Imports") : readme.index("Each row")]
    folders = {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists()}
    assert folders | set(RANK) <= set(re.findall(r"\w+", picture))


def test_every_package_is_installed():
    """The configs' own folder needs a list instead of a search."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    present = {".".join(file.parent.relative_to(ROOT).parts) for file in PACKAGE.rglob("__init__.py")}
    assert set(listed) == present | {"gradalign_jax.configs"}


def test_nothing_unpickles_or_runs_text():
    """Files of others are data: pickle, and what reads it, runs code."""
    modules = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for file in (file for folder in ("gradalign_jax", "launch", "configs") for file in (ROOT / folder).rglob("*.py")):
        assert not {name.split(".")[0] for name in imported(file)} & modules, file
        for node in (
            node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
        ):
            called, options = ast.unparse(node.func), {option.arg: option.value for option in node.keywords}
            assert called not in ("eval", "exec") and not called.endswith("extractall"), file
            assert called != "torch.load" or ast.unparse(options["weights_only"]) == "True", file
            allowed = options.get("allow_pickle")
            assert allowed is None or ast.unparse(allowed) == "False", file

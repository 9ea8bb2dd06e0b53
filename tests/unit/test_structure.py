"""Rules for the modules of the package: what they import, and what only one subpackage does."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

import sqlalchemy_proletarian

ROOT = Path(__file__).parents[2]
PACKAGE = Path(sqlalchemy_proletarian.__file__).parent


def modules_with(matches: Callable[[ast.AST], bool]) -> Iterator[str]:
    """Yield the modules, as paths, that have a node for which ``matches`` returns True."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).as_posix()
        if module.startswith("migrations/"):  # a package of its own, unless it is installed
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(matches(node) for node in ast.walk(tree)):
            yield module


def reads_the_name_of_a_dialect(node: ast.AST) -> bool:
    """Return whether a node is ``dialect.name`` or ends with it."""
    match node:
        case ast.Attribute(value=ast.Name(id=owner), attr="name"):
            return owner.endswith("dialect")
        case ast.Attribute(value=ast.Attribute(attr=owner), attr="name"):
            return owner.endswith("dialect")
    return False


def locks_rows(node: ast.AST) -> bool:
    """Return whether a node is ``.with_for_update`` or an argument of that name."""
    match node:
        case ast.Attribute(attr="with_for_update") | ast.keyword(arg="with_for_update"):
            return True
    return False


@pytest.mark.parametrize(
    ("matches", "package"),
    [(reads_the_name_of_a_dialect, "database"), (locks_rows, "store")],
)
def test_it_is_done_in_one_subpackage_only(
    matches: Callable[[ast.AST], bool], package: str
) -> None:
    found = list(modules_with(matches))
    assert found
    assert [module for module in found if not module.startswith(f"{package}/")] == []


def test_imports_point_down() -> None:
    """The layers are in pyproject.toml, under [tool.importlinter]."""
    # In a process of its own: import-linter disables the loggers that exist.
    lint = "from importlinter.cli import lint_imports; exit(lint_imports(no_cache=True))"
    done = subprocess.run(
        [sys.executable, "-c", lint], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_modules_import_each_other() -> None:
    """A chain of imports never leads back to its first module."""
    graph = grimp.build_graph(sqlalchemy_proletarian.__name__, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    TopologicalSorter(imports).prepare()  # raises CycleError

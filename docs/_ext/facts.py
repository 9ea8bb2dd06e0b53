"""What the reference takes from the code: columns, settings, and the messages of errors."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import click
from sqlalchemy import Column
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateColumn, CreateIndex

import sqlalchemy_proletarian
from sqlalchemy_proletarian.cli.worker.command import _NOT_IN_FILES, worker

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sqlalchemy_proletarian"
MIGRATIONS = ROOT / "alembic_migrations"

MODELS = ["Job", "ArchivedJob", "RunningJob", "PausedQueue", "RecurringJob", "LimitPlace"]
"""The mapped classes of the tables."""


def value_docs() -> dict[str, str]:
    """Return the documentation of public values, by name: the string below an assignment."""
    found: dict[str, str] = {}
    for file in MIGRATIONS.glob("*.py"):
        for node, after in pairwise(ast.parse(file.read_text(encoding="utf-8")).body):
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                name = f"sqlalchemy_proletarian.migrations.{ast.unparse(node.target)}"
                found[name] = str(after.value.value)
    return found


class ColumnFacts(NamedTuple):
    """A row of a table of columns."""

    name: str
    type: str
    default: str
    meaning: str


def columns_of(model: str) -> list[ColumnFacts]:
    """Return what the reference says of the columns of a mapped class, on PostgreSQL."""
    table = sa_inspect(getattr(sqlalchemy_proletarian, model)).local_table
    return [_column(column) for column in table.columns]


def indexes_of(model: str) -> list[str]:
    """Return the definitions of the indexes of a mapped class, on PostgreSQL."""
    table = sa_inspect(getattr(sqlalchemy_proletarian, model)).local_table
    texts = [str(CreateIndex(i).compile(dialect=postgresql.dialect())) for i in table.indexes]
    return sorted(text.removeprefix("CREATE ") for text in texts)


def _column(column: Column[Any]) -> ColumnFacts:
    written = str(CreateColumn(column).compile(dialect=postgresql.dialect()))
    default = _default(column)
    return ColumnFacts(
        column.name,
        re.sub(r" (NOT NULL|DEFAULT .*)", "", written.removeprefix(f"{column.name} ")).replace(
            "TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ"
        ),
        "primary key" if column.primary_key else default,
        column.doc or "",
    )


def _default(column: Column[Any]) -> str:
    if column.server_default is not None:
        return f"default {column.server_default.arg}"  # type: ignore[attr-defined]
    return "NULL" if column.nullable else "NOT NULL"


class Setting(NamedTuple):
    """An option of ``proletarian worker``, and where else it can be given."""

    option: str
    variable: str
    in_files: bool
    """Whether it is also a key of ``[tool.proletarian.worker]``, under the name of the option."""
    meaning: str
    default: str


def worker_settings() -> list[Setting]:
    """Return the options of ``proletarian worker``."""
    context = click.Context(worker, auto_envvar_prefix="PROLETARIAN")
    return [_setting(each, context) for each in worker.params]


def _setting(parameter: click.Parameter, context: click.Context) -> Setting:
    name = parameter.name or ""
    option = next((one for one in parameter.opts if one.startswith("--")), "TARGET")
    meaning, _, default = (getattr(parameter, "help", None) or "").partition("[default: ")
    if name == "target":
        meaning = "What to run: module:object or module:factory()."
    if not default and isinstance(parameter.default, str | int) and parameter.default is not False:
        default = str(parameter.default)
    variable = parameter.envvar or f"{context.auto_envvar_prefix}_{name.upper()}"
    return Setting(
        option, str(variable), name not in _NOT_IN_FILES, meaning.strip(), default.rstrip("]")
    )


class Message(NamedTuple):
    """An error that the library raises: its class, and its text with … for what differs."""

    module: str
    """The file, from the package on."""
    error: str
    text: str


_NOT_FOR_USERS = {
    "AttributeError",  # what every module and descriptor raises
    "AssertionError",  # of the test kit: what a test expected
}
_SHOWN_AS = {
    "RefusedError": "PayloadError",  # which has its text
    "DeniedError": "dashboard",
    "TargetError": "proletarian",
    "SettingsError": "proletarian",
    "BadParameter": "proletarian",
    "ClickException": "proletarian",
    "UsageError": "proletarian",
    "TickError": "recurring-error",
}
_MADE_BY = {
    "tables_missing": "TablesMissingError",
    "schema_mismatch": "SchemaMismatchError",
    "read_only": "ReadOnlyDatabaseError",
    "privilege_missing": "PrivilegeError",
}
"""Functions that return an error, which begins with their argument."""
_ERRORS = re.compile(r"(Error|BadParameter|ClickException)$")
_PLACES = re.compile(r"(… ?)+")


def raised_messages() -> list[Message]:
    """Return all messages of errors in the package, each once for each module."""
    files = [*PACKAGE.rglob("*.py"), *MIGRATIONS.rglob("*.py")]
    found = {
        message: None
        for file in sorted(files)
        if "demo" not in file.parts
        for message in _messages(file)
    }
    return list(found)


def _messages(file: Path) -> Iterator[Message]:
    base = MIGRATIONS if MIGRATIONS in file.parents else PACKAGE
    module = f"{'migrations/' if base is MIGRATIONS else ''}{file.relative_to(base).as_posix()}"
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for scope in ast.walk(tree):
        if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef | ast.Module):
            yield from _messages_of_scope(module, scope)
    if module == "errors.py":
        yield from _own_texts(tree)


def _messages_of_scope(module: str, scope: ast.AST) -> Iterator[Message]:
    nodes = ast.walk(scope) if not isinstance(scope, ast.Module) else _outside_functions(scope)
    assigned: dict[str, list[ast.expr]] = {}
    found = [n for n in nodes if isinstance(n, ast.Assign) or (isinstance(n, ast.Call) and n.args)]
    for node in sorted(found, key=lambda each: (each.lineno, each.col_offset)):
        if isinstance(node, ast.Assign):
            if isinstance(node.targets[0], ast.Name):
                assigned.setdefault(node.targets[0].id, []).append(node.value)
            continue
        function = ast.unparse(node.func).rpartition(".")[2]
        error = _MADE_BY.get(function, function)
        if not _ERRORS.search(error) or error in _NOT_FOR_USERS:
            continue
        argument = node.args[-1] if error == "OSError" else node.args[0]
        for text in _texts(argument, assigned):
            yield Message(module, _SHOWN_AS.get(error, error), text)
        assigned.clear()  # later errors have texts of their own


def _outside_functions(tree: ast.Module) -> Iterator[ast.AST]:
    for statement in tree.body:
        if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from ast.walk(statement)


def _own_texts(tree: ast.Module) -> Iterator[Message]:
    """Return the texts of errors that make their own."""
    for definition in tree.body:
        if not isinstance(definition, ast.ClassDef):
            continue
        for node in ast.walk(definition):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "super().__init__":
                for text in _texts(node.args[0], {}):
                    yield Message("errors.py", definition.name, text)
            if isinstance(node, ast.FunctionDef) and node.name == "__str__":
                returned = node.body[-1]
                if isinstance(returned, ast.Return) and returned.value is not None:
                    for text in _texts(returned.value, {}):
                        yield Message("errors.py", definition.name, text)


def _texts(node: ast.expr, assigned: Mapping[str, Sequence[ast.expr]]) -> Iterator[str]:
    """Return the texts that an expression may have; none if all of it comes from elsewhere."""
    if not isinstance(node, ast.JoinedStr | ast.Constant | ast.BinOp | ast.IfExp):
        for name in ast.walk(node):
            for assignment in assigned.get(name.id, []) if isinstance(name, ast.Name) else ():
                yield from _texts(assignment, {})
        return
    if isinstance(node, ast.IfExp):
        yield from _texts(node.body, assigned)
        yield from _texts(node.orelse, assigned)
        return
    text = _PLACES.sub(lambda m: "… " if m[0].endswith(" ") else "…", _template(node)).strip()
    if re.search(r"[a-z]{3}", text):
        yield text


def _template(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(_template(part) for part in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _template(left) + _template(right)
    return "…"


def messages_of(places: Sequence[str]) -> list[Message]:
    """Return the messages of modules, each ``module.py`` or ``module.py:ErrorClass``.

    :raises ValueError: if a place has no message.
    """
    found = raised_messages()
    chosen: list[Message] = []
    for place in places:
        mine = [message for message in found if belongs(message, place)]
        if not mine:
            text = f"no error is raised in {place}"
            raise ValueError(text)
        chosen += mine
    return list(dict.fromkeys(chosen))


def belongs(message: Message, place: str) -> bool:
    """Return whether a message is one of a place; a place with an error class takes only these."""
    module, _, error = place.partition(":")
    if module.endswith("/"):
        return message.module.startswith(module)
    return message.module == module and (not error or message.error == error)

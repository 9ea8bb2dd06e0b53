"""Directives for what the reference takes from the code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from docutils import nodes
from facts import Setting, columns_of, indexes_of, messages_of, value_docs, worker_settings
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

_parse = ModuleAnalyzer.analyze


class _Columns(SphinxDirective):
    """The columns of the table of a mapped class."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return a table."""
        rows = [
            (_code(each.name), _code(each.type), each.default, each.meaning)
            for each in columns_of(self.arguments[0])
        ]
        indexes = [
            nodes.list_item("", nodes.paragraph("", "", _code(text)))
            for text in indexes_of(self.arguments[0])
        ]
        table = _table(["Column", "Type", "Default", "Meaning"], rows)
        return [table, nodes.bullet_list("", *indexes)] if indexes else [table]


class _Settings(SphinxDirective):
    """The options of ``proletarian worker``, with their environment variables and keys."""

    def run(self) -> list[nodes.Node]:
        """Return a table."""
        rows = [
            (_code(each.option), _code(each.variable), _meaning(each)) for each in worker_settings()
        ]
        heads = ["Option", "Variable", "Meaning"]
        return [_table(heads, rows)]


class _Messages(SphinxDirective):
    """The messages of the errors that modules raise."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return a list of messages."""
        items = []
        for message in messages_of(" ".join(self.content).split()):
            text = nodes.paragraph("", "", _code(message.error), nodes.Text(": " + message.text))
            items.append(nodes.list_item("", text))
        return [nodes.bullet_list("", *items, classes=["messages"])]


def _meaning(setting: Setting) -> str:
    parts = [
        setting.meaning,
        f"Default: {setting.default}." if setting.default else "",
        "" if setting.in_files or setting.option == "--models" else "Not in the file.",
    ]
    return " ".join(part for part in parts if part)


def _code(text: str) -> nodes.Node:
    return nodes.literal("", text) if text else nodes.Text("")


def _table(heads: Sequence[str], rows: Iterable[Sequence[nodes.Node | str]]) -> nodes.Node:
    group = nodes.tgroup("", cols=len(heads))
    group += [nodes.colspec("", colwidth=1) for _ in heads]
    group += nodes.thead("", _row(heads))
    group += nodes.tbody("", *(_row(row) for row in rows))
    return nodes.table("", group, classes=["colwidths-auto"])


def _row(cells: Sequence[nodes.Node | str]) -> nodes.Node:
    row = nodes.row("")
    for cell in cells:
        inside = nodes.Text(cell) if isinstance(cell, str) else cell
        row += nodes.entry("", nodes.paragraph("", "", inside))
    return row


def _document(
    _app: Any, what: str, name: str, _thing: Any, _options: Any, lines: list[str]
) -> None:
    """Give values of other modules their own documentation, and not that of their type."""
    if what == "data" and name in (docs := value_docs()):
        lines[:] = docs[name].splitlines()


def _without_overloads(analyzer: ModuleAnalyzer) -> None:
    """Read a module; each function then has one signature, the one that its docstring describes."""
    _parse(analyzer)
    analyzer.overloads = {}


def setup(app: Any) -> dict[str, Any]:
    """Register the directives."""
    ModuleAnalyzer.analyze = _without_overloads  # type: ignore[method-assign]
    app.connect("autodoc-process-docstring", _document)
    app.add_directive("columns", _Columns)
    app.add_directive("worker-settings", _Settings)
    app.add_directive("messages", _Messages)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

"""The SQL that lists jobs page by page, in the order of an index.

A page continues behind the last row of the page before it (keyset pagination). A filter that the
index does not answer is applied to a window with a bounded number of rows, so that a statement
never reads a whole archive in search of a few rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, literal, or_, select, tuple_


@dataclass(frozen=True)
class Listing:
    """Selects the rows of a table in one direction of an index.

    :param columns: what is selected, with the columns of ``order``.
    :param order: the columns of the index, and the primary key.
    :param within: conditions that the index answers, or that leave few rows.
    """

    columns: Sequence[ColumnElement[Any]]
    order: Sequence[ColumnElement[Any]]
    descending: bool = False
    within: Sequence[ColumnElement[bool]] = field(default=())

    def page(
        self,
        after: Sequence[Any] | None,
        limit: int,
        most: int,
        where: Callable[[Any], Sequence[ColumnElement[bool]]],
        status: Callable[[Any], ColumnElement[str]],
    ) -> Select[*tuple[Any, ...]]:
        """Select a page.

        :param after: the values of ``order`` of the row behind which the page begins; None for the
            first page.
        :param limit: the maximum number of rows.
        :param most: how many rows the window has.
        :param where: returns the conditions on the rows of the window.
        :param status: returns the expression of their status.
        """
        window = self._ordered(select(*self.columns).where(*self._range(after)))
        rows = window.limit(most).subquery("browsed")
        wanted = [column for column in rows.c if column.name != "status"]
        page = select(*wanted, status(rows).label("status")).where(*where(rows)).limit(limit)
        order = [rows.c[column.name] for column in self.order]
        return page.order_by(*(c.desc() if self.descending else c for c in order))

    def end(self, after: Sequence[Any] | None, most: int) -> Select[*tuple[Any, ...]]:
        """Select the values of ``order`` of the last row of the window, if the window is full."""
        window = self._ordered(select(*self.order).where(*self._range(after)))
        return window.offset(most - 1).limit(1)

    def _ordered(self, statement: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
        return statement.order_by(*(c.desc() if self.descending else c for c in self.order))

    def _range(self, after: Sequence[Any] | None) -> list[ColumnElement[bool]]:
        """Return the conditions of the rows behind a row.

        They say it twice: PostgreSQL and SQLite find the first row by comparing rows, MySQL and
        MariaDB by the comparisons of the single columns.
        """
        if after is None:
            return list(self.within)
        values = [literal(v, c.type) for c, v in zip(self.order, after, strict=True)]
        here, there = tuple_(*self.order), tuple_(*values)
        behind: list[ColumnElement[bool]] = []
        for n, (column, value) in enumerate(zip(self.order, values, strict=True)):
            same = [c == v for c, v in zip(self.order[:n], values[:n], strict=True)]
            behind.append(and_(*same, column < value if self.descending else column > value))
        compared = here < there if self.descending else here > there
        return [*self.within, compared, or_(*behind)]

"""Ending a transaction and claiming the next jobs in one round trip, with psycopg."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Select

from ..database.prepared import (
    Answer,
    PreparedStatement,
    compile_to_prepare,
    execute_text,
    is_deallocated,
    is_division_by_zero,
)
from ..errors import OwnJobRemovedError

_BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"

SAVEPOINT: Final = "proletarian_claimed"
"""The name of the SAVEPOINT behind a claim."""


class Chain:
    """Commits a transaction of one connection, begins the next one, and claims jobs in it.

    SQLAlchemy does not know that there is more than one transaction. Make a chain with
    :func:`chain_of`.

    :param compiled: the statements "claim" and "archive", compiled by :func:`.compile_to_prepare`.
    """

    def __init__(self, connection: Connection, compiled: Mapping[str, Any]) -> None:
        self.connection = connection
        self.committed: bool = False
        """Whether the last call has committed, also if it raised an error after that."""
        self._compiled = compiled
        self._prepared: dict[str, PreparedStatement] = {}

    def commit_and_claim(
        self,
        claim: Mapping[str, Any],
        archive: Mapping[str, Any] | None = None,
        *,
        release: bool = False,
        savepoint: bool = False,
    ) -> list[tuple[Any, ...]]:
        """Archive jobs, commit, begin and claim, and return the rows of the claim.

        :param claim: the parameters of the claim.
        :param archive: the parameters of the statement that archives jobs; None to omit it. After a
            handler or a rollback may have deallocated the statements, the first call must omit it.
        :param release: whether :data:`SAVEPOINT` was set behind the last claim.
        :param savepoint: whether to set it behind the next one.
        :raises OwnJobRemovedError: if the row of a job to archive does not exist any more.
        """
        self.committed = False
        end = [] if archive is None else [self._call("archive", archive)]
        if release:
            # In a subtransaction, deleting a row that was locked before it would need a MultiXact.
            end.insert(0, f"RELEASE SAVEPOINT {SAVEPOINT}")
        begin = [_BEGIN, self._call("claim", claim)]
        last = [f"SAVEPOINT {SAVEPOINT}"] if savepoint else []
        answer = self._execute([*end, "COMMIT", *begin, *last])
        # If a COMMIT fails, the server does not execute the BEGIN.
        self.committed = len(answer.results) > len(end)
        if not self.committed and is_division_by_zero(answer.error):
            raise OwnJobRemovedError
        if self.committed and is_deallocated(answer.error):
            self._prepared.clear()
            self._execute(["ROLLBACK", _BEGIN]).check()
            answer = self._execute([self._call("claim", claim), *last])
        return answer.rows(-1 - len(last))

    def _execute(self, texts: Sequence[str]) -> Answer:
        return execute_text(self.connection, "; ".join(texts))

    def _call(self, name: str, parameters: Mapping[str, Any]) -> str:
        if not self._prepared:
            self._prepared = {
                name: PreparedStatement(self.connection, compiled)
                for name, compiled in self._compiled.items()
            }
        return self._prepared[name].call(parameters)


def chain_of(
    connection: Connection, claim: Select[*tuple[Any, ...]], archive: Select[*tuple[Any, ...]]
) -> Chain | None:
    """Return a chain of transactions with a claim; None if the connection does not support it.

    :param archive: moves the jobs of ``ids`` to the archive, or divides by zero if one is missing.
    """
    compiled = {
        "claim": compile_to_prepare(connection, claim),
        "archive": compile_to_prepare(connection, archive),
    }
    return None if None in compiled.values() else Chain(connection, compiled)

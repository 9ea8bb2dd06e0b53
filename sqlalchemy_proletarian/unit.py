"""The transaction that holds a batch of jobs, and the session their handlers write through in it.

One failing job costs its savepoint only: the handlers' session is joined into the claiming
transaction by a SAVEPOINT, which is sent when a handler first uses the session.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from sqlalchemy import Connection, event
from sqlalchemy.orm import Session

from .errors import HandlerEndedTransactionError


class JobUnit:
    """One transaction that holds jobs, and the session that their handlers write through in it.

    :param connection: whose transaction claims and settles.
    :param make_session: makes the handlers' session; a ``sessionmaker`` or ``Session`` itself.
    """

    def __init__(self, connection: Connection, make_session: Callable[..., Session]) -> None:
        self.connection = connection
        self._make_session = make_session
        self._joined: Session | None = None

    @contextmanager
    def savepoint(self) -> Generator[Session]:
        """Hand out the handlers' session: all of the block's work is flushed, or none of it stays.

        Its commit reaches a SAVEPOINT only, and is refused to handlers. The SAVEPOINT is sent when
        the session is first used.
        """
        if self._joined is None:
            self._joined = self._make_session(
                bind=self.connection,
                binds=None,
                join_transaction_mode="create_savepoint",
            )
            event.listen(self._joined, "before_commit", _refuse_commit)
        joined = self._joined
        transaction = joined.begin()
        try:
            yield joined
            if joined.get_transaction() is not transaction:
                raise _ended_transaction()
            joined.info[_MAY_COMMIT] = True
            joined.commit()
        finally:
            joined.info.pop(_MAY_COMMIT, None)
            joined.close()


_MAY_COMMIT = "proletarian_may_commit"


def _refuse_commit(session: Session) -> None:
    if _MAY_COMMIT not in session.info and not session.in_nested_transaction():
        raise _ended_transaction()


def _ended_transaction() -> HandlerEndedTransactionError:
    return HandlerEndedTransactionError(
        "the handler ended the transaction of the session it was handed (commit, rollback or "
        "close): it completes with the job; use session.begin_nested() for a part that may be "
        "undone, or a session of your own for what must stay whatever becomes of the job"
    )

"""Objects that handlers have only added to their session, and that are flushed later, together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy.orm import Session, make_transient

from .guarded_session import TOUCHED


def is_pending_only(session: Session) -> bool:
    """Return whether a handler has only added objects to its session, and sent no statement."""
    return not (session.info[TOUCHED] or session.dirty or session.deleted)


def attributes_of(objects: Iterable[Any]) -> dict[int, frozenset[str]]:
    """Return the names of the attributes that objects have, for :func:`restore`."""
    return {id(thing): frozenset(thing.__dict__) for thing in objects}


def restore(objects: Iterable[Any], attributes: Mapping[int, frozenset[str]]) -> None:
    """Undo what a flush that was rolled back has done to objects: ids, foreign keys, defaults.

    :param attributes: what :func:`attributes_of` returned before the flush.
    """
    for thing in objects:
        make_transient(thing)
        for name in thing.__dict__.keys() - attributes[id(thing)]:
            del thing.__dict__[name]

"""Jobs for objects that a session inserts, updates or deletes: what ``handlers.on_insert`` records.

The job is inserted by the flush that writes the object, when all rows of the flush are written, so
primary keys and server defaults are known. An error fails the flush. The job is part of the same
transaction and SAVEPOINT as the object.

The events are those of the session classes that were passed to ``handlers.listen``, and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from sqlalchemy import event
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.orm import InstanceState, Mapper, Session, UOWTransaction, sessionmaker

from ..errors import HandlerError
from ..models.job_classes import bind_arguments
from ..producer.enqueue import enqueue
from ..producer.values import require_name
from .handler import Handler

Change: TypeAlias = Literal["insert", "update", "delete"]

_CHANGED: Final = "sqlalchemy_proletarian.changed"
"""The key in the ``attributes`` of a flush: what it has changed."""


@dataclass(frozen=True, slots=True)
class Trigger:
    """A job to enqueue when objects of a class change.

    :param columns: the names of the attributes of which one must have changed; empty for any.
    :param when: says of an object whether to enqueue the job.
    """

    change: Change
    model: type[Any]
    handler: Handler[Any, ..., Any] | str
    payload: Callable[[Any], Any]
    when: Callable[[Any], bool] | None
    columns: tuple[str, ...]
    job_model: type[Any]
    options: Mapping[str, Any]

    def concerns(self, session: Session, state: InstanceState[Any]) -> bool:
        """Return whether a flush has changed what matters of an object, before its history ends."""
        if self.change == "insert":
            return True
        found = state.obj()
        if self.change == "update":
            if not session.is_modified(found, include_collections=False):
                return False
            attributes = state.attrs
            if self.columns and not any(
                attributes[name].history.has_changes() for name in self.columns
            ):
                return False
        return self.when is None or bool(self.when(found))


@dataclass(frozen=True, slots=True)
class _Changed:
    """What a flush has changed; the payload of a deleted object was read before it was detached."""

    trigger: Trigger
    found: Any
    payload: Any = None


class Changes:
    """The triggers of a registry, and the listeners of session classes.

    :param find: returns the handler of a job type, or None.
    """

    def __init__(self, find: Callable[[str], Handler[Any, ..., Any] | None]) -> None:
        self._find = find
        self._triggers: list[Trigger] = []
        self._of_class: dict[type[Any], list[Trigger]] = {}

    def add(
        self,
        change: Change,
        model: type[Any],
        handler: Any,
        payload: Any,
        *,
        when: Any = None,
        columns: Iterable[Any] = (),
        job_model: type[Any],
        options: Mapping[str, Any],
    ) -> None:
        """Add a trigger.

        :raises HandlerError: if an argument is not what it has to be.
        """
        called = f"on_{change}({getattr(model, '__qualname__', model)!s})"
        mapper = sa_inspect(model, raiseerr=False)
        if not isinstance(mapper, Mapper):
            msg = f"{called} needs a mapped class"
            raise HandlerError(msg)
        if isinstance(handler, str):
            require_name("handler", handler)
        elif not isinstance(handler, Handler):
            msg = f"{called}: handler must be a registered handler or a job type, not {handler!r}"
            raise HandlerError(msg)
        for name, function in (("payload", payload), ("when", when)):
            if not (callable(function) or (name == "when" and function is None)):
                msg = f"{called}: {name} must be a function of the object, not {function!r}"
                raise HandlerError(msg)
        if isinstance(columns, str):
            msg = f"{called}: columns must be a collection of attributes, as in [{columns!r}]"
            raise HandlerError(msg)
        names = tuple(getattr(column, "key", column) for column in columns)
        for name in names:
            if not mapper.has_property(name):
                msg = f"{called}: {name!r} is not a mapped attribute"
                raise HandlerError(msg)
        trigger = Trigger(change, model, handler, payload, when, names, job_model, dict(options))
        self._triggers.append(trigger)
        self._of_class.clear()

    def listen(self, target: Any) -> None:
        """Listen for the flushes of sessions.

        :raises HandlerError: if these would be all sessions, or the target is something else.
        """
        found = _sync(target)
        if found is Session or not _has_session_events(found):
            msg = (
                f"handlers.listen() takes a sessionmaker, a subclass of Session of your own or a "
                f"session, not {target!r}; in asyncio, sessions with a sync_session_class of their "
                f"own. (Session itself is the class of every session in the process.)"
            )
            raise HandlerError(msg)
        for name, function in (
            ("before_flush", self._before_flush),
            ("after_flush", self._after_flush),
            ("after_flush_postexec", self._after_flush_postexec),
        ):
            if not event.contains(found, name, function):
                event.listen(found, name, function)

    def _before_flush(self, session: Session, _flush: UOWTransaction, _objects: Any) -> None:
        """Load what has expired of objects to delete: afterwards their rows do not exist."""
        for found in session.deleted:
            if any(trigger.change == "delete" for trigger in self._triggers_of(type(found))):
                state: InstanceState[Any] = sa_inspect(found)
                expired = state.expired_attributes.intersection(state.mapper.column_attrs.keys())
                if expired:
                    getattr(found, min(expired))  # loads all of them

    def _after_flush(self, session: Session, flush: UOWTransaction) -> None:
        flush.attributes[_CHANGED] = list(self._changed(session, flush))

    def _changed(self, session: Session, flush: UOWTransaction) -> Iterator[_Changed]:
        # ``session.deleted`` does not contain orphans; the states of the flush do.
        for state, (is_deleted, only_listed) in flush.states.items():
            triggers = () if only_listed else self._triggers_of(state.class_)
            if not triggers:
                continue
            change = "delete" if is_deleted else "insert" if state.key is None else "update"
            for trigger in triggers:
                if trigger.change == change and trigger.concerns(session, state):
                    found = state.obj()
                    payload = trigger.payload(found) if is_deleted else None
                    yield _Changed(trigger, found, payload)

    def _after_flush_postexec(self, session: Session, flush: UOWTransaction) -> None:
        for changed in flush.attributes.pop(_CHANGED, ()):
            trigger, found = changed.trigger, changed.found
            if trigger.change == "insert" and not (trigger.when is None or trigger.when(found)):
                continue
            payload = changed.payload if trigger.change == "delete" else trigger.payload(found)
            self._enqueue(session, trigger, payload)

    def _enqueue(self, session: Session, trigger: Trigger, payload: Any) -> None:
        connection = session.connection(bind_arguments=bind_arguments(trigger.job_model))
        handler: Any = trigger.handler
        if isinstance(handler, str):
            handler = self._find(handler)
        if handler is None:  # another program has it
            job_type: Any = trigger.handler
            options = dict(trigger.options)
            enqueue(connection, job_type, payload, job_model=trigger.job_model, **options)
        elif handler.job_class is not None:
            handler.enqueue(connection, payload, **trigger.options)
        else:
            handler.enqueue(connection, payload, job_model=trigger.job_model, **trigger.options)

    def _triggers_of(self, class_: type[Any]) -> list[Trigger]:
        found = self._of_class.get(class_)
        if found is None:
            found = [trigger for trigger in self._triggers if issubclass(class_, trigger.model)]
            self._of_class[class_] = found
        return found


def _sync(target: Any) -> Any:
    """Return the target of session events for sessions, also for those of asyncio."""
    target = getattr(target, "session_factory", target)  # that of a scoped_session
    given = getattr(target, "kw", {}).get("sync_session_class")  # that of an async_sessionmaker
    if given is not None:
        return given
    if isinstance(one := getattr(target, "sync_session", None), Session):
        return one
    return getattr(getattr(target, "class_", target), "sync_session_class", target)


def _has_session_events(found: Any) -> bool:
    if isinstance(found, type):
        return issubclass(found, Session)
    return isinstance(found, Session | sessionmaker)

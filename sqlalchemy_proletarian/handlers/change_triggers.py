"""Jobs for changes of objects: the methods of a registry, ``on_insert`` and so on.

::

    Session = sessionmaker(engine)
    handlers.on_insert(Order, welcome, payload=lambda order: order.id)
    handlers.listen(Session)

What they do is in :mod:`.on_changes`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from sqlalchemy.orm import QueryableAttribute

from ..models.defaults import Job
from ..models.mixins import JobMixin
from ..producer.options import JobOptions
from .handler import Handler, PayloadT

if TYPE_CHECKING:
    from .on_changes import Change, Changes

EntityT = TypeVar("EntityT")
SessionsT = TypeVar("SessionsT")


class ChangeTriggers:
    """The methods of :class:`.Handlers` that enqueue jobs for changes of objects.

    .. versionadded:: 0.1
    """

    def __init__(self) -> None:
        self._changes: Changes | None = None

    @abstractmethod
    def find(
        self, job_type: str, job_model: type[Any] | None = None
    ) -> Handler[Any, ..., Any] | None:
        """Return the handler of ``job_type``, or None if there is none."""

    @overload
    def on_insert(
        self,
        model: type[EntityT],
        handler: Handler[PayloadT, ..., Any],
        *,
        payload: Callable[[EntityT], PayloadT],
        when: Callable[[EntityT], bool] | None = ...,
        job_model: type[JobMixin] = ...,
        **options: Unpack[JobOptions],
    ) -> None: ...
    @overload
    def on_insert(
        self,
        model: type[EntityT],
        handler: str,
        *,
        payload: Callable[[EntityT], Any],
        when: Callable[[EntityT], bool] | None = ...,
        job_model: type[JobMixin] = ...,
        **options: Unpack[JobOptions],
    ) -> None: ...
    def on_insert(
        self,
        model: type[Any],
        handler: Handler[Any, ..., Any] | str,
        *,
        payload: Callable[[Any], Any],
        when: Callable[[Any], bool] | None = None,
        job_model: type[JobMixin] = Job,
        **options: Unpack[JobOptions],
    ) -> None:
        """Enqueue a job whenever a session inserts an object of a mapped class.

        It applies to the sessions that are passed to :meth:`listen`. The job is inserted in the
        same flush as the object, when its primary key and server defaults are known, and is part
        of the same transaction and SAVEPOINT. If ``payload`` or ``when`` raises, the flush fails.

        Statements, such as ``session.execute(insert(Order))``, and the bulk methods of a session
        have no objects, so they enqueue no jobs.

        :param model: the mapped class; its subclasses count as well.
        :param handler: a handler, or a job type. A job type that is not registered here when the
            job is enqueued has the queue and the serializer of ``options``.
        :param payload: returns the payload for an object. It may read the object, and load what has
            not been loaded; objects that it adds or changes are not part of the flush.
        :param when: says of an object whether to enqueue a job; by default, always.
        :param job_model: the mapped class of the job table; :class:`.Job` by default.
        :param options: the keyword arguments described in :class:`.JobOptions`; by default those of
            the handler's registration.
        :raises HandlerError: if an argument is not what it has to be.

        .. versionadded:: 0.1
        """
        self._trigger(
            "insert", model, handler, payload, when=when, job_model=job_model, options=options
        )

    @overload
    def on_update(
        self,
        model: type[EntityT],
        handler: Handler[PayloadT, ..., Any],
        *,
        payload: Callable[[EntityT], PayloadT],
        columns: Iterable[str | QueryableAttribute[Any]] = ...,
        when: Callable[[EntityT], bool] | None = ...,
        job_model: type[JobMixin] = ...,
        **options: Unpack[JobOptions],
    ) -> None: ...
    @overload
    def on_update(
        self,
        model: type[EntityT],
        handler: str,
        *,
        payload: Callable[[EntityT], Any],
        columns: Iterable[str | QueryableAttribute[Any]] = ...,
        when: Callable[[EntityT], bool] | None = ...,
        job_model: type[JobMixin] = ...,
        **options: Unpack[JobOptions],
    ) -> None: ...
    def on_update(
        self,
        model: type[Any],
        handler: Handler[Any, ..., Any] | str,
        *,
        payload: Callable[[Any], Any],
        columns: Iterable[str | QueryableAttribute[Any]] = (),
        when: Callable[[Any], bool] | None = None,
        job_model: type[JobMixin] = Job,
        **options: Unpack[JobOptions],
    ) -> None:
        """Enqueue a job whenever a session updates an object of a mapped class.

        An object whose attributes have the values that they had before is not updated; see
        ``Session.is_modified``. Changes of collections do not count.

        :param columns: the attributes of which one must have changed, as in ``[Order.status]``, or
            their names. By default, any attribute.
        :param when: says of an object whether to enqueue a job; by default, always. It is called
            while the history is there: ``inspect(order).attrs.status.history.deleted`` has the old
            value, if it was loaded.

        The other parameters and the errors are those of :meth:`on_insert`.

        .. versionadded:: 0.1
        """
        self._trigger(
            "update",
            model,
            handler,
            payload,
            when=when,
            columns=columns,
            job_model=job_model,
            options=options,
        )

    @overload
    def on_delete(
        self,
        model: type[EntityT],
        handler: Handler[PayloadT, ..., Any],
        *,
        payload: Callable[[EntityT], PayloadT],
        when: Callable[[EntityT], bool] | None = ...,
        job_model: type[JobMixin] = ...,
        **options: Unpack[JobOptions],
    ) -> None: ...
    @overload
    def on_delete(
        self,
        model: type[EntityT],
        handler: str,
        *,
        payload: Callable[[EntityT], Any],
        when: Callable[[EntityT], bool] | None = ...,
        job_model: type[JobMixin] = ...,
        **options: Unpack[JobOptions],
    ) -> None: ...
    def on_delete(
        self,
        model: type[Any],
        handler: Handler[Any, ..., Any] | str,
        *,
        payload: Callable[[Any], Any],
        when: Callable[[Any], bool] | None = None,
        job_model: type[JobMixin] = Job,
        **options: Unpack[JobOptions],
    ) -> None:
        """Enqueue a job whenever a session deletes an object of a mapped class.

        Objects that a cascade of the session deletes count as well; rows that the database deletes
        by a foreign key do not. ``payload`` and ``when`` get the object with its last values, of
        the columns only: the row does not exist any more, so relationships cannot be loaded.

        The parameters and the errors are those of :meth:`on_insert`.

        .. versionadded:: 0.1
        """
        self._trigger(
            "delete", model, handler, payload, when=when, job_model=job_model, options=options
        )

    def listen(self, sessions: SessionsT) -> SessionsT:
        """Enqueue the jobs of :meth:`on_insert`, :meth:`on_update` and :meth:`on_delete`.

        It can be called before or after these. Other sessions of the program stay as they are.

        :param sessions: the sessions that enqueue: a ``sessionmaker``, a subclass of ``Session``, a
            ``scoped_session`` of one of these, or one session. In asyncio, an AsyncSession or an
            ``async_sessionmaker`` with a ``sync_session_class`` of its own.
        :return: ``sessions``, so that this can decorate a class.
        :raises HandlerError: if it is something else, or the class ``Session`` itself: the workers'
            own sessions, and those of other libraries, are of this class, too.

        .. versionadded:: 0.1
        """
        self._recorded_changes().listen(sessions)
        return sessions

    def _trigger(self, change: Change, *arguments: Any, **options: Any) -> None:
        self._recorded_changes().add(change, *arguments, **options)

    def _recorded_changes(self) -> Changes:
        if self._changes is None:
            from .on_changes import Changes  # few programs need it

            self._changes = Changes(self.find)
        return self._changes

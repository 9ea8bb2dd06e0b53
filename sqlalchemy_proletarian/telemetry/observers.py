"""What observers see of jobs. Metrics and traces are made by observers.

An observer belongs to the process: producers and the workers that start later call it. Without
observers, nothing of this is called or measured.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

from ..callbacks import call_user_function
from .calls import EnqueueCall
from .events import logger
from .shield import shielded


@dataclass(slots=True, eq=False, weakref_slot=True)
class ObservedRun:
    """One run of a job, or the end of a job that did not run again.

    It is hashable by its identity, so that an observer can keep what it knows of a run.

    .. versionadded:: 0.1
    """

    job_id: Any
    """The id of the job."""
    job_type: str
    """The type of the job."""
    queue: str | None
    """None for a job that its worker has not claimed for a run."""
    attempt: int
    """The number of the attempt, from 1."""
    headers_text: str | None = None
    """The headers of the job as JSON."""
    wait: float | None = None
    """Seconds from the due time of the job to the start of its handler; None if it did not run."""
    duration: float | None = None
    """Seconds that the handler ran, with the transaction of its own session; None if it did not
    run."""
    outcome: str = ""
    """What became of the job: "success", "failure", "cancelled", "retried", "snoozed",
    "interrupted" or "refused". Empty until that is committed. "undone" if it was not, and the job
    runs again."""
    error: BaseException | None = None
    """What the attempt raised."""

    @property
    def headers(self) -> Mapping[str, Any]:
        """The headers of the job; empty if it has none, or they cannot be read."""
        try:
            headers = json.loads(self.headers_text or "{}")
        except ValueError:  # a column type of the user's, for example an encrypted one
            return {}
        return headers if isinstance(headers, dict) else {}

    def times(self) -> dict[str, Any]:
        """Return :attr:`wait` and :attr:`duration` as data of events, so far as they are known."""
        times = {"wait": self.wait, "duration": self.duration}
        return {name: round(value, 6) for name, value in times.items() if value is not None}


class Observer:
    """Base class of observers, whose methods do nothing.

    Methods are called in the threads and tasks of workers, some of them at the same time, and must
    not block. What they raise is logged and has no other effect.

    .. versionadded:: 0.1
    """

    def enqueuing(
        self,
        job_type: str,  # noqa: ARG002 - for subclasses
        queue: str,  # noqa: ARG002
        headers: Mapping[str, Any] | None,
    ) -> Mapping[str, Any] | None:
        """Return the headers of jobs that are about to be enqueued; by default those given.

        ``enqueue_many`` calls this once for the jobs of each type that have the same options.

        :param job_type: the type of the jobs.
        :param queue: their queue.
        :param headers: the headers that the caller passed, or another observer returned; None for
            no headers.
        """
        return headers

    def around_enqueue(
        self,
        call: EnqueueCall,  # noqa: ARG002
    ) -> AbstractContextManager[object]:
        """Return a context manager in which a call enqueues; it sees what the call raises.

        :meth:`enqueuing` is called inside it. With a session, ``enqueue`` only adds an object: the
        row is inserted by a later flush. Whether the caller commits is not known here.

        :param call: what is known of the call.
        """
        return nullcontext()

    def enqueued(self, job_type: str, queue: str, jobs: int) -> None:
        """Receive how many jobs of a type were inserted. Their transaction may be rolled back.

        :param job_type: the type of the jobs.
        :param queue: their queue.
        :param jobs: how many jobs were inserted.
        """

    def around(
        self,
        runs: Sequence[ObservedRun],  # noqa: ARG002
    ) -> AbstractContextManager[object]:
        """Return a context manager in which the handler runs; it sees what the handler raises.

        :param runs: the run, or all runs of a call of a batch handler.
        """
        return nullcontext()

    def ended(self, runs: Sequence[ObservedRun]) -> None:
        """Receive runs whose outcomes were committed.

        :param runs: the runs of a transaction.
        """

    def undone(self, runs: Sequence[ObservedRun]) -> None:
        """Receive runs without an outcome, whose jobs run again.

        Their transaction was rolled back, their lease was lost, or the call of a batch handler is
        repeated with fewer jobs. After a connection was lost in a commit, nobody knows whether it
        took effect. A run that was cancelled while another process archived its job is here, too,
        with the outcome "cancelled".

        :param runs: the runs.
        """


_observers: list[Observer] = []
"""Replaced, not changed, so that it can be read without a lock."""


def add_observer(observer: Observer) -> None:
    """Let an observer see the jobs of this process: what it enqueues, and what its workers run.

    Workers that are running do not call it.

    :param observer: the observer.
    :raises TypeError: if it is not an :class:`Observer`.

    .. versionadded:: 0.1
    """
    if not isinstance(observer, Observer):
        msg = f"an observer must be an instance of a subclass of Observer, not {observer!r}"
        raise TypeError(msg)
    global _observers  # noqa: PLW0603
    _observers = [*_observers, observer]


def remove_observer(observer: Observer) -> None:
    """Undo :func:`add_observer`. Workers that are running still call the observer.

    :param observer: what was passed to :func:`add_observer`.
    :raises ValueError: if it has not been added.

    .. versionadded:: 0.1
    """
    global _observers  # noqa: PLW0603
    if observer not in _observers:
        msg = f"{observer!r} has not been added"
        raise ValueError(msg)
    _observers = [other for other in _observers if other is not observer]


def has_observers() -> bool:
    """Return whether there is an observer in this process."""
    return bool(_observers)


def current_observers() -> tuple[Observer, ...]:
    """Return the observers of this process."""
    return tuple(_observers)


def observe_inserts(jobs: Callable[[], Iterable[tuple[str, str]]]) -> None:
    """Tell observers which jobs were inserted.

    :param jobs: returns the type and the queue of each; not called without observers.
    """
    if not _observers:
        return
    counted = Counter(jobs())
    for observer in _observers:
        try:
            for (job_type, queue), number in counted.items():
                observer.enqueued(job_type, queue, number)
        except Exception:
            logger.exception("the observer %r raised when a job was enqueued", observer)


class Observers:
    """The observers of one start of a worker.

    :param report: called with the errors of observers.
    """

    def __init__(self, report: Callable[[Exception], object]) -> None:
        self._observers = tuple(_observers)
        self._report = report

    def __bool__(self) -> bool:
        return bool(self._observers)

    @contextmanager
    def around(self, runs: Sequence[ObservedRun]) -> Generator[None]:
        """Measure the duration of runs, inside the context managers of all observers."""
        with ExitStack() as stack:
            for observer in self._observers:
                stack.enter_context(shielded(partial(observer.around, runs), self._report))
            started = perf_counter()
            try:
                yield
            finally:
                duration = perf_counter() - started
                for run in runs:
                    run.duration = duration

    def ended(self, runs: Sequence[ObservedRun]) -> None:
        """Pass on runs whose outcomes were committed."""
        self._pass_on([observer.ended for observer in self._observers], runs)

    def undone(self, runs: Sequence[ObservedRun]) -> None:
        """Pass on runs without an outcome."""
        self._pass_on([observer.undone for observer in self._observers], runs)

    def _pass_on(
        self,
        functions: Sequence[Callable[[Sequence[ObservedRun]], object]],
        runs: Sequence[ObservedRun],
    ) -> None:
        for function in functions:
            try:
                call_user_function(function, runs)
            except Exception as error:
                self._report(error)

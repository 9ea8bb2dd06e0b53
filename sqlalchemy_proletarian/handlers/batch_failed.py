"""How a batch handler says which of its jobs have failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from ..errors import HandlerError

Outcomes: TypeAlias = Sequence[Exception | None] | None
"""What a batch handler returns: None, or for each payload None or the error of its job."""


class BatchFailed(Exception):  # noqa: N818 - the name says what the handler reports
    """Raise this in a batch handler if some of its jobs have failed, and the others succeeded.

    What the handler wrote through its session is committed, with the jobs that succeeded: do not
    write anything for the jobs that failed, or undo it with ``session.begin_nested()``. If all jobs
    of the call have failed, nothing is committed.

    :param errors: a mapping from the index of a payload, from 0, to the exception with which its
        job has failed. It may be a :class:`.RetryAfter`, :class:`.Snooze` or :class:`.Discard`.
    :raises TypeError: if it is no mapping of ints to exceptions.
    :raises ValueError: if an index is negative.

    .. versionadded:: 0.1
    """

    def __init__(self, errors: Mapping[int, Exception]) -> None:
        if not isinstance(errors, Mapping):
            msg = f"errors must be a mapping of indexes to exceptions, not {errors!r:.100}"
            raise TypeError(msg)
        for index, error in errors.items():
            if not isinstance(index, int) or isinstance(index, bool):
                msg = f"errors must have the indexes of payloads as keys, not {index!r:.100}"
                raise TypeError(msg)
            if index < 0:
                msg = f"the indexes of payloads start at 0, and {index} is negative"
                raise ValueError(msg)
            if not isinstance(error, Exception):
                msg = f"errors[{index}] must be an exception, not {error!r:.100}"
                raise TypeError(msg)
        super().__init__(f"{len(errors)} jobs of the batch failed: {dict(errors)!r:.1000}")
        self.errors: dict[int, Exception] = dict(errors)


def errors_by_index(failed: BatchFailed, count: int, job_type: str) -> dict[int, Exception]:
    """Return the errors that a handler has reported.

    :param count: how many payloads the call had.
    :raises HandlerError: if an index is not that of a payload.
    """
    for index in failed.errors:
        if index >= count:
            msg = (
                f"the batch handler of {job_type!r} raised BatchFailed for the payload {index}, "
                f"but the last of its {count} payloads has the index {count - 1}"
            )
            raise HandlerError(msg) from failed
    return failed.errors


def require_success(result: Any, count: int, job_type: str) -> None:
    """Raise what the outcomes say that a batch handler has returned.

    :param count: how many payloads the call had.
    :raises BatchFailed: if jobs have failed.
    :raises HandlerError: if the result is neither None nor an outcome for each payload.
    """
    if result is None:
        return
    handler = f"the batch handler of {job_type!r}"
    if not isinstance(result, list | tuple):
        msg = (
            f"{handler} returned {result!r:.100}: return None, or a list with None or an "
            f"exception for each payload"
        )
        raise HandlerError(msg)
    if len(result) != count:
        msg = f"{handler} returned {len(result)} outcomes for {count} payloads: return one for each"
        raise HandlerError(msg)
    for index, outcome in enumerate(result):
        if outcome is not None and not isinstance(outcome, Exception):
            msg = (
                f"{handler} returned {outcome!r:.100} as the outcome of the payload {index}: an "
                f"outcome is None or an exception"
            )
            raise HandlerError(msg)
    errors = {index: outcome for index, outcome in enumerate(result) if outcome is not None}
    if errors:
        raise BatchFailed(errors)

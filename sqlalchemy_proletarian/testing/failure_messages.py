"""The messages of assertions that fail: what is enqueued instead."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from difflib import SequenceMatcher
from typing import Any, Final

from sqlalchemy.orm import Session

from ..errors import PayloadError
from ..models.job_classes import base_of
from .enqueued_jobs import EnqueuedJob, as_view, find_jobs, read
from .matching import Wanted, differences, value_of

_MAX_SHOWN: Final = 5
"""How many jobs a message shows of each kind."""


_NOTHING: Final = (
    "Nothing is enqueued, as the transaction of this session sees it: it does not see what other "
    "sessions have not committed, and jobs that have run are in the archive."
)

__tracebackhide__ = True  # pytest shows the line of the test instead


def failure_message(
    session: Session, wanted: Wanted, count: int | None, matching: Sequence[EnqueuedJob[Any]]
) -> str:
    """Return the message of an assertion that failed.

    :param count: how many jobs had to match; None for at least one.
    :param matching: the jobs that match.
    """
    number = len(matching)
    found = {0: "no job is", 1: "1 job is"}.get(number, f"{number} jobs are")
    if count == 0:
        lines = [f"{found} enqueued, but must not be: {_asked(wanted)}"]
    elif count is None:
        lines = [f"no such job is enqueued: {_asked(wanted)}"]
    else:
        lines = [f"{found} enqueued, not {count}: {_asked(wanted)}"]
    lines += _listed([_shown(view, wanted) for view in matching])
    if count == 0:
        return "\n".join(lines)
    others = _others(session, wanted, {view.job.job_id for view in matching})
    if others:
        title = "Also enqueued" if matching else "Enqueued instead"
        shown = [_shown(view, wanted) + _why(wanted, view) for view in others]
        lines += [f"{title}, the most similar first:", *_listed(shown)]
    elif not matching:
        lines.append(_NOTHING)
    if wanted.unencodable is not None and _explains(wanted.unencodable, wanted, others):
        lines.append(f"No job can have this payload: {wanted.unencodable}")
    return "\n".join(lines)


def _explains(error: PayloadError, wanted: Wanted, others: Sequence[EnqueuedJob[Any]]) -> bool:
    """Return whether jobs differ from the payload where it cannot be encoded.

    They do not where it has an object such as ``ANY``.
    """
    places = [place for view in others for place in differences(wanted, view)]
    return not others or any(str(error).startswith(f"{place} ") for place in places)


def _others(session: Session, wanted: Wanted, matching: set[Any]) -> list[EnqueuedJob[Any]]:
    """Return the jobs that do not match, the most similar first."""
    found = find_jobs(session, None, None, base_of(wanted.model))
    others = [_as_far_as_possible(job, wanted) for job in found if job.job_id not in matching]
    return sorted(others, key=lambda view: _distance(wanted, view))


def _as_far_as_possible(job: Any, wanted: Wanted) -> EnqueuedJob[Any]:
    """Return the view of a job that may be of another type, and have another serializer."""
    try:
        job_type = wanted.job_type if _is_of_type(job, wanted) else None
        return read(job, job_type, wanted.serializer)
    except PayloadError:
        return as_view(job, job.payload)


def _is_of_type(job: Any, wanted: Wanted) -> bool:
    if isinstance(wanted.job_type, type):
        return isinstance(job, wanted.job_type)
    return wanted.name in ("", job.job_type)


def _distance(wanted: Wanted, view: EnqueuedJob[Any]) -> tuple[float, int, float]:
    name = view.job_type
    far = 0.0 if _is_of_type(view.job, wanted) else 1 - _similarity(wanted.name, name)
    payload = wanted.values.get("payload")
    return far, len(differences(wanted, view)), -_similarity(_text(payload), _text(view.payload))


def _similarity(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other).ratio()


def _why(wanted: Wanted, view: EnqueuedJob[Any]) -> str:
    different = [] if _is_of_type(view.job, wanted) else ["the type"]
    different += differences(wanted, view)
    return f"  ← {', '.join(different)} {'differs' if len(different) == 1 else 'differ'}"


def _asked(wanted: Wanted) -> str:
    values = [f"{name}={_text(value)}" for name, value in wanted.values.items()]
    return " ".join([repr(wanted.name) if wanted.name else "any type", *values])


def _shown(view: EnqueuedJob[Any], wanted: Wanted) -> str:
    names = dict.fromkeys(["payload", "queue", "process_at", *wanted.values])
    values = [f"{name}={_text(value_of(view, name))}" for name in names]
    return " ".join([repr(view.job_type), *values])


def _text(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat(sep=" ")
    try:
        text = repr(value)
    except Exception:  # __repr__ is the user's code
        text = f"<{type(value).__qualname__}>"
    return text if len(text) <= 200 else f"{text[:199]}…"  # noqa: PLR2004 - characters of a line


def _listed(lines: Sequence[str]) -> list[str]:
    shown = [f"  {line}" for line in lines[:_MAX_SHOWN]]
    more = len(lines) - _MAX_SHOWN
    return [*shown, f"  … and {more} more"] if more > 0 else shown

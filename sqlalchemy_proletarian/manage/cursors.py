"""Job ids and positions in a list as text, for command lines and addresses of web pages."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import inspect as sa_inspect


def parse_job_id(model: type[Any], text: str) -> Any:
    """Return the id of a job that is given as text.

    :param model: the mapped class of the job or archived job.
    :raises ValueError: if the text cannot be an id of this model.
    """
    try:
        kind = sa_inspect(model).columns["job_id"].type.python_type
    except NotImplementedError:
        return text
    if kind not in (UUID, int):
        return text
    try:
        return kind(text)
    except ValueError as error:
        what = "a UUID" if kind is UUID else "a number"
        msg = f"{text!r} is not the id of a job: it must be {what}"
        raise ValueError(msg) from error


def write_cursor(values: Sequence[Any]) -> str:
    """Return the position behind a row as text.

    :param values: the row's values of the columns by which the list is ordered.
    """
    text = json.dumps([_written(value) for value in values], ensure_ascii=False)
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_cursor(after: str, columns: Sequence[Any]) -> list[Any]:
    """Return the values that :func:`write_cursor` was given.

    :param columns: the columns by which the list is ordered.
    :raises ValueError: if the text is of another list, or of none.
    """
    try:
        found = json.loads(urlsafe_b64decode(after.encode() + b"=" * (-len(after) % 4)))
        values = [_read(value) for value in found]
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise _no_position(after) from error
    if len(values) != len(columns):
        raise _no_position(after)
    return values


def _no_position(after: str) -> ValueError:
    return ValueError(
        f"after={after!r} is not a position in this list: pass the 'after' of a page of it"
    )


def _written(value: Any) -> Any:
    if isinstance(value, datetime):
        return {"time": value.isoformat()}
    return {"uuid": value.hex} if isinstance(value, UUID) else value


def _read(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "time" in value:
        return datetime.fromisoformat(value["time"])
    return UUID(value["uuid"])

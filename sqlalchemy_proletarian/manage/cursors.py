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
    kind = _kind(sa_inspect(model).columns["job_id"].type)
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
    texts = [_written(value) for value in values]
    return urlsafe_b64encode(json.dumps(texts).encode()).decode().rstrip("=")


def read_cursor(after: str, columns: Sequence[Any]) -> list[Any]:
    """Return the values that :func:`write_cursor` was given.

    :param columns: the columns by which the list is ordered.
    :raises ValueError: if the text is of another list, or of none.
    """
    try:
        found = json.loads(urlsafe_b64decode(after.encode() + b"=" * (-len(after) % 4)))
        return [_read(value, c.type) for value, c in zip(found, columns, strict=True)]
    except (ValueError, TypeError, AttributeError) as error:
        msg = f"after={after!r} is not a position in this list: pass the 'after' of a page of it"
        raise ValueError(msg) from error


def _written(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return value if isinstance(value, int | str) else str(value)


def _read(value: Any, type_: Any) -> Any:
    kind = _kind(type_)
    if issubclass(kind, datetime):
        return datetime.fromisoformat(value)
    return kind(value)


def _kind(type_: Any) -> type[Any]:
    try:
        kind: type[Any] = type_.python_type
    except NotImplementedError:
        return str
    return kind

"""The rows of ``enqueue_many``: their checks, and their values by column."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import inspect as sa_inspect

from ..models.job_classes import identity_of
from ..models.mixins import JobMixin
from ..telemetry.calls import EnqueueCall
from .facts import PLAIN, facts_of
from .options import CompleteOptions
from .values import encoded, job_values, require_key

_DEFAULTS = ("queue", "process_at", "process_in", "priority", "headers")


class NewRows:
    """The checked rows of one call.

    A row consists of an id, a payload and the other values. Rows that give only a job type and a
    payload share the other values, which are checked once for each job type.

    :param call: what observers see of the call; None without observers.
    """

    def __init__(
        self,
        job_model: type[JobMixin],
        options: CompleteOptions,
        now: datetime,
        call: EnqueueCall | None,
    ) -> None:
        self._call = call
        self._job_model = job_model
        self._options = options
        self._now = now
        self._own = frozenset(sa_inspect(job_model).column_attrs.keys())
        self._ids: list[Any] = []
        """None for an id that the database generates, an int for a UUID, and a tuple of one for any
        other. Thousands of UUID objects would make Python look for garbage in between."""
        self.payloads: list[str] = []
        self.others: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self.payloads)

    def extend(self, rows: Iterable[Any]) -> None:
        """Check rows and add them.

        :raises PayloadError: if a payload cannot be encoded.
        :raises TypeError: if a row is of the wrong type or has an unknown column.
        :raises ValueError: if a value is out of range.
        """
        identity = identity_of(self._job_model)
        shared: dict[str, dict[str, Any]] = {}
        serializer = self._options.serializer
        make_id = self._options.uuid_fn if facts_of(self._job_model).has_uuid else _no_id
        add_id, add_payload, add_others = self._ids.append, self.payloads.append, self.others.append
        for row in rows:
            job_type, payload, given = _parts_of(row, identity)
            others = shared.get(job_type) if not given and type(job_type) is str else None
            if others is None:
                others = self._checked(job_type, given)
                if not given:
                    shared[job_type] = others
            add_payload(encoded(serializer, payload))
            job_id = given.pop("job_id") if "job_id" in given else make_id()
            if isinstance(job_id, UUID):
                add_id(job_id.int)
            else:
                add_id(None if job_id is None else (job_id,))
            add_others(others)

    def _checked(self, job_type: str, given: Mapping[str, Any]) -> dict[str, Any]:
        options = self._options
        defaults = {name: given.get(name, getattr(options, name)) for name in _DEFAULTS}
        values = job_values(
            self._job_model,
            job_type,
            serializer=options.serializer,
            now=self._now,
            call=self._call,
            **defaults,
        )
        columns = {name: given[name] for name in given if name not in defaults}
        if unknown := columns.keys() - self._own:
            msg = f"{', '.join(sorted(unknown))}: no such column in {self._job_model.__qualname__}"
            raise TypeError(msg)
        require_key(columns)
        columns.pop("job_id", None)
        return values | columns

    def different(self) -> list[dict[str, Any]]:
        """Return the other values of rows, each set of shared values once."""
        return list({id(others): others for others in self.others}.values())

    def queues(self) -> set[str]:
        """Return the queues of the rows."""
        return {others["queue"] for others in self.different()}

    def counts(self) -> Mapping[tuple[str, str], int]:
        """Return the numbers of rows by queue and job type."""
        counts: Counter[tuple[str, str]] = Counter()
        shared = {id(others): others for others in self.others}
        for key, number in Counter(map(id, self.others)).items():
            counts[shared[key]["queue"], shared[key]["job_type"]] += number
        return counts

    def mappings(self) -> list[dict[str, Any]]:
        """Return the values of each row by the names of the mapped attributes."""
        mappings = []
        for job_id, payload, others in zip(self._ids, self.payloads, self.others, strict=True):
            values = {**others, "payload": payload}
            if job_id is not None:
                values["job_id"] = UUID(int=job_id) if isinstance(job_id, int) else job_id[0]
            mappings.append(values)
        return mappings

    def texts(self) -> tuple[dict[str, list[str]], dict[str, Any]] | None:
        """Return the values by column: those that vary, as text, and those that do not.

        Return None if there are other columns than :data:`.PLAIN` and the headers, or a value has
        no obvious text.
        """
        different = self.different()
        made = {"job_id", "payload", "headers"}
        if any(others.keys() | made != PLAIN | made for others in different):
            return None
        varying = {"payload": self.payloads}
        if facts_of(self._job_model).has_uuid:
            if not all(isinstance(job_id, int) for job_id in self._ids):
                return None
            varying["job_id"] = [f"{job_id:032x}" for job_id in self._ids]
        elif any(job_id is not None for job_id in self._ids):
            return None
        same: dict[str, Any] = {}
        for name in different[0].keys() - {"headers"}:
            value = different[0][name]
            if all(others[name] == value for others in different):
                same[name] = value
            elif all(_has_text(others[name]) for others in different):
                varying[name] = [str(others[name]) for others in self.others]
            else:
                return None
        if any("headers" in others for others in different):
            # Compared as text, because 1 equals True.
            texts = {id(others): _json_of(others.get("headers")) for others in different}
            if len(set(texts.values())) == 1:
                same["headers"] = different[0]["headers"]
            else:
                varying["headers"] = [texts[id(others)] for others in self.others]
        return varying, same


def _no_id() -> None:
    return None


def _has_text(value: Any) -> bool:
    return type(value) in (str, int) or (isinstance(value, datetime) and value.tzinfo is not None)


def _json_of(headers: dict[str, Any] | None) -> str:
    return "" if headers is None else json.dumps(headers)


def _parts_of(row: Any, identity: str | None) -> tuple[Any, Any, dict[str, Any]]:
    """Return a row's job type, its payload and the other values that it gives."""
    if isinstance(row, tuple) and len(row) == 2:  # noqa: PLR2004 - as the message says
        return row[0], row[1], _NOTHING
    if isinstance(row, Mapping) and (identity is not None or "job_type" in row):
        given = dict(row)
        return given.pop("job_type", identity), given.pop("payload", None), given
    msg = (
        f"a row must be a tuple (job_type, payload) or a mapping with 'job_type', not {row!r:.100}"
    )
    if isinstance(row, JobMixin):
        msg += ": for objects, use session.add_all"
    raise TypeError(msg)


_NOTHING: dict[str, Any] = {}

"""Handlers of mapped job classes: the job type of a class, and the options that it declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import inspect as sa_inspect

from ..errors import HandlerError
from ..models.job_classes import identity_of
from ..models.mixins import JobMixin

_DECLARED_BY_THE_CLASS: Final = ("queue", "priority", "serializer")
_OF_PAYLOADS: Final = ("unique_key", "unique_while", "on_conflict")


def type_of(job_class: type[Any]) -> str:
    """Return the job type of a mapped job class.

    :raises HandlerError: if the class is not mapped to one job type.
    """
    job_type = None
    if issubclass(job_class, JobMixin) and sa_inspect(job_class, raiseerr=False) is not None:
        job_type = identity_of(job_class)
    if not isinstance(job_type, str):
        msg = (
            f"{job_class.__qualname__} is not the class of one job type: such a class is mapped, "
            f'inherits from a job model with __mapper_args__ = {{"polymorphic_on": "job_type"}}, '
            f"and has the type as its polymorphic_identity"
        )
        raise HandlerError(msg)
    return job_type


def refuse_job_options(job_class: type[Any], options: Mapping[str, Any]) -> None:
    """Raise :class:`HandlerError` if an option is given that a job class declares itself."""
    if any(options.get(name) is not None for name in _DECLARED_BY_THE_CLASS):
        msg = (
            f"{job_class.__qualname__} declares its queue and priority itself, as __queue__ and "
            f"__priority__, and has no payload for a serializer"
        )
        raise HandlerError(msg)
    if given := [name for name in _OF_PAYLOADS if options.get(name) is not None]:
        msg = (
            f"{given[0]} is for handlers of payloads: set the column unique_key of the "
            f"{job_class.__qualname__} that you add, or call enqueue_unique with "
            f"job_model={job_class.__qualname__}"
        )
        raise HandlerError(msg)

"""The annotations of batch handlers, whose parameters are lists."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, get_args, get_origin

from ..errors import HandlerError
from ..models.mixins import JobMixin

_LISTS: Final = (list, Sequence, Collection, Iterable)


def of_one_job(
    hints: Mapping[str, Any], first: str, where: str, job_class: type[Any] | None
) -> dict[str, Any]:
    """Return annotations as the handler of a single job has them: ``T`` for ``list[T]``.

    :param hints: the annotations by the name of the parameter.
    :param first: the name of the first parameter.
    :param where: the handler, for error messages.
    :param job_class: the class whose objects the function takes instead of payloads, if any.
    :raises HandlerError: if a parameter that must be a list is none.
    """
    changed = dict(hints)
    of_payloads = changed.pop(first, None)
    if of_payloads not in (None, Any, object):
        if not _is_list(of_payloads):
            what = "payloads" if job_class is None else "jobs"
            shown = getattr(of_payloads, "__name__", of_payloads)
            msg = (
                f"{where}: the first parameter of a batch handler is the list of {what}, but "
                f"{first!r} is {shown}: annotate it as list[{shown}]"
            )
            raise HandlerError(msg)
        if items := get_args(of_payloads):
            changed[first] = items[0]
    for name, annotation in hints.items():
        if name == first:
            continue
        items = get_args(annotation) if _is_list(annotation) else ()
        if items and _is_job_model(items[0]):
            changed[name] = items[0]
        elif _is_job_model(annotation):
            msg = (
                f"{where}: {name!r} is annotated as {annotation.__name__}, but a batch handler "
                f"gets the jobs of all its payloads: annotate it as list[{annotation.__name__}]"
            )
            raise HandlerError(msg)
    return changed


def _is_list(annotation: Any) -> bool:
    return annotation in _LISTS or get_origin(annotation) in _LISTS


def _is_job_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, JobMixin)

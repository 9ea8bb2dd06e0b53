"""A registry of one callable that handles jobs of every type."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from .handler import Handler
from .registry import Handlers
from .signature import Signature, is_async


class _EveryType(Handlers):
    """A registry in which one callable of (job_type, payload) handles jobs of every type."""

    def __init__(self, function: Callable[[str, Any], Any]) -> None:
        super().__init__()
        self._function = function
        self._signature = Signature(is_async=is_async(function))

    def __iter__(self) -> Iterator[Handler[Any, ..., Any]]:
        yield Handler("any type", partial(self._function, "any type"), self._signature)

    def types(self, job_model: type[Any]) -> None:  # noqa: ARG002
        return None

    def find(
        self,
        job_type: str,
        job_model: type[Any] | None = None,  # noqa: ARG002 - it serves every model
    ) -> Handler[Any, ..., Any]:
        handler = super().find(job_type)
        if handler is None:
            handler = Handler(job_type, partial(self._function, job_type), self._signature)
            self._handlers[job_type] = handler
        return handler


def as_handlers(handlers: Handlers | Callable[[str, Any], Any]) -> Handlers:
    """Return ``handlers`` as a registry.

    :param handlers: a registry, which is returned unchanged, or a callable of (job_type, payload)
        that handles jobs of every type.
    :raises TypeError: if it is neither.
    """
    if isinstance(handlers, Handlers):
        return handlers
    if callable(handlers):
        return _EveryType(handlers)
    msg = f"handlers must be Handlers or a callable of (job_type, payload), not {handlers!r}"
    raise TypeError(msg)

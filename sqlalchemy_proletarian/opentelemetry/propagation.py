"""The context of a trace in the headers of a job, written and read by the global propagator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.propagate import extract, inject
from opentelemetry.propagators.textmap import Getter

_BAGGAGE: Final = "baggage"


def with_context(headers: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return headers with the current context, or the same headers if there is none to pass on.

    Headers that the caller has given win. If one of them is from the context of a trace, none of
    that context is added: two halves of different contexts would be worse than either.
    """
    carrier: dict[str, str] = {}
    inject(carrier)
    if headers:
        if any(name in headers for name in carrier if name != _BAGGAGE):
            carrier = {name: value for name, value in carrier.items() if name == _BAGGAGE}
        if not carrier:
            return headers
        return {**carrier, **headers}
    return carrier or headers


def context_of(headers: Mapping[str, Any]) -> Context:
    """Return the context in which a job was enqueued; an empty one if its headers have none."""
    return extract(headers, context=Context(), getter=_GETTER)


class _Getter(Getter[Mapping[str, Any]]):
    """Reads the headers that are strings, because only those are a propagator's."""

    def get(self, carrier: Mapping[str, Any], key: str) -> list[str] | None:
        value = carrier.get(key)
        return [value] if isinstance(value, str) else None

    def keys(self, carrier: Mapping[str, Any]) -> list[str]:
        return list(carrier)


_GETTER: Final = _Getter()

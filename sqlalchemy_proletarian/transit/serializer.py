"""The serializer for Transit, which writes what the Clojure library Proletarian reads."""

from __future__ import annotations

import re
from typing import Any

from ..errors import PayloadError
from ..serializers.json_serializer import nested_too_deeply
from ..serializers.payload_check import require_equal
from ..serializers.payload_types import is_plain, is_typed
from ..serializers.typed import convert, rebuilt
from .reader import read
from .scalars import RefusedError
from .writer import write

_KEYWORD = re.compile(r":[A-Za-z][A-Za-z0-9_.-]*(/[A-Za-z][A-Za-z0-9_.-]*)?")


class TransitSerializer:
    """Payloads and names that the Clojure library Proletarian reads, and reads what it writes.

    :param keyword_keys: write the string keys of maps as keywords, as Clojure code expects them;
        otherwise only a :class:`Keyword` and the fields of a typed payload are written so. Reading
        needs no such choice: a :class:`Keyword` is equal to the string.
    :param keyword_names: refuse to enqueue where the queue or the job type is not written as a
        keyword, ``:name`` or ``:namespace/name``: a Clojure worker takes ``send`` for a symbol, and
        ``mail@host`` stops it. False for names that are meant to be strings.

    .. versionadded:: 0.1
    """

    def __init__(self, *, keyword_keys: bool = True, keyword_names: bool = True) -> None:
        self._keyword_keys = keyword_keys
        self._keyword_names = keyword_names

    def encode(self, payload: Any, annotation: Any = None) -> str:
        """Return ``payload`` as Transit; see :meth:`.Serializer.encode`."""
        if annotation is None and is_typed(type(payload)):
            annotation = type(payload)  # which is all that is known
        typed = None if annotation is None else not is_plain(annotation)
        try:
            text = write(payload, keyword_keys=self._keyword_keys, typed=typed)
            if annotation is not None:
                require_equal(payload, rebuilt(text, annotation, "payload", self.decode))
        except RefusedError as refused:
            raise PayloadError(str(refused)) from refused.__cause__
        except RecursionError:
            raise nested_too_deeply(payload) from None  # its hundreds of lines say no more
        return text

    def decode(self, text: str, annotation: Any = None) -> Any:
        """Return the payload; see :meth:`.Serializer.decode`."""
        try:
            value = read(text, plain_keys=annotation is not None)
        except (ValueError, ArithmeticError, RecursionError) as error:
            msg = f"the payload is not Transit: {error}; it starts with {text[:80]!r}"
            raise PayloadError(msg) from error
        return value if annotation is None else convert(value, annotation)

    def check_names(self, *, queue: str, job_type: str) -> None:
        """Raise ``ValueError`` unless a Clojure worker reads both names as they are meant."""
        if not self._keyword_names:
            return
        for what, name in (("job_type", job_type), ("queue", queue)):
            if not _KEYWORD.fullmatch(name):
                msg = (
                    f"{what} must be written as a keyword for TransitSerializer, ':name' or "
                    f"':namespace/name' with ASCII letters, digits and '_.-', not {name!r:.100}: "
                    f"a Clojure worker reads anything else as something else, or is stopped by it"
                )
                raise ValueError(msg)

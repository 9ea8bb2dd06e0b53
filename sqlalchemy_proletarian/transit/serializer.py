"""The serializer for Transit, the format of the Clojure library Proletarian."""

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
    """A serializer that is compatible with the Clojure library Proletarian.

    :param keyword_keys: whether the string keys of maps are encoded as keywords, as Clojure code
        usually expects; True by default. Otherwise only a :class:`Keyword` and the fields of a
        typed payload are encoded as keywords. Decoding is not affected, because a :class:`Keyword`
        equals its string.
    :param keyword_names: whether jobs are rejected with ``ValueError`` if their queue or job type
        is not written as a keyword, ``:name`` or ``:namespace/name``; True by default. A Clojure
        worker reads ``send`` as a symbol, and stops at ``mail@host``. Set it to False for names
        that are meant to be strings.

    .. versionadded:: 0.1
    """

    def __init__(self, *, keyword_keys: bool = True, keyword_names: bool = True) -> None:
        self._keyword_keys = keyword_keys
        self._keyword_names = keyword_names

    def encode(self, payload: Any, annotation: Any = None) -> str:
        """Return ``payload`` encoded as Transit; see :meth:`.Serializer.encode`.

        :param payload: the payload.
        :param annotation: the type that the handler declares for the payload, ``Any`` if it
            declares none, or None, the default, if no handler is known.
        :raises PayloadError: if the text would not decode to an equal payload.
        """
        if annotation is None and is_typed(type(payload)):
            annotation = type(payload)
        typed = None if annotation is None else not is_plain(annotation)
        try:
            text = write(payload, keyword_keys=self._keyword_keys, typed=typed)
            if annotation is not None:
                require_equal(payload, rebuilt(text, annotation, "payload", self.decode))
        except RefusedError as refused:
            raise PayloadError(str(refused)) from refused.__cause__
        except RecursionError:
            raise nested_too_deeply(payload) from None  # the long traceback adds nothing
        return text

    def decode(self, text: str, annotation: Any = None) -> Any:
        """Return the payload decoded from Transit; see :meth:`.Serializer.decode`.

        :param text: the stored text.
        :param annotation: the type that the handler declares for the payload, or None, the default,
            to return plain values.
        :raises PayloadError: if the text is malformed or does not fit the annotation.
        """
        try:
            value = read(text, plain_keys=annotation is not None)
        except (ValueError, ArithmeticError, RecursionError) as error:
            msg = f"the payload is not Transit: {error}"
            raise PayloadError(msg) from error
        return value if annotation is None else convert(value, annotation)

    def check_names(self, *, queue: str, job_type: str) -> None:
        """Check that both names are written as keywords, if ``keyword_names`` is set.

        :param queue: the name of the queue.
        :param job_type: the job type.
        :raises ValueError: if a name is not written as a keyword.
        """
        if not self._keyword_names:
            return
        for what, name in (("job_type", job_type), ("queue", queue)):
            if not _KEYWORD.fullmatch(name):
                msg = (
                    f"{what} must be written as a keyword for TransitSerializer, ':name' or "
                    f"':namespace/name' with ASCII letters, digits and '_.-', not {name!r:.100}: "
                    f"a Clojure worker would misread any other name or stop at it"
                )
                raise ValueError(msg)

"""Transit, the format in which the Clojure library Proletarian stores payloads.

::

    TRANSIT = TransitSerializer()


    @handlers(":my.app/send-email", queue=":proletarian/default", serializer=TRANSIT)
    def send_email(payload: Email) -> None: ...


    worker = QueueWorker(engine, handlers, queues=":proletarian/default", serializer=TRANSIT)

Transit types are decoded to these Python types, and encoded from them:

=====================================  =======================================================
Clojure                                Python
=====================================  =======================================================
``nil``, ``true``, strings, vectors    ``None``, ``True``, ``str``, ``list`` (``tuple`` in a key)
map, set                               ``dict``, ``set`` (:class:`FrozenMap`, ``frozenset``)
long, bigint                           ``int``
double, ``##NaN``, ``##Inf``           ``float``
bigdec, ratio                          ``Decimal``, ``Fraction``
``java.time.Instant``                  aware ``datetime`` in UTC, whole milliseconds
UUID, byte array                       ``UUID``, ``bytes``
keyword, symbol, char, URI             :class:`Keyword`, :class:`Symbol`, :class:`Char`,
                                       :class:`URI`: strings
list, lazy sequence                    :class:`List`: a tuple
link, tagged value                     :class:`Link`, :class:`TaggedValue`
=====================================  =======================================================

A map with keys, or a set with members, that are equal in Python, such as ``{:a 1, "a" 2}`` or
``#{1 1.0}``, cannot be decoded.
"""

from .serializer import TransitSerializer
from .values import URI, Char, FrozenMap, Keyword, Link, List, Symbol, TaggedValue

__all__ = [
    "URI",
    "Char",
    "FrozenMap",
    "Keyword",
    "Link",
    "List",
    "Symbol",
    "TaggedValue",
    "TransitSerializer",
]

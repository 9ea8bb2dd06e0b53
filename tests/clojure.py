"""Rows that the Clojure library wrote, and a function that writes Python values as EDN."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy_proletarian.transit import URI, Char, Keyword, Link, List, Symbol, TaggedValue

_FIXTURES = Path(__file__).parent / "fixtures"


def _rows(name: str) -> list[dict[str, Any]]:
    with (_FIXTURES / name).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


JOB_ROWS = _rows("clojure_job_rows.jsonl")
ARCHIVED_ROWS = _rows("clojure_archived_rows.jsonl")


def edn(value: Any) -> str:
    """Return a value as Clojure prints it, except that a bigint has no ``N`` suffix."""
    match value:
        case None:
            return "nil"
        case bool():
            return "true" if value else "false"
        case Keyword():
            return f":{value!s}"
        case Symbol():
            return str(value)
        case Char():
            return f"\\{value!s}"
        case URI():
            return f'#transit.URI "{value!s}"'
        case str():
            return f'"{value}"'
        case Decimal():
            return f"{value}M"
        case float():
            return {"nan": "##NaN", "inf": "##Inf", "-inf": "##-Inf"}.get(repr(value), repr(value))
        case UUID():
            return f'#uuid "{value}"'
        case datetime():
            exact = "milliseconds" if value.microsecond else "seconds"
            return f'#instant "{value.replace(tzinfo=None).isoformat(timespec=exact)}Z"'
        case bytes():
            return f'#bytes "{value.hex()}"'
        case List():
            return f"({_several(value)})"
        case list() | tuple():
            return f"[{_several(value)}]"
        case set() | frozenset():
            return f"#{{{_several(value)}}}"
        case Mapping():
            return f"{{{', '.join(f'{edn(k)} {edn(v)}' for k, v in value.items())}}}"
        case TaggedValue(tag, inner):
            return f"#transit/tagged [{edn(tag)} {edn(inner)}]"
        case Link(href, rel, name, prompt, render):
            return f"#link {edn([href, rel, name, prompt, render])}"
    return repr(value)


def _several(values: Any) -> str:
    return " ".join(map(edn, values))

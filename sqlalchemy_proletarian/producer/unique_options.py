"""The options of unique jobs that a call and a registration have in common."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

UniqueWhile: TypeAlias = Literal["queued", "running"]
OnConflict: TypeAlias = Literal["ignore", "replace", "raise"]


def require_unique_options(on_conflict: Any, unique_while: Any) -> None:
    """Check the options.

    :raises ValueError: if a value is not one of those that are allowed.
    """
    require_choice("on_conflict", on_conflict, get_args(OnConflict))
    require_choice("unique_while", unique_while, get_args(UniqueWhile))


def require_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Check that an option has one of its values.

    :raises ValueError: if it has not.
    """
    if value not in choices:
        allowed = ", ".join(map(repr, choices))
        msg = f"{name} must be one of {allowed}, not {value!r}"
        raise ValueError(msg)

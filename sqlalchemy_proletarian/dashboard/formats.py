"""How values look on a page."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from markupsafe import Markup, escape


def number(value: int | None) -> str:
    """Return a number with separators."""
    return "" if value is None else f"{value:,}"


def span(duration: timedelta | None) -> str:
    """Return a duration in its largest unit: ``3 min``."""
    if duration is None:
        return ""
    seconds = duration.total_seconds()
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    for unit, length, most in (("s", 1, 120), ("min", 60, 120 * 60), ("h", 3600, 48 * 3600)):
        if seconds < most:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds // 86400)} days"


def time(at: datetime | None) -> Markup:
    """Return a time as an element. The script shows it in the viewer's zone, with UTC as title."""
    if at is None:
        return Markup("")
    utc = at.astimezone(UTC)
    text = utc.strftime("%Y-%m-%d %H:%M:%S UTC")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        utc.isoformat(timespec="milliseconds"), text, text
    )


def ago(at: datetime | None, now: datetime) -> Markup:
    """Return a time relative to now, as an element with the whole time as title."""
    if at is None:
        return Markup("")
    distance = span(abs(now - at))
    text = f"{distance} ago" if at <= now else f"in {distance}"
    utc = at.astimezone(UTC)
    return Markup('<time datetime="{}" title="{}" data-relative>{}</time>').format(
        utc.isoformat(timespec="milliseconds"), utc.strftime("%Y-%m-%d %H:%M:%S UTC"), text
    )


def pretty(text: str | None) -> str:
    """Return JSON with line breaks; other text as it is."""
    if text is None:
        return ""
    try:
        return pretty_value(json.loads(text))
    except ValueError:
        return text


def pretty_value(value: Any) -> str:
    """Return a value as JSON with line breaks."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def shortened(text: str | None, most: int = 120) -> str:
    """Return the beginning of a text."""
    text = text or ""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def tail(text: str, most: int = 12) -> str:
    """Return the end of an id, which differs most."""
    return text if len(text) <= most else f"…{text[-most:]}"


__all__ = ["ago", "escape", "number", "pretty", "pretty_value", "shortened", "span", "tail", "time"]

"""How numbers and ratios are calculated and written in the reports."""

# ruff: noqa: RUF001 - the multiplication sign is intended
from __future__ import annotations

from .measures import Metric


def ratio(metric: Metric, ours: float | None, theirs: float | None) -> float | None:
    """Return how many times better the first value is: it is better if the ratio is above 1."""
    if ours is None or theirs is None or not ours or not theirs:
        return None
    return ours / theirs if metric.higher_is_better else theirs / ours


def number(value: float) -> str:
    """Format a value with its significant digits."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def times(value: float | None) -> str:
    """Format a ratio; empty if there is none."""
    return "" if value is None else f"{number(value)} ×"

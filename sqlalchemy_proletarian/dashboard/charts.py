"""Bar charts as SVG, made on the server: they need no script and follow the colours of the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from markupsafe import Markup

from ..manage import EndedJobs
from .formats import number

_WIDTH: Final = 720
_HEIGHT: Final = 96
_GAP: Final = 1


def ended_chart(intervals: Sequence[EndedJobs], title: str) -> Markup:
    """Return a chart of the jobs that ended: failures on top of the others.

    :param title: what the chart shows, for those who cannot see it.
    """
    most = max((one.succeeded + one.failed + one.cancelled for one in intervals), default=0) or 1
    width = _WIDTH / max(len(intervals), 1)
    bars = [_bar(one, n * width, width - _GAP, _HEIGHT / most) for n, one in enumerate(intervals)]
    total = sum(one.succeeded + one.cancelled for one in intervals)
    failed = sum(one.failed for one in intervals)
    more = "" if all(one.complete for one in intervals) else " or more"
    summary = f"{title}: {number(total)}{more} ended well, {number(failed)}{more} failed"
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" preserveAspectRatio="none">'
        "<title>{}</title>{}</svg>"
    ).format(_WIDTH, _HEIGHT, summary, Markup("").join(bars))


def _bar(one: EndedJobs, left: float, width: float, scale: float) -> Markup:
    well, failed = (one.succeeded + one.cancelled) * scale, one.failed * scale
    more = "" if one.complete else "+"
    text = (
        f"{one.begin:%H:%M} UTC: {number(one.succeeded + one.cancelled)}{more} ended well, "
        f"{number(one.failed)} failed"
    )
    bars = Markup("")
    for name, height, top in (
        ("well", well, _HEIGHT - well),
        ("failed", failed, _HEIGHT - well - failed),
    ):
        if height:
            bars += Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"/>').format(
                name, f"{left:.2f}", f"{top:.2f}", f"{width:.2f}", f"{height:.2f}"
            )
    return Markup(
        '<g><title>{}</title><rect class="space" x="{}" y="0" width="{}" height="{}"/>{}</g>'
    ).format(text, f"{left:.2f}", f"{width:.2f}", _HEIGHT, bars)

"""What a person sees when a worker starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...models.job_classes import job_table
from ...worker.options import WorkerSettings
from ..explain import where_is
from .build import Built
from .parameters import duration_text, size_text
from .plan import Plan
from .target import names


def print_banner(
    built: Built, plan: Plan, warnings: Sequence[str], health: str | None = None
) -> None:
    """Print what the worker serves, where and how, and warnings.

    :param health: where it serves its health, if it does.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())
    title = Text("proletarian worker", style="bold")
    title.append(f" {version('sqlalchemy-proletarian')}", style="dim")
    console.print(title)
    if console.is_terminal:
        grid = Table.grid(padding=(0, 2), pad_edge=False)
        grid.add_column(style="cyan", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in _rows(built, plan, health):
            grid.add_row(f"  {name}", Text(value))
        console.print(grid)
    else:
        for name, value in _rows(built, plan, health):
            console.print(Text(f"  {name:<9}  {value}"))
    for warning in warnings:
        console.print(Text(f"warning: {warning}", style="yellow"))


def _rows(built: Built, plan: Plan, health: str | None) -> list[tuple[str, str]]:
    settings = built.core.settings
    types = settings.handlers.types(settings.job_model)
    job, archive = job_table(settings.job_model), job_table(settings.archived_job_model)
    handlers = "every type" if types is None else names(types)
    rows = [
        ("queues", _queues(settings)),
        ("handlers", f"{handlers} ({plan.target})"),
        ("database", f"{where_is(settings.engine.url)} ({job}, {archive})"),
        ("runs", _runs(built)),
        ("process", _process(built, plan)),
    ]
    if settings.handlers.recurring_jobs:
        recurring = names(job.name for job in settings.handlers.recurring_jobs)
        rows.insert(2, ("recurring", recurring))
    if health is not None:
        if plan.processes > 1:
            health += "; other processes at the next ports" if plan.health_port else ""
        rows.insert(-1, ("health", health))
    return rows


def _queues(settings: WorkerSettings) -> str:
    if settings.weights is None:
        return ", ".join(settings.queues)
    weights = (f"{name}={weight}" for name, weight in settings.weights.items())
    return f"{', '.join(weights)} (weights)"


def _runs(built: Built) -> str:
    settings = built.core.settings
    if built.in_a_loop:
        how = "in an event loop"
    else:
        how = "in a thread" if settings.concurrency == 1 else "in threads"
    jobs = "1 job" if settings.concurrency == 1 else f"{settings.concurrency} jobs"
    held = "transaction" if settings.lease is None else f"lease of {duration_text(settings.lease)}"
    return f"{jobs} at a time {how}, each held by a {held}"


def _process(built: Built, plan: Plan) -> str:
    parts = [f"{os.getpid()}"]
    if plan.processes > 1:
        parts[0] += f", the first of {plan.processes}"
    if plan.max_jobs is not None:
        parts.append(f"replaced after {plan.max_jobs} jobs")
    if plan.max_memory is not None:
        parts.append(f"replaced at {size_text(plan.max_memory)}")
    if plan.reload:
        parts.append("restarted when a .py file changes")
    if plan.drain:
        parts.append("ends when no job is due")
    else:
        timeout = duration_text(built.core.settings.shutdown_timeout)
        parts.append(f"stops on SIGTERM or Ctrl-C within {timeout}")
    return "; ".join(parts)

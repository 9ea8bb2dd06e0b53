"""The options of ``proletarian worker``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from ..settings import settings
from .link import Link
from .logs import set_up_logging
from .parameters import duration, positive_duration, queues, size
from .plan import Plan

_NOT_IN_FILES: Final = {"help", "drain", "reload", "debug", "models"}
"""Options that belong to one call of the command, or to all commands."""


_LAST_PORT: Final = 65535


class _WithSettings(click.Command):
    """A command whose defaults are the settings of the project."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Return the context, in which the settings are below the environment."""
        return super().make_context(info_name, args, parent, default_map=self._defaults(), **extra)

    def _defaults(self) -> Mapping[str, Any]:
        found = settings()
        known = {name: p.name for p in self.params if p.name for name in _keys(p)}
        shared = {"url": found.url, "models": found.models or None}
        defaults: dict[str, Any] = {k: value for k, value in shared.items() if value is not None}
        for key, value in found.worker.items():
            name = known.get(key)
            if name is None or name in _NOT_IN_FILES:
                close = get_close_matches(key, known, n=1)
                remedy = f"; did you mean {close[0]!r}?" if close and close[0] != key else ""
                msg = f"[tool.proletarian.worker] in {found.file}: unknown key {key!r}{remedy}"
                raise click.ClickException(msg)
            defaults[name] = value
        return defaults


def _keys(parameter: click.Parameter) -> list[str]:
    """Return the names of a parameter in the settings."""
    if isinstance(parameter, click.Argument):
        return [parameter.opts[0]]
    return [option.removeprefix("--") for option in parameter.opts if option.startswith("--")]


@click.command(
    cls=_WithSettings, context_settings={"auto_envvar_prefix": "PROLETARIAN", "show_default": True}
)
@click.argument("target", metavar="TARGET", envvar="PROLETARIAN_TARGET")
@click.option(
    "--url",
    metavar="URL",
    envvar="PROLETARIAN_URL",
    help="The database, as postgresql://user:password@host/database.",
)
@click.option(
    "--models",
    multiple=True,
    metavar="MODULE:CLASS,…",
    help="Your own mapped classes, at least those of the jobs and of their archive.",
)
@click.option(
    "--queues",
    type=queues,
    metavar="NAMES",
    help="critical,default: the most urgent first; or with weights, critical=5,bulk=1.  "
    "[default: default]",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    metavar="N",
    help="Jobs at a time, in threads: a QueueWorker.",
)
@click.option(
    "--asyncio",
    "in_a_loop",
    is_flag=True,
    envvar="PROLETARIAN_ASYNCIO",
    help="An AsyncQueueWorker, also for plain functions.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1),
    metavar="N",
    help="Jobs at a time, in either kind of worker.  [default: 1 in threads, 10 with asyncio]",
)
@click.option(
    "--lease", type=positive_duration, metavar="30s", help="Hold jobs by leases of this duration."
)
@click.option(
    "--shutdown-timeout",
    type=duration,
    metavar="10s",
    help="How long a stop waits for running handlers.  [default: 10s]",
)
@click.option(
    "--pool-size",
    type=click.IntRange(1),
    metavar="N",
    help="Connections for the sessions of handlers, at most.  [default: 5, and 10 more]",
)
@click.option(
    "--processes", type=click.IntRange(1), default=1, metavar="N", help="Processes with a worker."
)
@click.option(
    "--max-jobs",
    type=click.IntRange(1),
    metavar="N",
    help="Replace a process after so many jobs.",
)
@click.option(
    "--max-memory",
    type=size,
    metavar="300MB",
    help="Replace a process that takes more memory.",
)
@click.option(
    "--health-port",
    type=click.IntRange(0, _LAST_PORT),
    metavar="N",
    help="Serve /live, /ready and /metrics at this port; process k at the k-th port after it.",
)
@click.option(
    "--health-host",
    default="127.0.0.1",
    metavar="HOST",
    help="The address to serve them at: 0.0.0.0 for Kubernetes.",
)
@click.option("--drain", is_flag=True, help="End when no job is due.")
@click.option(
    "--reload", is_flag=True, help="Restart when a .py file below this directory changes."
)
@click.option(
    "--wait",
    type=duration,
    default="0s",
    metavar="60s",
    help="How long to try to reach the database at the start.",
)
@click.option("--quiet", is_flag=True, help="No banner; warnings are logged.")
@click.option(
    "--log-level",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
    default="INFO",
    help="Unless the program sets up logging itself.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    help="How log records are written.",
)
@click.option("--debug", is_flag=True, help="Show the tracebacks of errors.")
@click.pass_context
def worker(ctx: click.Context, /, **options: Any) -> None:
    r"""Run the worker of TARGET until SIGTERM or Ctrl-C.

    TARGET is module:object or module:factory(), such as shop.jobs:handlers: a Handlers, a
    QueueWorker, an AsyncQueueWorker or a function that returns one of them. The current directory
    is importable.

    Each option is also an environment variable, such as PROLETARIAN_THREADS, and a key of
    [tool.proletarian.worker] in pyproject.toml; url is a key of [tool.proletarian]. The command
    line takes precedence, then the environment.

    \b
    Exit codes: 0 after a requested stop, or when drained; 1 after an error; 2 if an option is
    wrong; 3 if handlers were still running after the shutdown timeout; 130 after a second signal.
    """
    _drop_overridden(ctx, options)
    given = frozenset(
        name for name in options if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
    )
    for name in ("in_a_loop", "drain"):
        options[name] = bool(options[name])
    plan = Plan(
        **options,
        given=given,
        typed=frozenset(
            name
            for name in options
            if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
        ),
    )
    _require_consistent(plan)
    link = Link.inherited()
    ctx.exit(_supervise(plan) if plan.supervised and link is None else _serve(plan, link))


_RANKS: Final = {
    ParameterSource.COMMANDLINE: 3,
    ParameterSource.ENVIRONMENT: 2,
    ParameterSource.DEFAULT_MAP: 1,
}
_CONTRADICTIONS: Final = [
    ("threads", "in_a_loop"),
    ("threads", "concurrency"),
    ("drain", "max_jobs"),
    ("drain", "max_memory"),
]


def _drop_overridden(ctx: click.Context, options: dict[str, Any]) -> None:
    """Drop an option that contradicts one from a source that takes precedence."""
    for pair in _CONTRADICTIONS:
        if not all(options[name] for name in pair):
            continue
        first, second = (_rank(ctx, name) for name in pair)
        if first != second:
            dropped = pair[0] if first < second else pair[1]
            options[dropped] = None


def _rank(ctx: click.Context, name: str) -> int:
    source = ctx.get_parameter_source(name)
    return 0 if source is None else _RANKS.get(source, 0)


def _require_consistent(plan: Plan) -> None:
    """Refuse options that contradict each other."""
    if plan.threads is not None and plan.in_a_loop:
        msg = "--threads and --asyncio are two kinds of worker: use one of them"
        raise click.UsageError(msg)
    if plan.threads is not None and plan.concurrency is not None:
        msg = "--threads and --concurrency both say how many jobs run at a time: use one of them"
        raise click.UsageError(msg)
    if plan.drain and (plan.reload or plan.recycles):
        other = "--reload" if plan.reload else "--max-jobs and --max-memory"
        msg = f"--drain ends when no job is due: it cannot be used with {other}"
        raise click.UsageError(msg)
    if plan.health_port and plan.health_port + plan.processes - 1 > _LAST_PORT:
        msg = f"--health-port {plan.health_port} leaves no ports for {plan.processes} processes"
        raise click.UsageError(msg)
    if plan.health_port is None and "health_host" in plan.given:
        msg = "--health-host needs --health-port"
        raise click.UsageError(msg)
    if plan.supervised and os.name != "posix":
        msg = "--processes, --reload, --max-jobs and --max-memory need a POSIX system"
        raise click.UsageError(msg)


def _serve(plan: Plan, link: Link | None) -> int:
    from .serve import serve

    return serve(plan, link)


def _supervise(plan: Plan) -> int:
    from .reload import FileWatch
    from .supervisor import Supervisor, this_command

    set_up_logging(plan.log_level, plan.log_format, debug=plan.debug)
    watch = FileWatch(Path.cwd()) if plan.reload else None
    return Supervisor(this_command(), plan.processes, watch=watch, until_done=plan.drain).run()

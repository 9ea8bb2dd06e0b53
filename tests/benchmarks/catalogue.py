"""The measurements by name, in the order of the report."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from .contender import WAIT, Backlog, Kind, Role, Settings
from .measures import (
    Measurement,
    Metric,
    Scale,
    backlog,
    drain,
    enqueue_each,
    enqueue_many,
    idle,
    latency,
    lateness,
)

RATE = Metric("rate", "", "jobs/s", higher_is_better=True)
WAL = Metric("wal", "WAL per job", "bytes")
COMMITS = Metric("commits", "transactions per job", "")
MEMORY = Metric("memory", "peak memory of the worker", "MiB")
NO_PEERS = frozenset({Role.FLOOR, Role.OURS})


def _drain(
    name: str,
    label: str,
    *more: Metric,
    kind: Kind = "noop",
    settings: Settings | None = None,
    processes: int = 1,
    roles: frozenset[Role] = frozenset(Role),
) -> Measurement:
    run = partial(drain, name=name, kind=kind, settings=settings, processes=processes)
    metrics = tuple(
        Metric(m.key, ", ".join(filter(None, [label, m.label])), m.unit, m.higher_is_better)
        for m in (RATE, *more)
    )
    return Measurement(name, metrics, run, roles)


def _percentile_metrics(label: str) -> tuple[Metric, ...]:
    return Metric("p50", f"{label}, p50", "ms"), Metric("p99", f"{label}, p99", "ms")


def _idle_metrics(label: str) -> tuple[Metric, ...]:
    return (
        Metric("queries", f"{label}, queries", "per s"),
        Metric("cpu", f"{label}, CPU", "% of a core"),
    )


def measurements(scale: Scale) -> tuple[Measurement, ...]:
    """Return all measurements, in the order of the report."""
    million = scale.million
    base = f"drain {scale.backlog_drain:,}"
    backlogs: Mapping[str, tuple[str, Backlog, int]] = {
        "backlog-due": (f"{base} of {million:,} due", "due", million),
        "backlog-future": (f"{base} with {million:,} future jobs", "future", million),
        "backlog-archived": (
            f"{base} with {10 * million:,} archived jobs",
            "archived",
            10 * million,
        ),
    }
    return (
        Measurement(
            "enqueue",
            (
                Metric("rate", "enqueue, one per commit", "jobs/s", higher_is_better=True),
                Metric("wal", "enqueue, WAL per job", "bytes"),
                Metric("commits", "enqueue, transactions per job", ""),
            ),
            enqueue_each,
        ),
        Measurement(
            "enqueue-many",
            (
                Metric(
                    "rate",
                    f"enqueue {scale.enqueue_many:,} at once",
                    "jobs/s",
                    higher_is_better=True,
                ),
            ),
            enqueue_many,
        ),
        _drain("drain", "drain, no-op", WAL, COMMITS, MEMORY),
        _drain("drain-write", "drain, each job inserts a row", WAL, COMMITS, kind="write"),
        _drain("drain-processes", "drain, no-op, 2 processes", processes=2),
        _drain(
            "drain-threads-2",
            "drain, no-op, 2 threads",
            settings=Settings(threads=2),
            roles=NO_PEERS,
        ),
        _drain(
            "drain-threads-4",
            "drain, no-op, 4 threads",
            settings=Settings(threads=4),
            roles=NO_PEERS,
        ),
        _drain(
            "strict",
            "drain, strict (one per transaction)",
            WAL,
            COMMITS,
            settings=Settings(batch_size=1),
            roles=NO_PEERS,
        ),
        _drain(
            "strict-threads-4",
            "drain, strict, 4 threads",
            settings=Settings(batch_size=1, threads=4),
            roles=NO_PEERS,
        ),
        _drain(
            "strict-write",
            "drain, strict, each job inserts a row",
            kind="write",
            settings=Settings(batch_size=1),
            roles=NO_PEERS,
        ),
        _drain(
            "waiting",
            f"drain, each job waits {WAIT:g} s, 500 at a time",
            kind="wait",
            settings=Settings(concurrency=500),
        ),
        Measurement("latency", _percentile_metrics("commit → handler starts"), latency),
        Measurement("lateness", _percentile_metrics("scheduled job, lateness"), lateness),
        Measurement("idle", _idle_metrics("idle"), idle, repetitions=1),
        Measurement(
            "idle-threads-4",
            _idle_metrics("idle, 4 threads"),
            partial(idle, threads=4),
            roles=frozenset({Role.OURS}),
            repetitions=1,
        ),
        *(
            Measurement(
                name,
                (
                    Metric("rate", label, "jobs/s", higher_is_better=True),
                    Metric("share", f"{label}, relative to {base}", "times", higher_is_better=True),
                ),
                partial(backlog, kind=kind, n=n),
                repetitions=3,
            )
            for name, (label, kind, n) in backlogs.items()
        ),
    )

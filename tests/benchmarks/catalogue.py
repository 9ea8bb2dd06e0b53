"""The measurements by name, in the order of the report."""

from __future__ import annotations

from functools import partial

from .contender import WAIT, Backlog, Kind, Role, Settings
from .measures import (
    MILLION,
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
from .steps import STEPS, steps

RATE = Metric("rate", "", "jobs/s", higher_is_better=True)
WAL = Metric("wal", "WAL per job", "bytes")
COMMITS = Metric("commits", "transactions per job", "")
MEMORY = Metric("memory", "peak memory of the worker", "MiB")
NO_PEERS = frozenset({Role.FLOOR, Role.OURS})
EVERYBODY = NO_PEERS | {Role.PEER}
ASYNCIO = frozenset({"proletarian-asyncio"})
ENQUEUE = frozenset({"proletarian-connection", "session-add"})
BATCH_SIZES = 1, 10, 100, 500
LEASE_THREADS = 20


def _drain(
    name: str,
    label: str,
    *more: Metric,
    kind: Kind = "noop",
    settings: Settings | None = None,
    processes: int = 1,
    roles: frozenset[Role] = EVERYBODY,
    variants: frozenset[str] = frozenset(),
) -> Measurement:
    run = partial(drain, name=name, kind=kind, settings=settings, processes=processes)
    metrics = tuple(
        Metric(m.key, ", ".join(filter(None, [label, m.label])), m.unit, m.higher_is_better)
        for m in (RATE, *more)
    )
    return Measurement(name, metrics, run, roles, variants)


def _enqueue(scale: Scale) -> tuple[Measurement, ...]:
    many = f"enqueue {scale.enqueue_many:,} at once"
    return (
        Measurement(
            "enqueue",
            (
                Metric("rate", "enqueue, one per commit", "jobs/s", higher_is_better=True),
                Metric("wal", "enqueue, WAL per job", "bytes"),
                Metric("commits", "enqueue, transactions per job", ""),
            ),
            enqueue_each,
            variants=ENQUEUE,
        ),
        Measurement(
            "enqueue-many",
            (Metric("rate", many, "jobs/s", higher_is_better=True),),
            enqueue_many,
            variants=ENQUEUE,
        ),
    )


def _drains() -> tuple[Measurement, ...]:
    threads = Settings(threads=LEASE_THREADS)
    return (
        _drain("drain", "drain, no-op", WAL, COMMITS, MEMORY, variants=ASYNCIO),
        _drain(
            "drain-write",
            "drain, each job inserts a row",
            WAL,
            COMMITS,
            kind="write",
            variants=ASYNCIO,
        ),
        _drain("drain-processes", "drain, no-op, 2 processes", processes=2, variants=ASYNCIO),
        *(
            _drain(
                f"drain-threads-{n}",
                f"drain, no-op, {n} threads",
                settings=Settings(threads=n),
                roles=NO_PEERS,
            )
            for n in (2, 4)
        ),
        *(
            _drain(
                f"batch-{n}",
                f"drain, no-op, batch_size={n}",
                *([WAL, COMMITS] if n == 1 else []),
                settings=Settings(batch_size=n),
                roles=NO_PEERS,
            )
            for n in BATCH_SIZES
        ),
        _drain(
            "strict-threads-4",
            "drain, batch_size=1, 4 threads",
            settings=Settings(batch_size=1, threads=4),
            roles=NO_PEERS,
        ),
        _drain(
            "strict-write",
            "drain, batch_size=1, each job inserts a row",
            kind="write",
            settings=Settings(batch_size=1),
            roles=NO_PEERS,
        ),
        _drain(
            "lease",
            f"drain, no-op, {LEASE_THREADS} threads",
            WAL,
            COMMITS,
            settings=threads,
            roles=NO_PEERS,
            variants=frozenset({"proletarian-lease"}),
        ),
        _drain(
            "lease-write",
            f"drain, each job inserts a row, {LEASE_THREADS} threads",
            WAL,
            COMMITS,
            kind="write",
            settings=threads,
            roles=NO_PEERS,
            variants=frozenset({"proletarian-lease"}),
        ),
        _drain(
            "waiting",
            f"drain, each job waits {WAIT:g} s, 500 at a time",
            kind="wait",
            settings=Settings(concurrency=500),
            roles=frozenset({Role.PEER}),
            variants=ASYNCIO,
        ),
    )


def _steps(name: str, label: str, kind: Kind) -> Measurement:
    parts = [
        Metric(step, f"{label}: {text}", "µs", share_of="total")
        for step, text in [*((step, step) for step in STEPS), ("rest", "between the steps")]
    ]
    total = Metric("total", f"{label}: all", "µs")
    run = partial(steps, kind=kind)
    return Measurement(name, (*parts, total), run, NO_PEERS, frozenset({"proletarian-lease"}))


def _percentile_metrics(label: str) -> tuple[Metric, ...]:
    return Metric("p50", f"{label}, p50", "ms"), Metric("p99", f"{label}, p99", "ms")


def _idle_metrics(label: str) -> tuple[Metric, ...]:
    return (
        Metric("queries", f"{label}, queries", "per s"),
        Metric("cpu", f"{label}, CPU", "% of a core"),
    )


def _growth(scale: Scale, kind: Backlog, words: str, n: int) -> Measurement:
    base = f"drain {scale.backlog_drain:,}"
    label = f"{base} with {n:,} {words}"
    with_peers = n == max(size for size in scale.backlogs if size <= MILLION)
    return Measurement(
        growth_name(kind, n),
        (
            Metric("rate", label, "jobs/s", higher_is_better=True),
            Metric("share", f"{label}, relative to {base}", "times", higher_is_better=True),
        ),
        partial(backlog, kind=kind, n=n),
        EVERYBODY if with_peers else NO_PEERS,
        ASYNCIO if with_peers else frozenset(),
        repetitions=3 if n <= MILLION else 1,
    )


def growth_name(kind: Backlog, n: int) -> str:
    """Return the name of the measurement with ``n`` rows, for example ``backlog-due-10k``."""
    size = f"{n // MILLION}m" if n >= MILLION else f"{n // 1000}k"
    return f"backlog-{kind}-{size}"


GROWTH: dict[Backlog, str] = {
    "due": "other due jobs",
    "future": "future jobs",
    "archived": "archived jobs",
}


def measurements(scale: Scale) -> tuple[Measurement, ...]:
    """Return all measurements, in the order of the report."""
    return (
        *_enqueue(scale),
        *_drains(),
        _steps("steps", "one no-op job", "noop"),
        _steps("steps-write", "one job that inserts a row", "write"),
        Measurement(
            "latency", _percentile_metrics("commit → handler starts"), latency, variants=ASYNCIO
        ),
        Measurement(
            "lateness", _percentile_metrics("scheduled job, lateness"), lateness, variants=ASYNCIO
        ),
        Measurement("idle", _idle_metrics("idle"), idle, variants=ASYNCIO, repetitions=1),
        Measurement(
            "idle-threads-4",
            _idle_metrics("idle, 4 threads"),
            partial(idle, threads=4),
            roles=frozenset({Role.OURS}),
            repetitions=1,
        ),
        *(_growth(scale, kind, words, n) for kind, words in GROWTH.items() for n in scale.backlogs),
    )

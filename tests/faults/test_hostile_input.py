"""Hostile input: payloads, names, rows written by hand and error texts."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.schema import CreateSchema, DropSchema

from sqlalchemy_proletarian import (
    ArchivedJob,
    ArchivedJobMixin,
    Discard,
    Handlers,
    Job,
    JobMixin,
    JSONSerializer,
    PayloadError,
    QueueWorker,
    RunningJob,
    RunningJobMixin,
    enqueue,
    enqueue_many,
    enqueue_unique,
    manage,
)
from sqlalchemy_proletarian.lifecycle.outcomes import MAX_ERROR_LENGTH, error_text
from sqlalchemy_proletarian.producer.values import require_name
from tests.integration.kinds import Kind, only
from tests.integration.support import (
    MINUTE,
    archived,
    eventually,
    put,
    queued,
    rows,
    run_all,
    succeed,
    visible_markers,
)

SOME_KINDS = [
    Kind(),
    Kind(leased=True),
    Kind("psycopg"),
    Kind("psycopg", leased=True, coroutines=True),
    Kind("asyncpg", coroutines=True),
    Kind("asyncpg", leased=True),
]
some_kinds = only(*SOME_KINDS)
each_driver = only(SOME_KINDS[0], SOME_KINDS[3], SOME_KINDS[4])


def by_enqueue(session: Session, job_type: str, payload: Any = None, **options: Any) -> None:
    """Enqueue a job as an object."""
    enqueue(session, job_type, payload, **options)


def by_enqueue_many(session: Session, job_type: str, payload: Any = None, **options: Any) -> None:
    """Enqueue the job and a harmless one in bulk; options are keys of the rows."""
    model = options.pop("job_model", Job)
    row = {"job_type": job_type, "payload": payload, **options}
    enqueue_many(session, [row, {**row, "payload": None, "unique_key": None}], job_model=model)


def by_enqueue_unique(session: Session, job_type: str, payload: Any = None, **options: Any) -> None:
    """Enqueue a job with a unique key."""
    enqueue_unique(session, job_type, payload, **{"unique_key": "a key", **options})


ENQUEUE_FUNCTIONS = [by_enqueue, by_enqueue_many, by_enqueue_unique]
with_each_function = pytest.mark.parametrize("put_in", ENQUEUE_FUNCTIONS)


def committed(engine: Engine, kind: Kind, act: Callable[[Session], object]) -> None:
    """Call ``act`` with a session on the driver of ``kind``, and commit."""
    if kind.driver is None:
        with Session(engine) as session, session.begin():
            act(session)
        return

    async def work() -> None:
        bind = create_async_engine(engine.url.set(drivername=f"postgresql+{kind.driver}"))
        async with AsyncSession(bind) as session, session.begin():
            await session.run_sync(act)
        await bind.dispose()

    asyncio.run(work())


@contextmanager
def only_by_notify(monkeypatch: pytest.MonkeyPatch, worker: Any) -> Iterator[Any]:
    """Run a worker that learns of new jobs only from the database's NOTIFY."""
    monkeypatch.setattr("sqlalchemy_proletarian.wakeup.announce._process.ring", lambda **_: None)
    monkeypatch.setattr("sqlalchemy_proletarian.wakeup.announce.DEBOUNCE", 0)
    with worker:
        eventually(lambda: worker._core.pool.listener.active)
        yield worker


# Payloads.


def nested(levels: int) -> Any:
    """Return nested lists."""
    payload: Any = "the bottom"
    for _ in range(levels):
        payload = [payload]
    return payload


AWKWARD: list[Any] = [
    "x" * 10_000_000,
    "\0",
    ["a\0b", {"\0": "\0\0"}],
    "\ud800",
    {"\udfff": ["\udfff\ud800"]},
    "\\u0000 \\ud800",
    nested(300),
    -(10**4000),
    [5e-324, 1.7976931348623157e308, -0.0, 1.0, 1],
    {"": ["", {}, [], None, True]},
    "%s %(a)s %% :b ? $1 {c} ' \" ` ; -- /* \\",
    "😀\u2028\x7f\x1b[31m\r\n\ufeff",
]


@some_kinds
def test_awkward_payloads_come_back(engine: Engine, kind: Kind) -> None:
    """Ten megabytes, NULs, lone surrogates and other odd values reach the handler unchanged."""
    seen: dict[int, list[Any]] = {n: [] for n in range(len(AWKWARD))}
    handlers = Handlers()

    @handlers("job")
    def job(payload: Any) -> None:
        number, value = payload
        seen[number].append(value)

    def act(session: Session) -> None:
        for n, value in enumerate(AWKWARD):
            by_enqueue(session, "job", [n, value])
            if n:  # enqueue the ten megabytes only twice
                by_enqueue_unique(session, "job", [n, value], unique_key=f"payload {n}")
        enqueue_many(session, [("job", [n, value]) for n, value in enumerate(AWKWARD)])

    committed(engine, kind, act)
    kind.run_all(engine, handlers)
    with engine.connect() as connection:
        assert set(connection.scalars(select(ArchivedJob.status))) == {"success"}
    assert [len(values) for values in seen.values()] == [2] + [3] * (len(AWKWARD) - 1)
    assert all(value == AWKWARD[n] for n, values in seen.items() for value in values)


any_text = st.text(st.characters())
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | any_text
)
payloads = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.dictionaries(any_text, inner),
    max_leaves=20,
)
few_examples = settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@each_driver
@few_examples
@given(given_payloads=st.lists(payloads, max_size=8))
def test_any_payload_comes_back_or_is_refused(
    engine: Engine, kind: Kind, given_payloads: list[Any]
) -> None:
    """Any JSON value reaches the handler unchanged, or is rejected when it is enqueued."""
    taken: list[Any] = []
    seen: list[Any] = []
    handlers = Handlers()
    handlers("job")(seen.append)

    def act(session: Session) -> None:
        for payload in given_payloads:
            try:
                by_enqueue(session, "job", payload)
            except PayloadError:
                continue
            enqueue_many(session, [("job", payload)])
            taken.extend([payload, payload])

    committed(engine, kind, act)
    kind.run_all(engine, handlers)
    assert sorted(map(repr, seen)) == sorted(map(repr, taken))


def endless() -> Any:
    """Return a payload that contains itself."""
    inner: dict[str, Any] = {"a": 1}
    inner["me"] = inner
    return {"list": [inner]}


REJECTED: list[tuple[Any, str]] = [
    ({"a": [1, float("nan")]}, "payload['a'][1] is nan"),
    ([{"b": float("-inf")}], "payload[0]['b'] is -inf"),
    ([nested(5000)], "payload contains itself or is nested too deeply: payload[0][0][0]"),
    (endless(), "payload contains itself or is nested too deeply: payload['list'][0]['me']['me']"),
    ({"n": [10**5000]}, "payload['n'][0] cannot be encoded: Exceeds the limit"),
    ([{"s": "\ud83d\ude00"}], "payload[0]['s'] has text where two surrogates meet"),
    ([{"\ud83d\ude00": 1}], "payload[0]['\\ud83d\\ude00'] has text where two surrogates meet"),
    ({"raw": b"\0" * 10**6}, "payload['raw'] is a builtins.bytes"),
    ({"x" * 10**6: {1}}, f"payload['{'x' * 79}] is a builtins.set"),
    ({("x" * 10**6,): 1}, f"payload has the key ('{'x' * 78}: JSON would convert it"),
]


@with_each_function
@pytest.mark.parametrize(("payload", "message"), REJECTED, ids=[m[:50] for _, m in REJECTED])
def test_a_payload_that_cannot_be_stored_is_rejected(
    engine: Engine, put_in: Any, payload: Any, message: str
) -> None:
    """The call rejects a payload that cannot be stored, with its path; the session stays usable."""
    with Session(engine) as session, session.begin():
        enqueue(session, "before")
        with pytest.raises(PayloadError) as raised:
            put_in(session, "job", payload)
        assert str(raised.value).startswith(message)
        assert len(error_text(raised.value)) < 5000
    assert [job.job_type for job in queued(engine)] == ["before"]


@some_kinds
def test_deep_nesting(engine: Engine, kind: Kind) -> None:
    """A worker can read every nested payload that was accepted, whatever its stack depth."""
    depths: list[int] = []
    seen: list[int] = []
    handlers = Handlers()

    @handlers("job")
    def job(payload: Any) -> None:
        depth = 0
        while isinstance(payload, list):
            depth, (payload,) = depth + 1, payload
        seen.append(depth)

    with Session(engine) as session, session.begin():
        for depth in range(50, 1500, 50):
            try:
                enqueue(session, "job", nested(depth))
            except PayloadError:
                break
            depths.append(depth)
    assert 300 in depths
    kind.run_all(engine, handlers)
    assert sorted(seen) == depths


class Careless(JSONSerializer):
    """A serializer that returns a fixed result."""

    def __init__(self, made: Any) -> None:
        self.made = made

    def encode(self, payload: Any, annotation: Any = None) -> Any:  # noqa: ARG002 - overrides a method
        return self.made


@pytest.mark.parametrize(
    ("made", "error"),
    [("\0", PayloadError), ("é\0", PayloadError), ("\ud800", PayloadError), (b"x", TypeError)],
)
def test_careless_serializer(engine: Engine, made: Any, error: Any) -> None:
    """The call also rejects text from a custom serializer that cannot be stored."""
    careless: Any = {"serializer": Careless(made)}
    with Session(engine) as session, session.begin():
        with pytest.raises(error, match="the serializer"):
            enqueue(session, "job", 1, **careless)
        with pytest.raises(error, match="the serializer"):
            enqueue_many(session, [("job", 1)], **careless)
        with pytest.raises(error, match="the serializer"):
            enqueue_unique(session, "job", 1, unique_key="a key", **careless)
    assert queued(engine) == []


# Names.

ODD_NAMES = [
    "'",
    '"; DROP TABLE proletarian.job; --',
    "100%s %(name)s %%",
    "two\nlines\r\n",
    "back\\slash\\",
    ":bind $1 {} ?",
    " ",
    "😀" * 255,
    "\u2028\x01\x7f",
    "NULL",
]


@some_kinds
def test_odd_names(engine: Engine, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queues, job types and keys may be odd text: jobs are announced, claimed and archived."""
    handlers = Handlers()
    seen: Counter[str] = Counter()
    for name in ODD_NAMES:
        handlers(name, queue=name)(lambda payload, name=name: seen.update([name]))
    worker = kind.worker(engine, handlers, queues=ODD_NAMES, polling_interval=10 * MINUTE)
    with only_by_notify(monkeypatch, worker):
        for name in ODD_NAMES:
            committed(engine, kind, partial(by_enqueue, job_type=name, queue=name))
        eventually(lambda: len(archived(engine)) == len(ODD_NAMES))

        def act(session: Session) -> None:
            for name in ODD_NAMES:
                by_enqueue_unique(session, name, queue=name, unique_key=name)
                enqueue_many(session, [(name, None)], queue=name)

        committed(engine, kind, act)
        eventually(lambda: len(archived(engine)) == 3 * len(ODD_NAMES))
    assert seen == Counter(dict.fromkeys(ODD_NAMES, 3))
    done = archived(engine)
    assert all(job.status == "success" and job.queue == job.job_type for job in done)
    assert {job.unique_key for job in done} == {None, *ODD_NAMES}


@few_examples
@given(name=st.text(st.characters(), max_size=300))
def test_any_name_works_or_is_rejected(engine: Engine, name: str) -> None:
    """A worker can serve a name if and only if ``enqueue`` accepts it."""
    rejected = pytest.raises(ValueError, match="1 to 255 characters, no NUL and no lone surrogate")
    try:
        put(engine, name, queue=name, unique_key=name)
    except ValueError:
        with rejected:
            require_name("name", name)
        with rejected:
            run_all(engine, succeed, queues=name)
    else:
        assert run_all(engine, succeed, queues=name) == 1


@pytest.mark.parametrize(
    "name",
    ["", "x" * 256, "x" * 10_000, "a\0b", "é\0", "\ud800", 7, b"x"],
    ids=lambda n: repr(n)[:9],
)
@with_each_function
def test_rejected_names(engine: Engine, put_in: Any, name: Any) -> None:
    """A name that is empty, too long or cannot be stored is rejected; the error says which name."""
    with Session(engine) as session, session.begin():
        for argument in ("job_type", "queue", "unique_key"):
            names = {"job_type": "job"} | {argument: name}
            with pytest.raises((TypeError, ValueError), match=f"{argument} must") as raised:
                put_in(session, **names)
            assert len(str(raised.value)) < 300
    assert queued(engine) == []
    for register in (
        lambda: Handlers()(name),
        lambda: Handlers()("job", queue=name),
        lambda: QueueWorker(engine, succeed, queues=[name]),
    ):
        with pytest.raises((TypeError, ValueError)):
            register()


@some_kinds
def test_odd_worker_name(engine: Engine, kind: Kind) -> None:
    """The marker of a worker with an odd name matches the server's ``application_name``."""
    seen: list[Any] = []

    def look(_job_type: str, _payload: Any) -> None:
        with engine.connect() as connection:
            marker = connection.scalar(select(RunningJob.worker))
            known = text("SELECT count(*) FROM pg_stat_activity WHERE application_name = :name")
            seen.append(connection.scalar(known, {"name": marker}))

    put(engine, "job")
    put(engine, "job")
    name = "wörker\n😀 %s '\"\\" * 20
    assert kind.run_all(engine, look, name=name) == 2
    assert min(seen) > 0
    assert {job.status for job in archived(engine)} == {"success"}


ODD_TABLES = [
    ("od\"d %s' tåble; -- \\", "od\"d %(s)s'.schema"),
    ("t" * 63, "s" * 63),
]


@pytest.fixture(params=ODD_TABLES, ids=["odd", "long"])
def odd_models(request: pytest.FixtureRequest, engine: Engine) -> Iterator[tuple[Any, Any, Any]]:
    """Yield job models whose tables have names that need quoting or have the maximal length."""
    name, schema = request.param

    class Own(DeclarativeBase):
        pass

    table_args = {"__table_args__": {"schema": schema}}
    models = tuple(
        type(mixin.__name__, (mixin, Own), {"__tablename__": letter + name[1:], **table_args})
        for mixin, letter in ((JobMixin, "j"), (ArchivedJobMixin, "a"), (RunningJobMixin, "r"))
    )
    with engine.begin() as connection:
        connection.execute(CreateSchema(schema))
        Own.metadata.create_all(connection)
    yield models
    with engine.begin() as connection:
        connection.execute(DropSchema(schema, cascade=True))


@some_kinds
def test_odd_tables(
    engine: Engine,
    kind: Kind,
    odd_models: tuple[type[JobMixin], Any, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tables may have odd names: jobs are announced, marked, run, cancelled and archived."""
    job_model, archived_model, running_model = odd_models
    marked: list[int] = []

    def handler(_job_type: str, _payload: Any) -> None:
        marked.append(len(visible_markers(engine, running_model)))

    worker = kind.worker(
        engine,
        handler,
        job_model=job_model,
        archived_job_model=archived_model,
        running_job_model=running_model,
        polling_interval=10 * MINUTE,
    )
    models: Any = {"job_model": job_model, "archived_job_model": archived_model}
    with only_by_notify(monkeypatch, worker):
        later = put(engine, "later", process_in=MINUTE, job_model=job_model)
        with Session(engine) as session, session.begin():
            assert manage.cancel(session, later, **models) == "cancelled"
        for put_in in ENQUEUE_FUNCTIONS:
            committed(engine, kind, partial(put_in, job_type="job", job_model=job_model))
            eventually(lambda: not queued(engine, job_model))
    assert marked == [1] * 4
    statuses = Counter(job.status for job in archived(engine, archived_model))
    assert statuses == {"success": 4, "cancelled": 1}
    assert rows(engine, running_model) == []


# Rows written by hand.


def by_hand(engine: Engine, *jobs: dict[str, Any]) -> None:
    """Insert rows with values that ``enqueue`` would reject; times are SQL expressions."""
    with engine.begin() as connection:
        for job in jobs:
            row = {
                "queue": "default",
                "job_type": "plain",
                "payload": "null",
                "attempts": 0,
                "enqueued_at": func.now(),
                "process_at": func.now(),
                **job,
            }
            connection.execute(insert(Job).values(job_id=func.gen_random_uuid(), **row))


@dataclass
class Mail:
    """A typed payload."""

    to: str


UNREADABLE = {
    "": "is not JSON",
    "{": "is not JSON",
    "[" * 100_000: "is not JSON",
    "9" * 10_000: "is not JSON",
    '"' + "x" * 1_000_000: "is not JSON",
    "\x1b[31m\x07": "is not JSON",
    '{"to": 1}': "does not fit",
    "[" * 400 + "]" * 400: "does not fit",
}


def readers() -> tuple[Handlers, list[Any]]:
    """Return handlers of "plain" and "mail", and the list of payloads that they receive."""
    handlers = Handlers()
    seen: list[Any] = []
    handlers("plain")(seen.append)

    @handlers("mail")
    def mail(payload: Mail) -> None:
        seen.append(payload)

    return handlers, seen


@some_kinds
def test_unreadable_payloads(engine: Engine, kind: Kind) -> None:
    """A job whose payload cannot be read fails with the reason; other jobs do not fail."""
    handlers, seen = readers()
    by_hand(engine, {"payload": "1"})
    by_hand(engine, *({"job_type": "mail", "payload": payload} for payload in UNREADABLE))
    by_hand(engine, {"job_type": "mail", "payload": '{"to": "a"}'}, {"payload": "2"})
    kind.run_all(engine, handlers, threads=2)
    assert sorted(map(repr, seen)) == ["1", "2", repr(Mail("a"))]
    failed = {job.payload: job for job in archived(engine) if job.status == "failure"}
    assert failed.keys() == UNREADABLE.keys()
    for payload, job in failed.items():
        assert "PayloadError" in job.error
        assert UNREADABLE[payload] in job.error
        assert len(job.error) < 10_000
        assert job.attempts == 1


YEAR_4713_BC = text("'4713-01-01 BC'")


@some_kinds
def test_infinite_times(engine: Engine, kind: Kind) -> None:
    """A job at ``-infinity`` or in a year BC is due; a job at ``infinity`` waits forever."""
    handlers, seen = readers()
    early, never = text("'-infinity'"), text("'infinity'")
    by_hand(
        engine,
        {"process_at": never, "payload": '"never"'},
        {"process_at": early, "enqueued_at": early, "payload": '"early"'},
        {
            "process_at": YEAR_4713_BC,
            "enqueued_at": YEAR_4713_BC,
            "payload": '"antique"',
        },
        {"payload": '"today"'},
    )
    assert kind.run_all(engine, handlers) == 3
    assert sorted(seen) == ["antique", "early", "today"]
    with engine.connect() as connection:
        left = connection.scalars(select(Job.payload)).all()
        statuses = connection.scalars(select(ArchivedJob.status)).all()
    assert left == ['"never"']
    assert statuses == ["success"] * 3


@some_kinds
def test_rows_that_cannot_be_loaded(engine: Engine, kind: Kind) -> None:
    """A row that Python cannot load fails if its handler takes the job; other jobs run."""
    handlers = Handlers()
    seen: list[Any] = []

    @handlers("plain")
    def plain(payload: Any, job: Job) -> None:
        seen.append(payload)

    by_hand(
        engine,
        {"payload": "1"},
        {"enqueued_at": YEAR_4713_BC, "payload": "2"},
        {"payload": "3"},
    )
    assert kind.run_all(engine, handlers) == 3
    assert sorted(seen) == [1, 3]
    with engine.connect() as connection:
        done = connection.execute(select(ArchivedJob.payload, ArchivedJob.status)).all()
        error = connection.scalar(select(ArchivedJob.error).where(ArchivedJob.payload == "2"))
    assert dict(done) == {"1": "success", "2": "failure", "3": "success"}
    assert error


@some_kinds
def test_numbers_out_of_range(engine: Engine, kind: Kind) -> None:
    """Rows with priorities and attempts out of range do not prevent other jobs from running."""
    handlers, seen = readers()
    by_hand(
        engine,
        {"attempts": 2**31 - 1, "payload": '"many"'},
        {"attempts": -5, "payload": '"few"'},
        {"priority": -1, "payload": '"first"'},
        {"priority": 32_767, "payload": '"last"'},
        {"payload": '"good"', "priority": 9},
    )
    kind.run_all(engine, handlers)
    assert {"good", "few"} <= set(seen)


# Texts of errors.

TEXTS = {
    "nul": "a\0b",
    "surrogate": "a\ud800b",
    "both": "\0\ud800" * 20_000,
    "format": "%s %(a)s {} $1 \\",
    "long": "x" * 100_000,
}


@some_kinds
def test_awkward_error_texts(engine: Engine, kind: Kind) -> None:
    """A job is settled whatever its error's text is; the text is stored as far as possible."""
    handlers = Handlers()

    @handlers("fails")
    def fails(payload: str) -> None:
        raise ValueError(TEXTS[payload])

    @handlers("again", retry={"retries": 1, "delays": [60_000]})
    def again(payload: str) -> None:
        raise ValueError(TEXTS[payload])

    @handlers("discards")
    def discards(payload: str) -> None:
        raise Discard(TEXTS[payload])

    @handlers("huge")
    def huge(payload: None) -> None:
        raise ValueError("x" * 10_000_000)

    handlers("good")(lambda payload: None)
    with Session(engine) as session, session.begin():
        for job_type in ("fails", "again", "discards", "good"):
            enqueue_many(session, [(job_type, name) for name in TEXTS])
        enqueue(session, "huge")
    kind.run_all(engine, handlers)
    done = {(job.job_type, job.payload[1:-1]): job for job in archived(engine) + queued(engine)}
    assert len(done.pop(("huge", "ul")).error) == MAX_ERROR_LENGTH + 1
    assert len(done) == 4 * len(TEXTS)
    for (job_type, name), job in done.items():
        if job_type == "good":
            assert job.error is None
        else:
            assert len(job.error) <= MAX_ERROR_LENGTH + 1
            assert TEXTS[name][-5:].replace("\0", "␀").replace("\ud800", "?") in job.error
    assert [job.attempts for job in queued(engine)] == [1] * len(TEXTS)


def test_awkward_reason_of_a_cancellation(engine: Engine) -> None:
    """A job is cancelled whatever the reason's text is; the text is stored as far as possible."""
    for reason in (*TEXTS.values(), "x" * 10_000_000):
        job_id = put(engine, "job", process_in=MINUTE)
        with Session(engine) as session, session.begin():
            assert manage.cancel(session, job_id, reason=reason) == "cancelled"
            job = session.get_one(ArchivedJob, job_id)
            assert job.error is not None
            assert 0 < len(job.error) <= MAX_ERROR_LENGTH + 1
            session.delete(job)

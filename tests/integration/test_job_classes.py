"""A mapped class for each type of job: added to a session, handed to its handler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import pytest
from sqlalchemy import Engine, delete, event, insert, select, text
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateTable

from sqlalchemy_proletarian import (
    Handlers,
    Job,
    RetryStrategy,
    SchemaMismatchError,
    manage,
    process_next_job,
    utcnow,
)

from .kinds import Kind, leases, only, transactions
from .loops import drained, in_a_loop
from .orders import (
    ORDERS,
    ArchivedShopJob,
    Order,
    PackParcel,
    PlainArchive,
    RunningShopJob,
    SendInvoice,
    ShopJob,
    add,
    invoicing,
    only_order,
)
from .support import (
    Customer,
    Log,
    ManualClock,
    archived,
    eventually,
    only_archived,
    only_queued,
    put,
    queued,
    rows,
)

with_threads_and_in_a_loop = only(Kind(), Kind("asyncpg", leased=True))


# The handler gets the object.


def test_handler_gets_the_object_and_its_relationships(shop: Engine, kind: Kind) -> None:
    """Without a session in its signature: relationships load, and changes commit with the job."""
    add(shop, SendInvoice(order=Order(customer=Customer(name="Ann"))))
    assert kind.run_all(shop, invoicing(), **ORDERS) == 1
    order = only_order(shop)
    job = only_archived(shop, ArchivedShopJob)
    assert order.invoiced == 1
    assert (job.status, job.job_type, job.attempts) == ("success", "send-invoice", 1)
    assert (job.order_id, job.note) == (order.id, "for Ann")


def test_a_table_of_its_own(shop: Engine, kind: Kind) -> None:
    """The columns of a joined table come with the object, go to the archive, and leave no row."""
    handlers = Handlers()
    seen: list[Any] = []

    @handlers(PackParcel)
    def pack(job: PackParcel, session: Session) -> None:
        assert session.get(PackParcel, job.job_id) is job
        seen.append((job.weight, job.parcel_order.id, job.attempts))
        job.weight += 1

    add(shop, PackParcel(parcel_order=Order(), weight=7), SendInvoice(order=Order()))
    assert kind.run_all(shop, handlers, **ORDERS) == 1  # nobody knows how to send invoices
    assert [(weight, attempts) for weight, _, attempts in seen] == [(7, 1)]
    assert only_archived(shop, ArchivedShopJob).weight == 8
    assert rows(shop, PackParcel) == []
    assert only_queued(shop, SendInvoice).process_at <= utcnow()


def test_a_batch_of_classes(shop: Engine, kind: Kind) -> None:
    """Jobs of several classes share a transaction; one that fails undoes its own work alone."""
    handlers = invoicing()

    @handlers(PackParcel)
    def pack(job: PackParcel, session: Session) -> None:
        job.parcel_order.invoiced = 100
        session.flush()
        if job.weight == 2:
            raise ValueError("too heavy")

    with Session(shop) as session, session.begin():
        for n in range(4):
            order = Order()
            session.add_all(
                [
                    SendInvoice(order=order),
                    PackParcel(parcel_order=order, weight=n, queue="default"),
                ]
            )
    assert kind.run_batch(shop, handlers, **ORDERS) == 8
    ended = archived(shop, ArchivedShopJob)
    assert sorted(job.weight for job in ended if job.status == "success" and job.weight) == [1, 3]
    assert [job.weight for job in ended if job.status == "failure"] == [2]
    assert len(ended) == 8


def test_retries(shop: Engine, kind: Kind, clock: ManualClock) -> None:
    """Retry functions and ``on_failed`` get the object; a job keeps its columns until the end."""
    handlers = Handlers()
    told: list[Any] = []

    @handlers(PackParcel)
    def pack(job: PackParcel) -> None:
        raise ValueError("no")

    @handlers.retry_strategy(PackParcel)
    def again(job: PackParcel, exception: Exception) -> RetryStrategy:
        told.append((type(job), job.weight, job.attempts))
        return RetryStrategy(retries=1)

    add(shop, PackParcel(parcel_order=Order(), weight=3, process_at=clock.now))
    options: Any = {"clock": clock, "on_failed": lambda job, error: told.append(job.weight)}
    kind.run_all(shop, handlers, **ORDERS, **options)
    assert told == [(PackParcel, 3, 1), (PackParcel, 3, 2), 3]
    job = only_archived(shop, ArchivedShopJob)
    assert (job.status, job.attempts, job.weight) == ("failure", 2, 3)


@in_a_loop
async def test_coroutines(shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]) -> None:
    """In a coroutine relationships are awaited, or there at once where they load eagerly."""
    handlers = Handlers()
    seen: list[Any] = []

    @handlers(SendInvoice)
    async def send_invoice(job: SendInvoice, session: AsyncSession) -> None:
        order = await job.awaitable_attrs.order
        order.invoiced += 1
        seen.append(await session.scalar(select(Order.id).limit(1)))

    @handlers(PackParcel)
    async def pack(job: PackParcel) -> None:
        job.parcel_order.invoiced += 10

    async with AsyncSession(loop_engine) as session, session.begin():
        first, second = Order(), Order()
        session.add_all([SendInvoice(order=first), PackParcel(parcel_order=second, weight=1)])
    assert await drained(loop_engine, handlers, **ORDERS, **held) == 2
    assert sorted(order.invoiced for order in rows(shop, Order)) == [1, 10]
    assert len(seen) == 1


def test_process_next_job(shop: Engine) -> None:
    """In a test of yours, jobs of a class run in the session's transaction."""
    with shop.connect() as connection, connection.begin() as transaction:
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            order = Order()
            session.add(SendInvoice(order=order))
            session.commit()
            options = {name: ORDERS[name] for name in ("job_model", "archived_job_model")}
            assert process_next_job(session, invoicing(), **options) is True
            session.refresh(order)
            assert order.invoiced == 1
        transaction.rollback()
    assert rows(shop, Order) == []


def test_cancelling(shop: Engine) -> None:
    """A job that is cancelled takes the columns of its own table to the archive."""
    (job_id,) = add(shop, PackParcel(parcel_order=Order(), weight=4))
    models: Any = {"job_model": ShopJob, "archived_job_model": ArchivedShopJob}
    with Session(shop) as session, session.begin():
        assert manage.cancel(session, job_id, **models) == "cancelled"
    job = only_archived(shop, ArchivedShopJob)
    assert (job.status, job.weight) == ("cancelled", 4)
    assert rows(shop, PackParcel) == []


# What a handler does not know, or cannot be handed.


@with_threads_and_in_a_loop
def test_unknown_classes_wait(shop: Engine, kind: Kind) -> None:
    """A row whose type has no class here waits, like any type that nobody registered."""
    row = {"job_type": "of another release", "payload": "null"}
    with shop.begin() as connection:
        connection.execute(insert(ShopJob.__table__), row)
    add(shop, SendInvoice(order=Order()))
    log = Log()
    kind.run_all(shop, invoicing(), log=log, **ORDERS)
    assert only_archived(shop, ArchivedShopJob).status == "success"
    assert log.events().count("job-type-unknown") == 1
    with shop.connect() as connection:
        (due,) = connection.scalars(select(ShopJob.__table__.c.process_at))
    assert due <= utcnow()


@with_threads_and_in_a_loop
def test_a_class_of_another_table_is_none_of_this_one(shop: Engine, kind: Kind) -> None:
    """One registry may serve two queues; a row of the wrong one is of an unknown type there."""
    handlers = invoicing()

    @handlers("mail")
    def mail(payload: Any) -> None: ...

    put(shop, "mail")
    put(shop, "send-invoice")
    add(shop, SendInvoice(order=Order()))
    assert kind.run_all(shop, handlers, **ORDERS) == 1
    assert kind.run_all(shop, handlers) == 1
    assert only_archived(shop).job_type == "mail"
    assert only_queued(shop, Job).process_at <= utcnow()


def test_a_row_without_its_other_half(shop: Engine, kind: Kind) -> None:
    """A row written by hand, without that of its own table, fails its own job and no other."""
    row = {"job_type": "pack-parcel", "payload": "null"}
    with shop.begin() as connection:
        connection.execute(insert(ShopJob.__table__), row)
    add(shop, SendInvoice(order=Order()))
    handlers = invoicing()

    @handlers(PackParcel)
    def pack(job: PackParcel) -> None: ...

    kind.run_batch(shop, handlers, **ORDERS)
    ended = {job.job_type: job for job in archived(shop, ArchivedShopJob)}
    assert ended["send-invoice"].status == "success"
    assert ended["pack-parcel"].status == "failure"
    assert "the job is no complete PackParcel" in (ended["pack-parcel"].error or "")


def test_a_type_without_class_fails_alone(shop: Engine, kind: Kind) -> None:
    """A handler that asks for the object of a row that can be none fails with the reason."""
    row = {"job_type": "bill", "payload": "null"}
    with shop.begin() as connection:
        connection.execute(insert(ShopJob.__table__), row)
    add(shop, SendInvoice(order=Order()))
    handlers = invoicing()

    @handlers("bill")
    def bill(payload: Any, job: ShopJob) -> None: ...

    kind.run_batch(shop, handlers, **ORDERS)
    ended = {job.job_type: job for job in archived(shop, ArchivedShopJob)}
    assert (ended["send-invoice"].status, ended["bill"].status) == ("success", "failure")
    assert "No such polymorphic_identity 'bill'" in (ended["bill"].error or "")


@contextmanager
def not_cascading(engine: Engine) -> Iterator[None]:
    """Let rows of parcels' own table stay when their jobs go."""
    table = sa_inspect(PackParcel).local_table
    ddl = str(CreateTable(table).compile(engine))
    with engine.begin() as connection:
        table.drop(connection)
        connection.exec_driver_sql(ddl.replace(" ON DELETE CASCADE", ""))
    yield
    with engine.begin() as connection:
        table.drop(connection)
        table.create(connection)


@with_threads_and_in_a_loop
def test_a_database_that_does_not_cascade(shop: Engine, kind: Kind) -> None:
    """A worker says at its start that the database would not let it archive jobs of a class."""
    refused = pytest.raises(SchemaMismatchError, match=r"pack_parcel\.job_id is a foreign key with")
    with not_cascading(shop), refused:
        kind.run_all(shop, invoicing(), **ORDERS)
    assert kind.run_all(shop, invoicing(), **ORDERS) == 0


def test_cascades_are_looked_at_once(shop: Engine) -> None:
    """A worker asks the database once, and not at each of its connections."""
    asked: list[str] = []
    worker = Kind().worker(shop, invoicing(), **ORDERS)

    def count(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        asked.extend(["asked"] if "pg_constraint" in statement else [])

    event.listen(shop, "before_cursor_execute", count)
    assert worker.drain() == 0
    once = len(asked)
    assert once > 0
    assert worker.drain() == 0
    assert len(asked) == once


# A job belongs to its order.


def test_a_job_that_waits_goes_with_its_order(shop: Engine, kind: Kind) -> None:
    """ON DELETE CASCADE takes the jobs along that wait; SET NULL keeps the archive."""
    add(shop, SendInvoice(order=Order()))
    kind.run_all(shop, invoicing(), **ORDERS)
    with Session(shop) as session, session.begin():
        session.add(SendInvoice(order=session.scalars(select(Order)).one()))
    with Session(shop) as session, session.begin():
        session.delete(session.scalars(select(Order)).one())
    assert kind.run_all(shop, invoicing(), **ORDERS) == 0
    assert queued(shop, SendInvoice) == []
    assert only_archived(shop, ArchivedShopJob).order_id is None


class Running:
    """A handler that is running, and waits until it may go on."""

    def __init__(self) -> None:
        self.handlers = Handlers()
        self.begun, self.go_on = Event(), Event()

        @self.handlers(SendInvoice, retry=RetryStrategy(retries=3))
        def send_invoice(job: SendInvoice, session: Session) -> None:
            session.add(Customer(name="sent"))
            self.begun.set()
            assert self.go_on.wait(30)


def sent(engine: Engine) -> list[str]:
    """Return what that handler has written."""
    return [customer.name for customer in rows(engine, Customer)]


def delete_orders(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(delete(Order))


def waits_for_a_lock(engine: Engine) -> bool:
    """Tell whether somebody waits for a lock in the test's database."""
    waiting = "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
    if engine.dialect.name == "postgresql":
        waiting = (
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
    with engine.connect() as connection:
        return bool(connection.scalar(text(waiting)))


def order_deleted_meanwhile(engine: Engine, kind: Kind, **options: Any) -> Any:
    """Have a job's order deleted while it runs in a transaction; return what became of that."""
    add(engine, SendInvoice(order=Order()))
    running = Running()
    outcome: list[Any] = []

    def delete_order() -> None:
        try:
            delete_orders(engine)
        except OperationalError as error:
            outcome.append(error)
        else:
            outcome.append("deleted")

    deleting = Thread(target=delete_order)
    with kind.worker(engine, running.handlers, **{**ORDERS, **options}):
        try:
            assert running.begun.wait(30)
            deleting.start()
            eventually(lambda: waits_for_a_lock(engine))
            assert outcome == []
        finally:
            running.go_on.set()
        deleting.join(30)
        eventually(lambda: queued(engine, ShopJob) == [])
    (deleted,) = outcome
    return deleted


@transactions
def test_an_order_is_deleted_after_its_job(shop: Engine, kind: Kind) -> None:
    """Who deletes the order of a job in a worker's transaction waits until the job has ended."""
    assert order_deleted_meanwhile(shop, kind, archived_job_model=PlainArchive) == "deleted"
    assert only_archived(shop, PlainArchive).status == "success"
    assert sent(shop) == ["sent"]


@transactions
def test_an_order_that_is_deleted_and_needed(shop: Engine, kind: Kind) -> None:
    """Where the archive refers to it, one of the two is undone, and the other takes effect."""
    outcome = order_deleted_meanwhile(shop, kind)
    if outcome == "deleted":
        assert archived(shop, ArchivedShopJob) == sent(shop) == rows(shop, Order) == []
    else:
        assert "deadlock" in str(outcome).lower()
        assert only_archived(shop, ArchivedShopJob).order_id == only_order(shop).id
        assert sent(shop) == ["sent"]


@leases
def test_a_leased_job_goes_with_its_order(shop: Engine, kind: Kind) -> None:
    """Whose order is deleted while it runs has lost its lease: what it wrote is undone."""
    add(shop, SendInvoice(order=Order()))
    running = Running()
    log = Log()
    with kind.worker(shop, running.handlers, log=log, **ORDERS):
        try:
            assert running.begun.wait(30)
            delete_orders(shop)
        finally:
            running.go_on.set()
        eventually(lambda: "lease-lost" in log.events())
    assert archived(shop, ArchivedShopJob) == queued(shop, ShopJob) == []
    assert sent(shop) == []
    assert rows(shop, RunningShopJob) == []

"""One mapped class for each job type: handlers receive instances of it."""

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


# Handlers receive the object.


def test_a_handler_receives_the_object_and_its_relationships(shop: Engine, kind: Kind) -> None:
    """Without a session parameter, relationships still load and changes commit with the job."""
    add(shop, SendInvoice(order=Order(customer=Customer(name="Ann"))))
    assert kind.run_all(shop, invoicing(), **ORDERS) == 1
    order = only_order(shop)
    job = only_archived(shop, ArchivedShopJob)
    assert order.invoiced == 1
    assert (job.status, job.job_type, job.attempts) == ("success", "send-invoice", 1)
    assert (job.order_id, job.note) == (order.id, "for Ann")


def test_a_class_with_its_own_table(shop: Engine, kind: Kind) -> None:
    """The columns of a joined table are loaded, archived, and their row is deleted."""
    handlers = Handlers()
    seen: list[Any] = []

    @handlers(PackParcel)
    def pack(job: PackParcel, session: Session) -> None:
        assert session.get(PackParcel, job.job_id) is job
        seen.append((job.weight, job.parcel_order.id, job.attempts))
        job.weight += 1

    add(shop, PackParcel(parcel_order=Order(), weight=7), SendInvoice(order=Order()))
    assert kind.run_all(shop, handlers, **ORDERS) == 1  # no handler is registered for invoices
    assert [(weight, attempts) for weight, _, attempts in seen] == [(7, 1)]
    assert only_archived(shop, ArchivedShopJob).weight == 8
    assert rows(shop, PackParcel) == []
    assert only_queued(shop, SendInvoice).process_at <= utcnow()


def test_jobs_of_several_classes_share_a_transaction(shop: Engine, kind: Kind) -> None:
    """Jobs of several classes share a transaction; a failed job rolls back only its own work."""
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


def test_retry_functions_and_on_failed_receive_the_object(
    shop: Engine, kind: Kind, clock: ManualClock
) -> None:
    """A retried job keeps the values of its columns until it is archived."""
    handlers = Handlers()
    received: list[Any] = []

    @handlers(PackParcel)
    def pack(job: PackParcel) -> None:
        raise ValueError("no")

    @handlers.retry_strategy(PackParcel)
    def again(job: PackParcel, exception: Exception) -> RetryStrategy:
        received.append((type(job), job.weight, job.attempts))
        return RetryStrategy(retries=1)

    add(shop, PackParcel(parcel_order=Order(), weight=3, process_at=clock.now))
    options: Any = {"clock": clock, "on_failed": lambda job, error: received.append(job.weight)}
    kind.run_all(shop, handlers, **ORDERS, **options)
    assert received == [(PackParcel, 3, 1), (PackParcel, 3, 2), 3]
    job = only_archived(shop, ArchivedShopJob)
    assert (job.status, job.attempts, job.weight) == ("failure", 2, 3)


@in_a_loop
async def test_coroutines_load_relationships(
    shop: Engine, loop_engine: AsyncEngine, held: dict[str, Any]
) -> None:
    """A coroutine awaits lazy relationships and uses eagerly loaded ones directly."""
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


def test_process_next_job_runs_jobs_of_a_class(shop: Engine) -> None:
    """``process_next_job`` runs jobs of a class in the transaction of the session."""
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


def test_a_cancelled_job_archives_the_columns_of_its_own_table(shop: Engine) -> None:
    (job_id,) = add(shop, PackParcel(parcel_order=Order(), weight=4))
    models: Any = {"job_model": ShopJob, "archived_job_model": ArchivedShopJob}
    with Session(shop) as session, session.begin():
        assert manage.cancel(session, job_id, **models) == "cancelled"
    job = only_archived(shop, ArchivedShopJob)
    assert (job.status, job.weight) == ("cancelled", 4)
    assert rows(shop, PackParcel) == []


# Unknown types, and rows that cannot be loaded as objects.


@with_threads_and_in_a_loop
def test_a_type_without_a_class_waits(shop: Engine, kind: Kind) -> None:
    """A row whose type has no class waits, like any type without a handler."""
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
def test_a_class_of_another_queue_table_is_an_unknown_type(shop: Engine, kind: Kind) -> None:
    """One registry can serve two queue tables; a row in the wrong table has an unknown type."""
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


def test_a_row_without_its_joined_row_fails(shop: Engine, kind: Kind) -> None:
    """A row without its row in the joined table fails; other jobs are not affected."""
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


def test_a_handler_for_the_object_of_a_type_without_class_fails(shop: Engine, kind: Kind) -> None:
    """The job fails with the reason; other jobs are not affected."""
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
    """Recreate the parcels table without ON DELETE CASCADE."""
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
def test_a_worker_rejects_a_foreign_key_without_cascade(shop: Engine, kind: Kind) -> None:
    """The worker fails at startup, because it could not archive jobs of the class."""
    error = pytest.raises(SchemaMismatchError, match=r"pack_parcel\.job_id is a foreign key with")
    with not_cascading(shop), error:
        kind.run_all(shop, invoicing(), **ORDERS)
    assert kind.run_all(shop, invoicing(), **ORDERS) == 0


def test_foreign_keys_are_checked_once(shop: Engine) -> None:
    """A worker queries the foreign keys once, not on each run."""
    queries: list[str] = []
    worker = Kind().worker(shop, invoicing(), **ORDERS)

    def count(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        queries.extend(["query"] if "pg_constraint" in statement else [])

    event.listen(shop, "before_cursor_execute", count)
    assert worker.drain() == 0
    first_count = len(queries)
    assert first_count > 0
    assert worker.drain() == 0
    assert len(queries) == first_count


# A job belongs to its order.


def test_deleting_an_order_deletes_its_queued_jobs(shop: Engine, kind: Kind) -> None:
    """ON DELETE CASCADE deletes queued jobs; SET NULL keeps the archived ones."""
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
    """Handlers that block until the test lets them continue."""

    def __init__(self) -> None:
        self.handlers = Handlers()
        self.started, self.go_on = Event(), Event()

        @self.handlers(SendInvoice, retry=RetryStrategy(retries=3))
        def send_invoice(job: SendInvoice, session: Session) -> None:
            session.add(Customer(name="sent"))
            self.started.set()
            assert self.go_on.wait(30)


def sent(engine: Engine) -> list[str]:
    """Return the names that the handler has written."""
    return [customer.name for customer in rows(engine, Customer)]


def delete_all_orders(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(delete(Order))


def waits_for_a_lock(engine: Engine) -> bool:
    """Return whether a connection waits for a lock in the test database."""
    waiting = "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
    if engine.dialect.name == "postgresql":
        waiting = (
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
    with engine.connect() as connection:
        return bool(connection.scalar(text(waiting)))


def delete_order_of_running_job(engine: Engine, kind: Kind, **options: Any) -> Any:
    """Delete a job's order while the job runs in a transaction; return "deleted" or the error."""
    add(engine, SendInvoice(order=Order()))
    running = Running()
    outcome: list[Any] = []

    def delete_order() -> None:
        try:
            delete_all_orders(engine)
        except OperationalError as error:
            outcome.append(error)
        else:
            outcome.append("deleted")

    deleting = Thread(target=delete_order)
    with kind.worker(engine, running.handlers, **{**ORDERS, **options}):
        try:
            assert running.started.wait(30)
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
def test_deleting_an_order_waits_for_its_running_job(shop: Engine, kind: Kind) -> None:
    """The DELETE waits until the worker's transaction has ended."""
    assert delete_order_of_running_job(shop, kind, archived_job_model=PlainArchive) == "deleted"
    assert only_archived(shop, PlainArchive).status == "success"
    assert sent(shop) == ["sent"]


@transactions
def test_deleting_an_order_that_the_archive_references(shop: Engine, kind: Kind) -> None:
    """If the archive references the order, either the DELETE or the job is rolled back."""
    outcome = delete_order_of_running_job(shop, kind)
    if outcome == "deleted":
        assert archived(shop, ArchivedShopJob) == sent(shop) == rows(shop, Order) == []
    else:
        assert "deadlock" in str(outcome).lower()
        assert only_archived(shop, ArchivedShopJob).order_id == only_order(shop).id
        assert sent(shop) == ["sent"]


@leases
def test_deleting_an_order_ends_the_lease_of_its_job(shop: Engine, kind: Kind) -> None:
    """A job whose order is deleted while it runs loses its lease; its writes are rolled back."""
    add(shop, SendInvoice(order=Order()))
    running = Running()
    log = Log()
    with kind.worker(shop, running.handlers, log=log, **ORDERS):
        try:
            assert running.started.wait(30)
            delete_all_orders(shop)
        finally:
            running.go_on.set()
        eventually(lambda: "lease-lost" in log.events())
    assert archived(shop, ArchivedShopJob) == queued(shop, ShopJob) == []
    assert sent(shop) == []
    assert rows(shop, RunningShopJob) == []

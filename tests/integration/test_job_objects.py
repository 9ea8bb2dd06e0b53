"""Jobs that are objects of a class of their own: adding one to a session enqueues it."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import URL, Engine, insert
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    Handlers,
    enqueue,
    enqueue_many,
    enqueue_unique,
    utcnow,
)

from .kinds import Kind
from .orders import (
    ORDERS,
    ArchivedShopJob,
    Order,
    PackParcel,
    SendInvoice,
    ShopJob,
    add,
    invoicing,
    only_order,
)
from .support import (
    MINUTE,
    Log,
    ManualClock,
    archived,
    eventually,
    listening,
    only_queued,
    put,
    queued,
)

# What is added to a session is enqueued.


def test_adding_an_object_enqueues_it(shop: Engine) -> None:
    """``session.add`` fills in what ``enqueue`` does, before the order itself is flushed."""
    before = utcnow()
    add(shop, SendInvoice(order=Order()))
    job = only_queued(shop, SendInvoice)
    assert (job.queue, job.job_type, job.priority) == ("default", "send-invoice", 5)
    assert (job.attempts, json.loads(job.payload)) == (0, None)
    assert before <= job.enqueued_at <= job.process_at <= utcnow()
    assert job.order_id == only_order(shop).id


def test_a_class_says_where_its_jobs_go(shop: Engine) -> None:
    """``__queue__`` and ``__priority__`` count where an object has none of its own."""
    own = PackParcel(parcel_order=Order(), weight=2, queue="express", priority=0)
    add(shop, PackParcel(parcel_order=Order(), weight=1), own)
    first, second = sorted(queued(shop, PackParcel), key=lambda job: job.weight)
    assert (first.queue, first.priority) == ("parcels", 2)
    assert (second.queue, second.priority) == ("express", 0)
    put(shop, "pack-parcel", job_model=PackParcel, parcel_order=Order(), weight=3)
    assert next(job.queue for job in queued(shop, PackParcel) if job.weight == 3) == "parcels"


def test_an_object_may_come_by_a_relationship(shop: Engine, kind: Kind) -> None:
    """A job that an order of the session gets to know is enqueued with it."""
    with Session(shop) as session, session.begin():
        order = Order()
        session.add(order)
        order.jobs.append(SendInvoice())
    assert kind.run_all(shop, invoicing(), **ORDERS) == 1
    assert only_order(shop).invoiced == 1


def test_enqueue_takes_an_object(shop: Engine, clock: ManualClock) -> None:
    """``enqueue`` gives an object its options and its id at once; those of the call win."""
    with Session(shop) as session, session.begin():
        own = SendInvoice(order=Order(), note="own", queue="slow", priority=1)
        own.process_at = clock.now + MINUTE
        job: SendInvoice = enqueue(session, own, clock=clock)
        assert job is own
        assert job.job_id is not None
        assert (job.queue, job.priority) == ("slow", 1)
        assert (job.enqueued_at, job.process_at) == (clock.now, clock.now + MINUTE)
        other = SendInvoice(order=Order(), note="call", queue="slow", process_at=utcnow())
        enqueue(session, other, queue="fast", priority=9, process_in=MINUTE, clock=clock)
    stored = {job.note: job for job in queued(shop, SendInvoice)}
    assert (stored["own"].queue, stored["own"].priority) == ("slow", 1)
    assert (stored["call"].queue, stored["call"].priority) == ("fast", 9)
    assert stored["call"].process_at == clock.now + MINUTE


def test_handler_enqueues_objects(shop: Engine) -> None:
    """``handler.enqueue`` takes an object of its class, and no other."""
    handlers = Handlers()

    @handlers(PackParcel)
    def pack(job: PackParcel) -> None: ...

    with Session(shop) as session, session.begin():
        job = pack.enqueue(session, PackParcel(parcel_order=Order(), weight=1), process_in=MINUTE)
        assert isinstance(job, PackParcel)
        with pytest.raises(TypeError, match="payload must be a PackParcel, not <SendInvoice"):
            pack.enqueue(session, SendInvoice(order=Order()))  # type: ignore[arg-type]
    assert only_queued(shop, PackParcel).process_at > utcnow() + MINUTE / 2


def test_what_enqueue_refuses(shop: Engine) -> None:
    """An object that cannot be a new job is refused at the call, with the reason."""
    (there,) = add(shop, SendInvoice(order=Order()))
    with Session(shop) as session:
        job = SendInvoice(order=Order())
        for options in ({"payload": 1}, {"job_model": SendInvoice}, {"note": "a column"}):
            with pytest.raises(TypeError, match="is a whole job: set its columns"):
                enqueue(session, job, **options)  # type: ignore[call-overload]
        with pytest.raises(ValueError, match="priority must be from 0"):
            enqueue(session, SendInvoice(order=Order(), priority=10))
        with pytest.raises(ValueError, match="queue must have 1 to 255"):
            enqueue(session, SendInvoice(order=Order(), queue=""))
        with pytest.raises(ValueError, match="is enqueued already"):
            enqueue(session, session.get_one(SendInvoice, there))
        with pytest.raises(ValueError, match="job_type must have 1 to 255 characters"):
            enqueue(session, ShopJob())


def test_a_type_and_its_class_go_together(shop: Engine) -> None:
    """What would be a row of one class and an object of another is refused."""
    wrong: list[tuple[str, type[Any], str]] = [
        ("send-invoice", ShopJob, "use job_model=SendInvoice"),
        ("send-invoice", PackParcel, "use job_model=SendInvoice"),
        ("other", SendInvoice, "no class of shop_job has that polymorphic identity"),
    ]
    with Session(shop) as session:
        for job_type, model, remedy in wrong:
            reason = f"{job_type!r} cannot be a {model.__name__}: {remedy}"
            with pytest.raises(ValueError, match=reason):
                enqueue(session, job_type, job_model=model)
            with pytest.raises(ValueError, match=reason):
                enqueue_many(session, [{"job_type": job_type}], job_model=model)
        with pytest.raises(ValueError, match="'other' cannot be a SendInvoice"):
            enqueue_unique(session, "other", job_model=SendInvoice, unique_key="a")


def test_enqueue_many(shop: Engine, kind: Kind) -> None:
    """Rows of a class are mappings of its columns, in one table or in two."""
    with Session(shop) as session, session.begin():
        order = Order()
        session.add(order)
        session.flush()
        invoices: list[dict[str, Any]] = [{"order_id": order.id}, {"order_id": order.id}]
        assert enqueue_many(session, invoices, job_model=SendInvoice) == 2
        parcels = [{"parcel_order_id": order.id, "weight": n} for n in range(3)]
        assert enqueue_many(session, parcels, job_model=PackParcel) == 3
        with pytest.raises(TypeError, match=r"for objects, use session\.add_all"):
            enqueue_many(session, [SendInvoice()], job_model=SendInvoice)  # type: ignore[list-item]
    handlers = invoicing()
    packed: list[int] = []

    @handlers(PackParcel)
    def pack(job: PackParcel) -> None:
        packed.append(job.weight)

    assert kind.run_all(shop, handlers, **ORDERS) == 5
    assert (only_order(shop).invoiced, sorted(packed)) == (2, [0, 1, 2])


def test_enqueue_unique(shop: Engine) -> None:
    """A class in the queue's own table can be unique; one with a table of its own is refused."""
    with Session(shop) as session, session.begin():
        order = Order()
        session.add(order)
        session.flush()
        once: Any = {"job_model": SendInvoice, "order_id": order.id, "unique_key": "once"}
        job = enqueue_unique(session, "send-invoice", **once)
        assert isinstance(job, SendInvoice)
        assert job.order is order
        assert enqueue_unique(session, "send-invoice", **once) is None
        with pytest.raises(TypeError, match="mapped to 2 tables: shop_job, pack_parcel"):
            enqueue_unique(session, "pack-parcel", job_model=PackParcel, unique_key="a")
    assert only_queued(shop, SendInvoice).unique_key == "once"


def test_bulk_inserts_are_jobs(shop: Engine, kind: Kind) -> None:
    """SQLAlchemy's own bulk inserts make complete jobs too."""
    with Session(shop) as session, session.begin():
        order = Order()
        session.add(order)
        session.flush()
        session.execute(insert(SendInvoice), [{"order_id": order.id}] * 2)
        session.bulk_save_objects([SendInvoice(order_id=order.id)])
    assert kind.run_all(shop, invoicing(), **ORDERS) == 3
    assert only_order(shop).invoiced == 3


# Workers are woken.


def test_a_commit_announces_what_was_added(shop: Engine, url: URL) -> None:
    """Each queue once: whether the commit flushes the objects, or they were flushed before."""
    with listening(url, "shop_job") as heard, Session(shop) as session:
        session.add_all([SendInvoice(order=Order()) for _ in range(3)])
        session.add(PackParcel(parcel_order=Order(), weight=1))
        session.commit()
        assert heard() == ["default", "parcels"]
        session.add(SendInvoice(order=Order()))
        session.flush()
        session.add(SendInvoice(order=Order()))
        assert heard() == []
        session.commit()
        assert heard() == ["default"]


def test_what_was_rolled_back_is_not_announced(shop: Engine, url: URL) -> None:
    """Neither a rollback nor that of a SAVEPOINT leaves a wake-up; what follows it does."""
    with listening(url, "shop_job") as heard, Session(shop) as session:
        session.add(SendInvoice(order=Order(), queue="rolled back"))
        session.flush()
        session.rollback()
        session.commit()
        assert heard() == []
        with session.begin_nested() as savepoint:
            session.add(SendInvoice(order=Order(), queue="again"))
            session.add(SendInvoice(order=Order(), queue="undone"))
            session.flush()
            savepoint.rollback()
        session.add(SendInvoice(order=Order(), queue="again"))
        session.commit()
        assert heard() == ["again"]


def test_enqueue_announces_objects_and_can_keep_silent(shop: Engine, url: URL) -> None:
    """``enqueue`` announces an object as it does others; ``notify=False`` tells nobody."""
    with listening(url, "shop_job") as heard, Session(shop) as session:
        enqueue(session, SendInvoice(order=Order()))
        session.commit()
        assert heard() == ["default"]
        enqueue(session, SendInvoice(order=Order()), notify=False)
        session.commit()
        assert heard() == []


def test_an_object_wakes_a_worker(shop: Engine, kind: Kind) -> None:
    """A worker that would poll an hour later runs what is added to a session."""
    log = Log()
    hour = timedelta(hours=1)
    with kind.worker(shop, invoicing(), polling_interval=hour, log=log, **ORDERS):
        eventually(lambda: log.events().count("polling-for-jobs") >= 2)
        add(shop, SendInvoice(order=Order()))
        eventually(lambda: archived(shop, ArchivedShopJob))


def test_a_handler_adds_objects(shop: Engine, kind: Kind) -> None:
    """What a handler adds to its session is enqueued with the job's completion, and runs."""
    handlers = invoicing()

    @handlers(PackParcel)
    def pack(job: PackParcel, session: Session) -> None:
        session.add(SendInvoice(order=job.parcel_order))

    log = Log()
    hour = timedelta(hours=1)
    with kind.worker(shop, handlers, polling_interval=hour, log=log, **ORDERS):
        eventually(lambda: log.events().count("polling-for-jobs") >= 2)
        add(shop, PackParcel(parcel_order=Order(), weight=1))
        eventually(lambda: only_order(shop).invoiced == 1)

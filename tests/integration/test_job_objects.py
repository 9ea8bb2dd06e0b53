"""Jobs that are instances of a mapped class: adding one to a session enqueues it."""

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

# Enqueueing.


def test_adding_an_object_enqueues_it(shop: Engine) -> None:
    """``session.add`` sets the same defaults as ``enqueue``, before the order is flushed."""
    before = utcnow()
    add(shop, SendInvoice(order=Order()))
    job = only_queued(shop, SendInvoice)
    assert (job.queue, job.job_type, job.priority) == ("default", "send-invoice", 5)
    assert (job.attempts, json.loads(job.payload)) == (0, None)
    assert before <= job.enqueued_at <= job.process_at <= utcnow()
    assert job.order_id == only_order(shop).id


def test_queue_and_priority_of_a_class(shop: Engine) -> None:
    """``__queue__`` and ``__priority__`` are the defaults for objects that set no value."""
    own = PackParcel(parcel_order=Order(), weight=2, queue="express", priority=0)
    add(shop, PackParcel(parcel_order=Order(), weight=1), own)
    first, second = sorted(queued(shop, PackParcel), key=lambda job: job.weight)
    assert (first.queue, first.priority) == ("parcels", 2)
    assert (second.queue, second.priority) == ("express", 0)
    put(shop, "pack-parcel", job_model=PackParcel, parcel_order=Order(), weight=3)
    assert next(job.queue for job in queued(shop, PackParcel) if job.weight == 3) == "parcels"


def test_an_object_added_by_a_relationship_is_enqueued(shop: Engine, kind: Kind) -> None:
    """A job appended to a relationship of an object in the session is enqueued with it."""
    with Session(shop) as session, session.begin():
        order = Order()
        session.add(order)
        order.jobs.append(SendInvoice())
    assert kind.run_all(shop, invoicing(), **ORDERS) == 1
    assert only_order(shop).invoiced == 1


def test_enqueue_accepts_an_object(shop: Engine, clock: ManualClock) -> None:
    """``enqueue`` sets the options and the id immediately; arguments override attributes."""
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


def test_handler_enqueue_accepts_an_object(shop: Engine) -> None:
    """``handler.enqueue`` accepts only objects of the handler's class."""
    handlers = Handlers()

    @handlers(PackParcel)
    def pack(job: PackParcel) -> None: ...

    with Session(shop) as session, session.begin():
        job = pack.enqueue(session, PackParcel(parcel_order=Order(), weight=1), process_in=MINUTE)
        assert isinstance(job, PackParcel)
        with pytest.raises(TypeError, match="payload must be a PackParcel, not <SendInvoice"):
            pack.enqueue(session, SendInvoice(order=Order()))  # type: ignore[arg-type]
    assert only_queued(shop, PackParcel).process_at > utcnow() + MINUTE / 2


def test_enqueue_rejects_invalid_objects(shop: Engine) -> None:
    """``enqueue`` rejects an object that cannot be a new job, and gives the reason."""
    (existing_id,) = add(shop, SendInvoice(order=Order()))
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
            enqueue(session, session.get_one(SendInvoice, existing_id))
        with pytest.raises(ValueError, match="job_type must have 1 to 255 characters"):
            enqueue(session, ShopJob())


def test_a_job_type_must_match_its_class(shop: Engine) -> None:
    """A job type and a job model of different classes are rejected."""
    mismatches: list[tuple[str, type[Any], str]] = [
        ("send-invoice", ShopJob, "use job_model=SendInvoice"),
        ("send-invoice", PackParcel, "use job_model=SendInvoice"),
        ("other", SendInvoice, "no class of shop_job has that polymorphic identity"),
    ]
    with Session(shop) as session:
        for job_type, model, hint in mismatches:
            reason = f"{job_type!r} cannot be a {model.__name__}: {hint}"
            with pytest.raises(ValueError, match=reason):
                enqueue(session, job_type, job_model=model)
            with pytest.raises(ValueError, match=reason):
                enqueue_many(session, [{"job_type": job_type}], job_model=model)
        with pytest.raises(ValueError, match="'other' cannot be a SendInvoice"):
            enqueue_unique(session, "other", job_model=SendInvoice, unique_key="a")


def test_enqueue_many_for_classes(shop: Engine, kind: Kind) -> None:
    """``enqueue_many`` takes mappings of column values, for one table or for joined tables."""
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


def test_enqueue_unique_for_classes(shop: Engine) -> None:
    """``enqueue_unique`` supports single-table classes and rejects joined-table classes."""
    with Session(shop) as session, session.begin():
        order = Order()
        session.add(order)
        session.flush()
        once: Any = {"job_model": SendInvoice, "order_id": order.id, "unique_key": "once"}
        job = enqueue_unique(session, "send-invoice", **once).job
        assert isinstance(job, SendInvoice)
        assert job.order is order
        assert not enqueue_unique(session, "send-invoice", **once).created
        with pytest.raises(TypeError, match="mapped to 2 tables: shop_job, pack_parcel"):
            enqueue_unique(session, "pack-parcel", job_model=PackParcel, unique_key="a")
    assert only_queued(shop, SendInvoice).unique_key == "once"


def test_bulk_inserts_create_jobs(shop: Engine, kind: Kind) -> None:
    """SQLAlchemy's bulk inserts also create complete jobs."""
    with Session(shop) as session, session.begin():
        order = Order()
        session.add(order)
        session.flush()
        session.execute(insert(SendInvoice), [{"order_id": order.id}] * 2)
        session.bulk_save_objects([SendInvoice(order_id=order.id)])
    assert kind.run_all(shop, invoicing(), **ORDERS) == 3
    assert only_order(shop).invoiced == 3


# Notifications.


def test_a_commit_notifies_each_queue_once(shop: Engine, url: URL) -> None:
    """A commit notifies each queue once, whether or not the objects were flushed before."""
    with listening(url, "shop_job") as announced, Session(shop) as session:
        session.add_all([SendInvoice(order=Order()) for _ in range(3)])
        session.add(PackParcel(parcel_order=Order(), weight=1))
        session.commit()
        assert announced() == ["default", "parcels"]
        session.add(SendInvoice(order=Order()))
        session.flush()
        session.add(SendInvoice(order=Order()))
        assert announced() == []
        session.commit()
        assert announced() == ["default"]


def test_a_rollback_discards_notifications(shop: Engine, url: URL) -> None:
    """A rollback, also of a SAVEPOINT, discards its notifications; later ones are sent."""
    with listening(url, "shop_job") as announced, Session(shop) as session:
        session.add(SendInvoice(order=Order(), queue="rolled back"))
        session.flush()
        session.rollback()
        session.commit()
        assert announced() == []
        with session.begin_nested() as savepoint:
            session.add(SendInvoice(order=Order(), queue="again"))
            session.add(SendInvoice(order=Order(), queue="undone"))
            session.flush()
            savepoint.rollback()
        session.add(SendInvoice(order=Order(), queue="again"))
        session.commit()
        assert announced() == ["again"]


def test_enqueue_notifies_unless_told_not_to(shop: Engine, url: URL) -> None:
    """``enqueue`` sends a notification for an object unless ``notify=False``."""
    with listening(url, "shop_job") as announced, Session(shop) as session:
        enqueue(session, SendInvoice(order=Order()))
        session.commit()
        assert announced() == ["default"]
        enqueue(session, SendInvoice(order=Order()), notify=False)
        session.commit()
        assert announced() == []


def test_adding_an_object_wakes_a_worker(shop: Engine, kind: Kind) -> None:
    """A worker with a long polling interval immediately runs a job added to a session."""
    log = Log()
    hour = timedelta(hours=1)
    with kind.worker(shop, invoicing(), polling_interval=hour, log=log, **ORDERS):
        eventually(lambda: log.events().count("polling-for-jobs") >= 2)
        add(shop, SendInvoice(order=Order()))
        eventually(lambda: archived(shop, ArchivedShopJob))


def test_a_handler_can_add_jobs(shop: Engine, kind: Kind) -> None:
    """A job that a handler adds to its session is enqueued when the handler's job completes."""
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

"""Custom tables and job classes on every database.

Most tests are those of the integration suite. Here their ``kind`` is a place, that is, a database
with a driver, instead of a kind of worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    DatabaseNotReadyError,
    Handlers,
    QueueWorker,
    manage,
    process_next_job,
)
from tests.integration import (
    test_bases,
    test_custom_tables,
    test_deleting_owners,
    test_foreign_bases,
    test_job_classes,
    test_job_objects,
)
from tests.integration.orders import (
    ORDERS,
    Order,
    PackParcel,
    SendInvoice,
    add,
    invoicing,
)
from tests.integration.support import ManualClock, Note, Shop, only_queued, rows

from .places import PLACES, WITHOUT_SCHEMA, Place, is_one_writer

TABLES = [table for table in Shop.metadata.sorted_tables if table is not Note.__table__]

# The integration suite already runs on PostgreSQL with psycopg and asyncpg.
OTHERS = [place for place in PLACES if place.driver != "postgresql+psycopg"]


def few(places: list[Place]) -> list[Place]:
    """Return two places of each server: threads in transaction mode, a loop in lease mode."""
    chosen: dict[Any, Place] = {}
    for place in places:
        if place.leased == bool(place.in_a_loop) or place.server == "sqlite":
            chosen.setdefault((place.server, bool(place.in_a_loop)), place)
    return list(chosen.values())


FEW = few(OTHERS)
PRODUCING = [place for place in FEW if not place.in_a_loop]


@pytest.fixture(autouse=True)
def place(kind: Place) -> Place:
    """Return the test's place, which the integration suite calls the kind of worker."""
    return kind


@pytest.fixture
def clock() -> ManualClock:
    """Return a clock that stands still."""
    return ManualClock()


@pytest.fixture
def shop(engine: Engine) -> Iterator[Engine]:
    """Yield the engine of a database that also has the shop's tables, empty."""
    Shop.metadata.create_all(engine, tables=TABLES)
    yield engine
    with engine.begin() as connection:
        for table in reversed(TABLES):
            connection.execute(table.delete())


def in_places(places: list[Place]) -> pytest.MarkDecorator:
    """Return a decorator that runs a test in these places."""
    return pytest.mark.parametrize("kind", places, ids=str)


def adapted(test: Callable[..., None], places: list[Place]) -> Callable[..., None]:
    """Return a test of the integration suite, changed to run in these places."""

    @wraps(test)
    def run(**fixtures: Any) -> None:
        test(**fixtures)

    run.pytestmark = [in_places(places).mark]  # type: ignore[attr-defined] # drops its own marks
    return run


for tests, places in [
    (
        [
            test_bases.test_jobs_may_be_dataclasses,
            test_bases.test_job_ids_may_be_generated_by_the_database,
            test_bases.test_jobs_may_have_bidirectional_relationships,
            test_bases.test_two_workers_serve_two_pairs_of_tables,
            test_custom_tables.test_archive_columns_get_their_defaults,
            test_custom_tables.test_a_job_model_may_load_relationships_eagerly,
            test_custom_tables.test_extra_columns_are_copied_to_the_archive,
            test_custom_tables.test_jobs_in_custom_tables_are_retried_and_fail,
            test_custom_tables.test_a_handler_gets_its_job_model,
            test_custom_tables.test_a_worker_runs_only_the_jobs_of_its_own_tables,
            test_custom_tables.test_job_models_support_inheritance,
            test_job_classes.test_jobs_of_several_classes_share_a_transaction,
            test_job_classes.test_a_class_of_another_queue_table_is_an_unknown_type,
            test_job_classes.test_a_worker_rejects_a_foreign_key_without_cascade,
            test_job_classes.test_deleting_an_order_deletes_its_queued_jobs,
            test_job_classes.test_a_row_without_its_joined_row_fails,
            test_job_classes.test_a_class_with_its_own_table,
            test_job_classes.test_a_handler_for_the_object_of_a_type_without_class_fails,
            test_job_classes.test_a_handler_receives_the_object_and_its_relationships,
            test_job_classes.test_retry_functions_and_on_failed_receive_the_object,
            test_job_classes.test_a_type_without_a_class_waits,
            test_deleting_owners.test_an_owner_is_deleted_after_its_jobs_ran,
            test_foreign_bases.test_job_tables_on_advanced_alchemy_bases,
            test_foreign_bases.test_job_classes_on_flask_sqlalchemy_models,
            test_foreign_bases.test_all_kinds_of_columns_are_supported,
            test_foreign_bases.test_the_mixin_may_be_the_second_base,
        ],
        FEW,
    ),
    (
        [
            test_job_classes.test_a_cancelled_job_archives_the_columns_of_its_own_table,
            test_job_objects.test_queue_and_priority_of_a_class,
            test_job_objects.test_adding_an_object_enqueues_it,
            test_job_objects.test_an_object_added_by_a_relationship_is_enqueued,
            test_job_objects.test_bulk_inserts_create_jobs,
            test_job_objects.test_enqueue_many_for_classes,
            test_job_objects.test_enqueue_unique_for_classes,
        ],
        PRODUCING,
    ),
    (
        # Python's sqlite3 begins no transaction that the test could roll back.
        [test_job_classes.test_process_next_job_runs_jobs_of_a_class],
        [place for place in PRODUCING if place.server != "sqlite"],
    ),
    (
        # InnoDB has locks on entries of indexes too: there the two always want what the other has.
        [test_job_classes.test_deleting_an_order_waits_for_its_running_job],
        [place for place in OTHERS if place.server == "postgres" and not place.leased],
    ),
    (
        [test_job_classes.test_deleting_an_order_that_the_archive_references],
        [place for place in OTHERS if not place.leased],
    ),
    (
        # Where a plain handler is SQLite's one writer nobody deletes an order meanwhile.
        [test_job_classes.test_deleting_an_order_ends_the_lease_of_its_job],
        [place for place in OTHERS if place.leased and not is_one_writer(place)],
    ),
]:
    globals().update({test.__name__: adapted(test, places) for test in tests})


@in_places([place for place in FEW if place.in_a_loop])
def test_coroutines(shop: Engine, kind: Place) -> None:
    """In a coroutine, relationships are awaited unless they load eagerly."""
    handlers = Handlers()

    @handlers(SendInvoice)
    async def send_invoice(job: SendInvoice, session: AsyncSession) -> None:
        order = await job.awaitable_attrs.order
        order.invoiced += 1

    @handlers(PackParcel)
    async def pack(job: PackParcel) -> None:
        job.parcel_order.invoiced += 10

    add(shop, SendInvoice(order=Order()), PackParcel(parcel_order=Order(), weight=1))
    assert kind.run_all(shop, handlers, **ORDERS) == 2
    assert sorted(order.invoiced for order in rows(shop, Order)) == [1, 10]


@in_places([place for place in PRODUCING if place.server == "sqlite"])
def test_sqlite_must_enforce_foreign_keys(shop: Engine) -> None:
    """An engine on which deletes leave rows of joined classes behind is rejected."""
    (job_id,) = add(shop, PackParcel(parcel_order=Order(), weight=1))
    without_foreign_keys = create_engine(shop.url, execution_options=WITHOUT_SCHEMA)
    rejected = pytest.raises(DatabaseNotReadyError, match="PRAGMA foreign_keys = ON on each")
    models = {name: ORDERS[name] for name in ("job_model", "archived_job_model")}
    with rejected:
        QueueWorker(without_foreign_keys, invoicing(), **ORDERS).drain()
    with Session(without_foreign_keys) as session, rejected:
        process_next_job(session, invoicing(), queues="parcels", **models)
    with Session(without_foreign_keys) as session, rejected:
        manage.cancel(session, job_id, **models)
    without_foreign_keys.dispose()
    assert only_queued(shop, PackParcel).attempts == 0

"""Batch handlers: their registration, their signatures, and what they report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Annotated, Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import BatchFailed, BatchHandler, Handler, HandlerError, Handlers, Job
from sqlalchemy_proletarian.execution.batch_call import BatchCalls
from sqlalchemy_proletarian.execution.transaction.batch_size import BatchSize
from sqlalchemy_proletarian.lifecycle.claimed import ClaimedJob
from sqlalchemy_proletarian.lifecycle.run import Call, Run
from tests.integration.orders import PackParcel, SendInvoice


def of_list(payloads: list[int], session: Session, jobs: list[Job]) -> None: ...
def of_sequence(payloads: Sequence[int], *, jobs: Sequence[Job]) -> None: ...
def of_annotated(payloads: list[Annotated[int, "a note"]]) -> None: ...
async def in_a_loop(payloads: list[int], session: AsyncSession) -> None: ...


@pytest.mark.parametrize("function", [of_list, of_sequence, in_a_loop, of_annotated])
def test_lists_of_payloads_and_jobs(function: Callable[..., Any]) -> None:
    """The payload type is that of one job."""
    handlers = Handlers()
    handler = handlers.batch("index", size=7, queue="docs", timeout=timedelta(seconds=1))(function)
    assert isinstance(handler, BatchHandler) and isinstance(handler, Handler)
    assert (handler.batch_size, handler.queue, handler.timeout) == (7, "docs", 1.0)
    assert handler.signature.payload_type in (int, Annotated[int, "a note"])
    assert handlers.batch_sizes == {"index": 7}
    assert handlers.find("index") is handler


def test_the_handler_can_be_called_with_a_list() -> None:
    handlers = Handlers()

    @handlers.batch("index")
    def index(payloads: list[int], factor: int = 2) -> list[Exception | None]:
        return [ValueError(n * factor) for n in payloads]

    assert [str(error) for error in index([1, 2], factor=3)] == ["3", "6"]
    assert index.__name__ == "index"
    assert index.batch_size == 100


@pytest.mark.parametrize("annotation", ["missing", Any, object, list, list[Any]])
def test_any_payload(annotation: Any) -> None:
    def index(payloads): ...  # type: ignore[no-untyped-def]

    if annotation != "missing":
        index.__annotations__["payloads"] = annotation
    handler = Handlers().batch("index")(index)
    assert handler.signature.payload_type in (None, Any)


def one_payload(payload: int) -> None: ...
def one_payload_or_more(payload: int | list[int]) -> None: ...
def one_job(payloads: list[int], job: Job) -> None: ...
def other(payloads: list[int], sender: list[int]) -> None: ...
def wrong_session(payloads: list[int], session: AsyncSession) -> None: ...
def jobs_first(jobs: list[Job]) -> None: ...
def single_object(job: SendInvoice) -> None: ...
def objects_of_another_class(jobs: list[PackParcel]) -> None: ...


@pytest.mark.parametrize(
    ("job_type", "function", "message"),
    [
        ("index", one_payload, "'payload' is int: annotate it as list.int."),
        ("index", one_payload_or_more, "is the list of payloads, but 'payload' is"),
        ("index", one_job, r"'job' is annotated as Job, .* annotate it as list.Job."),
        ("index", other, "no value can be supplied for the parameter 'sender'"),
        ("index", wrong_session, "'session' is annotated as AsyncSession"),
        ("index", jobs_first, "the first parameter is the payload, but 'jobs' is"),
        (SendInvoice, single_object, "the list of jobs, but 'job' is SendInvoice"),
        (SendInvoice, objects_of_another_class, "is the SendInvoice, but 'jobs' is"),
    ],
)
def test_signatures_that_cannot_be_served(
    job_type: Any, function: Callable[..., Any], message: str
) -> None:
    with pytest.raises(HandlerError, match=message):
        Handlers().batch(job_type)(function)


def test_options_are_checked() -> None:
    handlers = Handlers()
    with pytest.raises(ValueError, match="size must be at least 1"):
        handlers.batch("index", size=0)
    with pytest.raises(ValueError, match="size must be at most 10000, not 10001"):
        handlers.batch("index", size=10_001)
    with pytest.raises(TypeError, match="no option 'sizes'"):
        handlers.batch("index", sizes=3)  # type: ignore[call-overload]
    with pytest.raises(HandlerError, match="declares its queue and priority itself"):
        handlers.batch(SendInvoice, queue="a")  # type: ignore[call-overload]
    with pytest.raises(HandlerError, match="the results of 'index' cannot be kept"):
        handlers.batch("index", keep_result=True)
    with pytest.raises(HandlerError, match="the jobs of 'index' cannot be limited"):
        handlers.batch("index", rate="10/minute")
    handlers("index")(lambda payload: None)
    with pytest.raises(HandlerError, match="'index' already has a handler"):
        handlers.batch("index")(lambda payloads: None)
    assert handlers.batch_sizes == {}


def test_middleware_that_takes_one_job_cannot_wrap_them() -> None:
    """Whichever is registered first."""

    def of_one(job: Job) -> Iterator[None]:
        yield

    message = r"of_one takes the job, so it cannot wrap the batch handler of 'index'.* as a list"
    handlers = Handlers()
    handlers.middleware(of_one)
    with pytest.raises(HandlerError, match=message):
        handlers.batch("index")(of_list)
    handlers = Handlers()
    handlers.batch("index")(of_list)
    with pytest.raises(HandlerError, match=message):
        handlers.middleware(of_one)


@pytest.mark.parametrize(
    ("errors", "kind", "message"),
    [
        ([ValueError()], TypeError, "errors must be a mapping of indexes to exceptions"),
        ({"a": ValueError()}, TypeError, "the indexes of payloads as keys, not 'a'"),
        ({True: ValueError()}, TypeError, "the indexes of payloads as keys, not True"),
        ({-1: ValueError()}, ValueError, "-1 is negative"),
        ({0: "no"}, TypeError, r"errors\[0\] must be an exception, not 'no'"),
        ({0: ValueError}, TypeError, r"errors\[0\] must be an exception, not <class"),
    ],
)
def test_errors_of_jobs_are_checked(errors: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        BatchFailed(errors)


def test_the_message_of_failed_jobs_shows_their_errors() -> None:
    failed = BatchFailed({1: ValueError("no"), 3: KeyError("x")})
    assert str(failed) == "2 jobs of the batch failed: {1: ValueError('no'), 3: KeyError('x')}"
    assert failed.errors.keys() == {1, 3}


# Which jobs share a call.


def job(job_type: str, n: int, deaths: int = 0) -> ClaimedJob:
    return ClaimedJob(n, job_type, "null", 1, deaths)


def calls(**sizes: int) -> BatchCalls:
    unused: Any = None
    return BatchCalls(sizes, serializer=unused, invoke=unused, starting=unused, split=unused)


def shapes(units: Iterable[Run]) -> list[list[int]]:
    return [[run.job.job_id for run in unit.members] for unit in units]


def runs(handlers: Handlers, jobs: Iterable[ClaimedJob]) -> list[Run]:
    return [Run(each, handlers.find(each.job_type)) for each in jobs]


def test_jobs_are_grouped_in_their_order() -> None:
    """A job during which a worker crashed is alone."""
    handlers = Handlers()
    handlers.batch("a")(lambda payloads: None)
    handlers.batch("b")(lambda payloads: None)
    handlers("c")(lambda payload: None)
    kinds = calls(a=2, b=3)
    jobs = [job("aabcbdbaab"[n], n) for n in range(9)] + [job("a", 9, deaths=1), job("b", 10)]
    grouped = kinds.grouped(runs(handlers, jobs))
    assert shapes(grouped) == [[0, 1], [2, 4, 6], [3], [5], [7, 8], [9], [10]]
    assert [isinstance(unit, Call) for unit in grouped] == [True, True, False, False, *[True] * 3]
    assert [each.job_id for each in kinds.fitting(jobs, 2)] == [0, 1, 2, 4, 6]
    assert [each.job_id for each in kinds.fitting(jobs, 3)] == [0, 1, 2, 3, 4, 6]
    assert kinds.fitting(jobs, 0) == []


CALLS = {"batch": 8}


def test_a_new_worker_doubles_the_number_of_jobs_of_a_call() -> None:
    size = BatchSize(100, timedelta(seconds=1), CALLS)
    assert size.limit() == 1
    found = []
    for _ in range(5):
        found.append(len(size.of_one_kind([job("batch", n) for n in range(size.limit())])))
        size.record("batch", 10.0)  # slow calls are as large
    assert found == [1, 2, 4, 8, 8]
    assert size.limit() == 8
    assert len(size.of_one_kind([job("batch", n) for n in range(20)])) == 20


def test_a_call_shares_its_transaction_with_no_other_type() -> None:
    size = BatchSize(100, timedelta(seconds=1), CALLS)
    for n in range(4):
        size.of_one_kind([job("batch", n)] * 2**n)
    mixed = [job("batch", 1), job("single", 2), job("batch", 3, deaths=1), job("batch", 4)]
    assert [each.job_id for each in size.of_one_kind(mixed)] == [1, 4]
    assert size.limit() == 8
    assert [each.job_id for each in size.of_one_kind(mixed[1:])] == [2]
    assert size.limit() == 1
    crashed = mixed[2:]
    assert size.together(size.of_one_kind(crashed)) == ()
    assert size.limit() == 1

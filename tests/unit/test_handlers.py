"""Registering handlers: what they are handed, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from sqlalchemy_proletarian import (
    Handler,
    HandlerError,
    Handlers,
    Job,
    JobMixin,
    JSONSerializer,
    PayloadError,
    RetryStrategy,
)
from sqlalchemy_proletarian.handlers import as_handlers

if TYPE_CHECKING:
    from decimal import Decimal

JSON = JSONSerializer()
SESSION, JOB = object(), object()
"""Stand for what a worker hands to a handler: nothing here looks into them."""


@dataclass
class Mail:
    to: str


class Base(DeclarativeBase):
    pass


class MailJob(JobMixin, Base):
    __tablename__ = "mail_job"


class TenantSession(Session):
    pass


def module_handler(payload: Any) -> None:
    """Stand where most handlers do."""


def run(handler: Handler[Any, ..., Any], text: str = "null") -> Any:
    """Run a handler as a worker does."""
    return handler.run(handler.decode(text, JSON), SESSION, JOB)


def test_payload_alone() -> None:
    """A handler of one parameter gets the payload as plain values."""
    handlers = Handlers()

    @handlers("echo")
    def echo(payload: Any) -> Any:
        return payload

    assert run(echo, '{"a": [1]}') == {"a": [1]}
    assert not echo.needs_session
    assert not echo.needs_job


def test_injection_by_annotation() -> None:
    """Session and job are handed in by annotation, in any order and under any name."""
    handlers = Handlers()

    @handlers("one")
    def one(payload: Mail, db: Session, row: Job) -> Any:
        return payload, db, row

    @handlers("two")
    def two(payload: Any, *, row: MailJob, db: TenantSession) -> Any:
        return payload, db, row

    @handlers("three")
    def three(payload: Any, job: JobMixin) -> Any:
        return payload, job

    assert run(one, '{"to": "a"}') == (Mail("a"), SESSION, JOB)
    assert run(two) == (None, SESSION, JOB)
    assert run(three) == (None, JOB)
    assert one.needs_session and one.needs_job
    assert three.needs_job and not three.needs_session


def test_async_session_is_a_session() -> None:
    """An async handler asks for its session as AsyncSession."""
    handlers = Handlers()

    @handlers("async")
    async def handler(payload: Any, session: AsyncSession) -> None: ...

    assert handler.needs_session
    assert handler.signature.is_async


def test_parameters_with_defaults_keep_them() -> None:
    """A parameter that nobody can fill keeps its default; *args and **kwargs stay empty."""
    handlers = Handlers()

    @handlers("defaults")
    def defaults(payload: Any, retries: int = 3, *args: Any, log: Any = None, **rest: Any) -> Any:
        return payload, retries, args, log, rest

    assert run(defaults, "1") == (1, 3, (), None, {})


def test_collectors_are_not_filled() -> None:
    """Annotating *args or **kwargs as Session asks for nothing."""
    handlers = Handlers()

    @handlers("collectors")
    def collectors(payload: Any, *args: Session, **rest: Session) -> Any:
        return args, rest

    assert run(collectors) == ((), {})


def test_classes_local_to_a_function() -> None:
    """Annotations as text may name classes that are local to the function that registers."""
    handlers = Handlers()

    @dataclass
    class Local:
        n: int

    @handlers("local")
    def local(payload: Local) -> Any:
        return payload

    assert run(local, '{"n": 3}') == Local(3)


def test_decorated_functions_and_methods() -> None:
    """A function that other decorators wrapped is read as the one inside; methods work too."""
    handlers = Handlers()

    def traced(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return "traced", function(*args, **kwargs)

        return wrapper

    @handlers("traced")
    @traced
    def inner(payload: Mail, session: Session) -> Any:
        return payload, session

    class Service:
        def send(self, payload: Mail, session: Session) -> Any:
            return payload, session

    bound = handlers("bound")(Service().send)
    assert run(inner, '{"to": "a"}') == ("traced", (Mail("a"), SESSION))
    assert run(bound, '{"to": "a"}') == (Mail("a"), SESSION)


def test_one_function_for_two_types() -> None:
    """Decorators stack: one function may run jobs of two types."""
    handlers = Handlers()

    @handlers("new")
    @handlers("old")
    def handler(payload: Mail, session: Session) -> Any:
        return payload, session

    for job_type in ("new", "old"):
        found = handlers.find(job_type)
        assert found is not None
        assert run(found, '{"to": "a"}') == (Mail("a"), SESSION)


def test_attributes_of_the_function_are_not_the_handlers() -> None:
    """A function's own attributes do not become the handler's queue or type."""

    def handler(payload: Any) -> None: ...

    handler.queue = "elsewhere"  # type: ignore[attr-defined]
    assert Handlers()("mail", queue="mails")(handler).queue == "mails"


def test_still_the_function_it_was() -> None:
    """A registered handler can be called and looks like its function."""
    handlers = Handlers()

    @handlers("greet", queue="mail", priority=1)
    def greet(payload: str, times: int = 1) -> str:
        """Say hello."""
        return f"hello {payload}" * times

    assert greet("you", times=2) == "hello youhello you"
    assert (greet.__name__, greet.__doc__) == ("greet", "Say hello.")
    assert (greet.job_type, greet.queue, greet.priority) == ("greet", "mail", 1)
    assert list(handlers) == [greet]
    assert handlers.find("greet") is greet
    assert handlers.find("Greet") is None


def refused(function: Callable[..., Any]) -> str:
    """Register a function that cannot be served and return the refusal."""
    with pytest.raises(HandlerError) as refusal:
        Handlers()("mail")(function)
    message = str(refusal.value)
    assert "handler of 'mail'" in message
    assert function.__qualname__ in message
    return message


def test_signatures_that_cannot_be_served() -> None:
    """A signature that cannot be served is refused at registration, and the parameter is named."""

    def extra(payload: Any, request_id: str) -> None: ...
    def bare(payload: Any, session) -> None: ...  # type: ignore[no-untyped-def]
    def keyword_only(payload: Any, *, connection: Any) -> None: ...
    def maker(payload: Any, session: sessionmaker[Session]) -> None: ...
    def positional(payload: Any, session: Session, /) -> None: ...

    assert "for the parameter 'request_id'" in refused(extra)
    assert "for the parameter 'session'" in refused(bare)
    assert "for the parameter 'connection'" in refused(keyword_only)
    assert "for the parameter 'session'" in refused(maker)
    assert "for the parameter 'session'" in refused(positional)


def test_no_payload_parameter() -> None:
    """A handler without a positional parameter for its payload is refused."""

    def nothing() -> None: ...
    def keyword(*, payload: Any) -> None: ...
    def collector(*payload: Any) -> None: ...

    for function in (nothing, keyword, collector):
        assert "needs a first positional parameter for the payload" in refused(function)


def test_payload_parameter_forgotten() -> None:
    """A session or job in the payload's place is refused: the payload was forgotten."""

    def session_first(session: Session) -> None: ...
    def job_first(job: Job, payload: Any) -> None: ...

    assert "the first parameter is the payload, but 'session' is" in refused(session_first)
    assert "the first parameter is the payload, but 'job' is" in refused(job_first)


def test_unresolvable_annotation() -> None:
    """An annotation that only type checkers can read is refused, with the way out."""

    def handler(payload: Decimal) -> None: ...

    assert "'Decimal' is not defined; import it outside TYPE_CHECKING" in refused(handler)


def test_payload_annotation_that_nothing_decodes_to() -> None:
    """A payload type that nothing can be decoded to is refused, not met at run time."""

    def handler(payload: dict[list[int], int | list[str] | set[str]]) -> None: ...

    assert "no payload can be decoded to 'payload'" in refused(handler)


def test_one_handler_per_type() -> None:
    """A second handler for a type is refused and the first one named."""
    handlers = Handlers()
    handlers("mail")(module_handler)
    with pytest.raises(HandlerError, match=r"'mail' already has a handler: .*module_handler"):
        handlers("mail")(lambda payload: None)


def test_typed_payload_that_does_not_fit() -> None:
    """A payload of another shape is an error before the handler runs."""
    handlers = Handlers()

    @handlers("mail")
    def mail(payload: Mail) -> None: ...

    with pytest.raises(PayloadError, match="does not fit Mail"):
        run(mail, '{"from": "a"}')


def test_serializer_of_the_registration() -> None:
    """The serializer given at registration decodes, whatever the worker's is."""

    class Upper(JSONSerializer):
        def decode(self, text: str, annotation: Any = None) -> Any:
            return super().decode(text, annotation).upper()

    handlers = Handlers()

    @handlers("shout", serializer=Upper())
    def shout(payload: Any) -> Any:
        return payload

    assert run(shout, '"hey"') == "HEY"


def test_retry_at_registration() -> None:
    """A strategy is given at registration, in either form, or for all types at once."""
    handlers = Handlers(retry={"retries": 1})
    with_mapping = handlers("a", retry={"retries": 2, "delays": [1000]})(lambda payload: None)
    with_strategy = handlers("b", retry=RetryStrategy(3))(lambda payload: None)
    without = handlers("c")(lambda payload: None)
    assert with_mapping.retry == RetryStrategy(2, [timedelta(seconds=1)])
    assert with_strategy.retry == RetryStrategy(3)
    assert without.retry is None
    assert handlers.retry == RetryStrategy(1)
    assert Handlers().retry is None


@pytest.mark.parametrize(
    ("retry", "reason"), [({"retries": -1}, "must not be negative"), (3, "must be a RetryStrategy")]
)
def test_bad_retry_at_registration(retry: Any, reason: str) -> None:
    """A strategy that is none is refused where it is given."""
    with pytest.raises((TypeError, ValueError), match=reason):
        Handlers(retry=retry)
    with pytest.raises((TypeError, ValueError), match=reason):
        Handlers()("mail", retry=retry)


def test_retry_functions_by_type() -> None:
    """A function of (job, exception) is the strategy of its type only; a second one is refused."""
    handlers = Handlers()

    @handlers.retry_strategy("mail")
    def strategy(job: Job, exception: Exception) -> Any:
        return {"retries": 1}

    assert handlers.retry_function("mail") is strategy
    assert handlers.retry_function("other") is None
    with pytest.raises(HandlerError, match="'mail' already has a retry strategy function"):
        handlers.retry_strategy("mail")(strategy)


def test_plain_callable() -> None:
    """A plain callable of (job_type, payload) gets the jobs of every type, with no retry."""
    handlers = as_handlers(lambda job_type, payload: (job_type, payload))
    for job_type in ("a", "b", "a"):
        handler = handlers.find(job_type)
        assert handler is not None
        assert run(handler, "[1]") == (job_type, [1])
        assert handler.retry is None
    assert handlers.retry is None


def test_handlers_are_taken_as_they_are() -> None:
    """A registry is itself; what is neither registry nor callable is refused."""
    handlers = Handlers()
    assert as_handlers(handlers) is handlers
    with pytest.raises(TypeError, match="must be Handlers or a callable"):
        as_handlers({"mail": print})  # type: ignore[arg-type]


def test_forgotten_job_type() -> None:
    """``@handlers`` without a job type is refused: it would register nothing."""
    with pytest.raises((TypeError, ValueError)):
        Handlers()(lambda payload: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"priority": 10}, {"priority": "1"}, {"queue": ""}])
def test_bad_options_at_registration(options: Any) -> None:
    """A queue or priority that no job can have is refused at registration."""
    with pytest.raises((TypeError, ValueError)):
        Handlers()("mail", **options)


def test_callable_object() -> None:
    """An object with ``__call__`` is a handler as well as a function is."""

    class Send:
        def __call__(self, payload: Mail, session: Session) -> Any:
            return payload, session

    assert run(Handlers()("mail")(Send()), '{"to": "a"}') == (Mail("a"), SESSION)


class Opaque:
    """A class that no payload becomes."""


def test_payload_class_that_nothing_decodes_to() -> None:
    """A payload annotated with a class of no known kind is refused at registration."""

    def handler(payload: Opaque) -> None: ...

    assert "no payload can be decoded to 'payload'" in refused(handler)

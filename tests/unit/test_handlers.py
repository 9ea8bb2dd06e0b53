"""Tests of the registration of handlers: the arguments they get and the rejected signatures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, cast

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
from sqlalchemy_proletarian.execution.invoke import call_function
from sqlalchemy_proletarian.execution.perform import decode_payload
from sqlalchemy_proletarian.handlers import as_handlers
from sqlalchemy_proletarian.lifecycle.run import Run

if TYPE_CHECKING:
    from decimal import Decimal

JSON = JSONSerializer()
SESSION, JOB = object(), object()
"""Stand-ins for the session and the job that a worker passes to a handler."""


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
    """Do nothing; a handler at module level."""


def run(handler: Handler[Any, ..., Any], text: str = "null") -> Any:
    """Run a handler as a worker does."""
    payload = decode_payload(handler, text, JSON)
    return call_function(Run(cast("Any", None), handler, JOB), handler, payload, SESSION)


def test_a_handler_with_one_parameter_gets_the_plain_payload() -> None:
    handlers = Handlers()

    @handlers("echo")
    def echo(payload: Any) -> Any:
        return payload

    assert run(echo, '{"a": [1]}') == {"a": [1]}
    assert not echo.needs_session
    assert not echo.needs_job


def test_session_and_job_are_injected_by_annotation() -> None:
    """The order and the names of the parameters do not matter."""
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


def test_an_async_handler_gets_an_async_session() -> None:
    handlers = Handlers()

    @handlers("async")
    async def handler(payload: Any, session: AsyncSession) -> None: ...

    assert handler.needs_session
    assert handler.signature.is_async


def test_parameters_with_defaults_keep_their_defaults() -> None:
    """A parameter that is not injected keeps its default; ``*args`` and ``**kwargs`` stay empty."""
    handlers = Handlers()

    @handlers("defaults")
    def defaults(payload: Any, retries: int = 3, *args: Any, log: Any = None, **rest: Any) -> Any:
        return payload, retries, args, log, rest

    assert run(defaults, "1") == (1, 3, (), None, {})


def test_var_args_annotated_as_session_are_not_filled() -> None:
    handlers = Handlers()

    @handlers("var_args")
    def var_args(payload: Any, *args: Session, **rest: Session) -> Any:
        return args, rest

    assert run(var_args) == ((), {})


def test_annotations_may_name_local_classes() -> None:
    """A string annotation is resolved in the function that registers the handler."""
    handlers = Handlers()

    @dataclass
    class Local:
        n: int

    @handlers("local")
    def local(payload: Local) -> Any:
        return payload

    assert run(local, '{"n": 3}') == Local(3)


def test_decorated_functions_and_bound_methods_are_accepted() -> None:
    """The signature of a decorated function is that of the function inside the decorators."""
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


def test_one_function_can_handle_two_job_types() -> None:
    handlers = Handlers()

    @handlers("new")
    @handlers("old")
    def handler(payload: Mail, session: Session) -> Any:
        return payload, session

    for job_type in ("new", "old"):
        found = handlers.find(job_type)
        assert found is not None
        assert run(found, '{"to": "a"}') == (Mail("a"), SESSION)


def test_attributes_of_the_function_do_not_override_the_handler() -> None:
    """An attribute such as ``queue`` of the function is not the handler's queue."""

    def handler(payload: Any) -> None: ...

    handler.queue = "elsewhere"  # type: ignore[attr-defined]
    assert Handlers()("mail", queue="mails")(handler).queue == "mails"


def test_a_handler_can_be_called_like_its_function() -> None:
    """A handler has the name and docstring of its function."""
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


def rejection_of(function: Callable[..., Any]) -> str:
    """Register an invalid function and return the message of the error."""
    with pytest.raises(HandlerError) as error:
        Handlers()("mail")(function)
    message = str(error.value)
    assert "handler of 'mail'" in message
    assert function.__qualname__ in message
    return message


def test_a_required_parameter_that_cannot_be_injected_is_rejected() -> None:
    """The message names the parameter."""

    def extra(payload: Any, request_id: str) -> None: ...
    def bare(payload: Any, session) -> None: ...  # type: ignore[no-untyped-def]
    def keyword_only(payload: Any, *, connection: Any) -> None: ...
    def maker(payload: Any, session: sessionmaker[Session]) -> None: ...
    def positional(payload: Any, session: Session, /) -> None: ...

    assert "for the parameter 'request_id'" in rejection_of(extra)
    assert "for the parameter 'session'" in rejection_of(bare)
    assert "for the parameter 'connection'" in rejection_of(keyword_only)
    assert "for the parameter 'session'" in rejection_of(maker)
    assert "for the parameter 'session'" in rejection_of(positional)


def test_a_handler_without_a_positional_parameter_is_rejected() -> None:

    def nothing() -> None: ...
    def keyword(*, payload: Any) -> None: ...
    def collector(*payload: Any) -> None: ...

    for function in (nothing, keyword, collector):
        assert "needs a first positional parameter for the payload" in rejection_of(function)


def test_a_session_or_job_as_first_parameter_is_rejected() -> None:
    """The first parameter is the payload, so a session or job there means that it is missing."""

    def session_first(session: Session) -> None: ...
    def job_first(job: Job, payload: Any) -> None: ...

    assert "the first parameter is the payload, but 'session' is" in rejection_of(session_first)
    assert "the first parameter is the payload, but 'job' is" in rejection_of(job_first)


def test_an_annotation_imported_only_for_type_checkers_is_rejected() -> None:
    """The message says how to fix it."""

    def handler(payload: Decimal) -> None: ...

    assert "'Decimal' is not defined; import it outside TYPE_CHECKING" in rejection_of(handler)


def test_an_undecodable_payload_type_is_rejected() -> None:
    """The error is raised at registration, not when the first job runs."""

    def handler(payload: dict[list[int], int | list[str] | set[str]]) -> None: ...

    assert "no payload can be decoded to 'payload'" in rejection_of(handler)


def test_a_second_handler_for_a_type_is_rejected() -> None:
    """The message names the first handler."""
    handlers = Handlers()
    handlers("mail")(module_handler)
    with pytest.raises(HandlerError, match=r"'mail' already has a handler: .*module_handler"):
        handlers("mail")(lambda payload: None)


def test_a_payload_of_the_wrong_type_does_not_reach_the_handler() -> None:
    handlers = Handlers()

    @handlers("mail")
    def mail(payload: Mail) -> None: ...

    with pytest.raises(PayloadError, match="does not fit Mail"):
        run(mail, '{"from": "a"}')


def test_the_serializer_of_the_handler_decodes_the_payload() -> None:
    """The serializer given at registration overrides the worker's serializer."""

    class Upper(JSONSerializer):
        def decode(self, text: str, annotation: Any = None) -> Any:
            return super().decode(text, annotation).upper()

    handlers = Handlers()

    @handlers("shout", serializer=Upper())
    def shout(payload: Any) -> Any:
        return payload

    assert run(shout, '"hey"') == "HEY"


def test_retry_can_be_set_per_handler_or_for_all() -> None:
    """A strategy is a ``RetryStrategy`` or a mapping."""
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
def test_an_invalid_retry_is_rejected_at_registration(retry: Any, reason: str) -> None:
    with pytest.raises((TypeError, ValueError), match=reason):
        Handlers(retry=retry)
    with pytest.raises((TypeError, ValueError), match=reason):
        Handlers()("mail", retry=retry)


def test_a_retry_function_applies_to_one_job_type() -> None:
    """A second retry function for the same type is rejected."""
    handlers = Handlers()

    @handlers.retry_strategy("mail")
    def strategy(job: Job, exception: Exception) -> Any:
        return {"retries": 1}

    assert handlers.retry_function("mail") is strategy
    assert handlers.retry_function("other") is None
    with pytest.raises(HandlerError, match="'mail' already has a retry strategy function"):
        handlers.retry_strategy("mail")(strategy)


def test_a_plain_callable_handles_every_job_type() -> None:
    """A callable of ``(job_type, payload)`` gets the jobs of all types, without retries."""
    handlers = as_handlers(lambda job_type, payload: (job_type, payload))
    for job_type in ("a", "b", "a"):
        handler = handlers.find(job_type)
        assert handler is not None
        assert run(handler, "[1]") == (job_type, [1])
        assert handler.retry is None
    assert handlers.retry is None


def test_as_handlers_accepts_a_registry_or_a_callable() -> None:
    """A registry is returned unchanged; any other object that is not callable is rejected."""
    handlers = Handlers()
    assert as_handlers(handlers) is handlers
    with pytest.raises(TypeError, match="must be Handlers or a callable"):
        as_handlers({"mail": print})  # type: ignore[arg-type]


def test_a_decorator_without_a_job_type_is_rejected() -> None:
    """``@handlers`` without parentheses would not register the function."""
    with pytest.raises((TypeError, ValueError)):
        Handlers()(lambda payload: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"priority": 10}, {"priority": "1"}, {"queue": ""}])
def test_an_invalid_queue_or_priority_is_rejected_at_registration(options: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        Handlers()("mail", **options)


def test_an_object_with_call_is_a_handler() -> None:

    class Send:
        def __call__(self, payload: Mail, session: Session) -> Any:
            return payload, session

    assert run(Handlers()("mail")(Send()), '{"to": "a"}') == (Mail("a"), SESSION)


class Opaque:
    """A class that no payload can be decoded to."""


def test_an_undecodable_payload_class_is_rejected() -> None:

    def handler(payload: Opaque) -> None: ...

    assert "no payload can be decoded to 'payload'" in rejection_of(handler)

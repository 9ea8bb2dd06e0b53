"""The sample application of the demo: a small sign-up service, written as a user would write it.

:mod:`.show` runs it and prints the results.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from threading import Lock
from time import sleep
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import Engine, MetaData
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from ..clock import uuid7
from ..handlers.handler import Handler
from ..handlers.registry import Handlers
from ..models.mixins import ArchivedJobMixin, JobMixin, RunningJobMixin
from ..retry import RetryStrategy

SCHEMA = "proletarian_demo"
"""The demo has its own schema, so that it can run on a database that is in use."""

RETRY = RetryStrategy(retries=3, delays=[timedelta(milliseconds=400), timedelta(milliseconds=800)])


class Base(DeclarativeBase):
    """The declarative base of the sign-up service."""

    metadata: ClassVar[MetaData] = MetaData(schema=SCHEMA)


class SignUp(Base):
    """A person who signed up, and the number of welcome mails that the service has recorded."""

    __tablename__ = "sign_up"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    address: Mapped[str] = mapped_column(unique=True)
    mails: Mapped[int] = mapped_column(default=0)


class Job(JobMixin, Base):
    """A queued job."""

    __tablename__ = "job"


class ArchivedJob(ArchivedJobMixin, Base):
    """A finished job."""

    __tablename__ = "archived_job"


class RunningJob(RunningJobMixin, Base):
    """The marker of a running job."""

    __tablename__ = "running"


@dataclass(frozen=True)
class WelcomeMail:
    """The payload of a job."""

    sign_up_id: UUID
    address: str


class MailRefusedError(Exception):
    """The mail server rejected a mail."""


class PaymentDeclinedError(Exception):
    """The payment for a sign-up was declined."""


class MailServer:
    """An external service that is slow and flaky, and does not take part in transactions."""

    def __init__(self) -> None:
        self.accepted: list[str] = []
        self.refused: int = 0
        self._tries: dict[str, int] = {}
        self._lock = Lock()

    def send(self, address: str) -> None:
        """Accept a mail, or raise :class:`MailRefusedError`."""
        sleep(0.03)
        with self._lock:
            tries = self._tries[address] = self._tries.get(address, 0) + 1
            if address.startswith("nobody"):
                self.refused += 1
                msg = f"550 no such mailbox: {address}"
                raise MailRefusedError(msg)
            number = int("".join(filter(str.isdigit, address)))
            if tries <= (number % 7 == 0) + (number % 35 == 0):
                self.refused += 1
                msg = f"451 server busy: {address}"
                raise MailRefusedError(msg)
            self.accepted.append(address)


def welcome_mails(server: MailServer) -> tuple[Handlers, Handler[WelcomeMail, Any, None]]:
    """Return the handlers of the service, and the handler that sends mails with ``server``."""
    handlers = Handlers()

    @handlers("welcome-mail", retry=RETRY)
    def send_welcome(mail: WelcomeMail, session: Session) -> None:
        person = session.get_one(SignUp, mail.sign_up_id)
        person.mails += 1
        session.flush()  # written before the mail is sent; rolled back if sending fails
        server.send(mail.address)

    return handlers, send_welcome


@dataclass
class SignUps:
    """The results of the sign-ups."""

    committed: int = 0
    declined: list[UUID] = field(default_factory=list)
    taken: list[UUID] = field(default_factory=list)

    @property
    def rolled_back(self) -> list[UUID]:
        """The sign-ups that were rolled back."""
        return self.declined + self.taken


def sign_up(
    engine: Engine,
    address: str,
    send_welcome: Handler[WelcomeMail, Any, None],
    result: SignUps,
    *,
    pays: bool,
) -> None:
    """Sign up a person, in one transaction that commits both the person and the job, or neither."""
    sign_up_id = uuid7()
    try:
        with Session(engine) as session, session.begin():
            session.add(SignUp(id=sign_up_id, address=address))
            send_welcome.enqueue(session, WelcomeMail(sign_up_id, address), job_model=Job)
            session.flush()  # now both the person and the job are in the database
            _charge(pays=pays)
        result.committed += 1
    except PaymentDeclinedError:
        result.declined.append(sign_up_id)
    except IntegrityError:
        result.taken.append(sign_up_id)


def _charge(*, pays: bool) -> None:
    if not pays:
        raise PaymentDeclinedError

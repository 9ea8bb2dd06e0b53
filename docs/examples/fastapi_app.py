"""A web application that runs a worker in its event loop.

`uvicorn fastapi_app:app` serves it, if the job tables exist. Run as a program, it creates them and
sends some requests to itself.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqlalchemy_proletarian import Handlers, migrate
from sqlalchemy_proletarian.asyncio import AsyncQueueWorker

url = os.environ["DATABASE_URL"]
engine = create_async_engine(url)
sessions = async_sessionmaker(engine)
handlers = Handlers()


class Base(DeclarativeBase):
    """Your own declarative base."""


class User(Base):
    """One of your models."""

    __tablename__ = "app_user"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    welcomed: Mapped[bool] = mapped_column(default=False)


@dataclass
class Welcome:
    """The payload of the job."""

    user_id: int


@handlers("welcome")
async def welcome(payload: Welcome, session: AsyncSession) -> None:
    """Welcome a user; the session commits when the job completes."""
    user = await session.get_one(User, payload.user_id)
    await asyncio.sleep(0.1)  # the mail server
    print(f"Welcome, {user.email}!")
    user.welcomed = True


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Start the worker with the application, and stop it before the application ends."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncQueueWorker(engine, handlers):
        yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.post("/users", status_code=201)
async def sign_up(email: str) -> int:
    """Add a user and a job in one transaction."""
    async with sessions.begin() as session:
        user = User(email=email)
        session.add(user)
        await session.flush()  # assigns user.id
        welcome.enqueue(session, Welcome(user.id))  # without await: it only adds an object
        return user.id


@app.get("/users/{user_id}")
async def show(user_id: int) -> dict[str, str | bool]:
    """Return the user, and whether the user has been welcomed."""
    async with sessions() as session:
        user = await session.get_one(User, user_id)
        return {"email": user.email, "welcomed": user.welcomed}


async def main() -> None:
    """Start the application, sign up a user, and wait until the job has run."""
    transport = ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=transport, base_url="http://app") as client,
    ):
        user_id = (await client.post("/users", params={"email": "ada@example.com"})).json()
        user = {"welcomed": False}
        while not user["welcomed"]:
            await asyncio.sleep(0.1)
            user = (await client.get(f"/users/{user_id}")).json()
        print(f"{user['email']} was welcomed: {user['welcomed']}")


if __name__ == "__main__":
    migrate.upgrade(url)  # creates the job tables
    asyncio.run(main())

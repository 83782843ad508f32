"""The servers measured beside `receiver`: no-op, a plain handler, and a queue in front of whatever comes later.

All run under the same uvicorn as `receiver serve`: httptools, uvloop, one process, no access log. This file is run, as
`python endpoints.py NAME PORT [ARGUMENT]`.
"""

import sys
from datetime import datetime
from typing import Any

import uvicorn
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from sqlalchemy import event
from sqlmodel import Field as Column
from sqlmodel import Session, SQLModel, create_engine, select
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


def noop(_: str) -> Starlette:
    """Reads the body and answers."""

    async def receive(request: Request) -> Response:
        await request.body()
        return Response()

    return Starlette(routes=[Route("/callbacks", receive, methods=["POST"])])


class InnerMessage(BaseModel):
    id: str
    time: datetime
    to: list[str]
    sender: str = Field(alias="from")
    application_id: str = Field(alias="applicationId")


class DeliveryCallback(BaseModel):
    model_config = ConfigDict(extra="allow")

    type: str
    time: datetime
    to: str
    description: str
    message: InnerMessage


class MessageStatus(SQLModel, table=True):
    message_id: str = Column(primary_key=True)
    recipient: str = Column(primary_key=True)
    sender: str
    status: str
    description: str
    event_time: datetime


_array = TypeAdapter(list[DeliveryCallback])


def plain(path: str) -> Starlette:
    """Validates with pydantic, looks the row up, writes it, commits: once per request."""
    engine = create_engine(f"sqlite:///{path}", connect_args={"check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _(connection: Any, __: Any) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")

    SQLModel.metadata.tables["messagestatus"].create(engine)

    async def receive(request: Request) -> Response:
        with Session(engine) as session:
            for callback in _array.validate_json(await request.body()):
                key = (callback.message.id, callback.to)
                found = select(MessageStatus).where(
                    MessageStatus.message_id == key[0], MessageStatus.recipient == key[1]
                )
                row = session.exec(found).first() or MessageStatus(message_id=key[0], recipient=key[1])
                row.sender, row.status = callback.message.sender, callback.type
                row.description, row.event_time = callback.description, callback.time
                session.add(row)
            session.commit()
        return Response()

    return Starlette(routes=[Route("/callbacks", receive, methods=["POST"])])


def queue(url: str) -> Any:
    """FastAPI in its cheapest form: the body as it came, appended to a list of Redis."""
    from fastapi import FastAPI
    from redis.asyncio import Redis

    app, redis = FastAPI(), Redis.from_url(url)

    @app.post("/callbacks")
    async def receive(request: Request) -> Response:
        await redis.lpush("callbacks", await request.body())
        return Response()

    return app


def main(name: str, port: str, argument: str = "") -> None:
    app = {"noop": noop, "plain": plain, "queue": queue}[name](argument)
    uvicorn.run(app, port=int(port), http="httptools", loop="uvloop", log_level="warning", access_log=False)


if __name__ == "__main__":
    main(*sys.argv[1:])

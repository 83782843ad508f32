"""Operations on sinks: their state, test, pause, resume and replay, while a worker publishes to them."""

from datetime import datetime
from functools import partial
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from receiver.api.operations import Call, Handle, Listed, Operation, by_cursor, by_number
from receiver.errors import Unknown
from receiver.models.columns import Read, Time
from receiver.models.parameters import Moment, Text, encode_cursor, moment
from receiver.models.queries import DryRunQuery, ReplayQuery, SinkQuery
from receiver.models.sinks import ReplayAction, ReplayRead, SinkRead
from receiver.sinks.registry import filter_of, probe_sink
from receiver.storage import replays, sinks


class SinkTest(Read):
    """Whether a sink can be reached, and the error if not. Nothing is published to it."""

    ok: bool
    error: str | None
    seconds: float


def _since(value: Any) -> Any:
    if value == "beginning":
        return value
    if not isinstance(value, str):
        raise ValueError('must be "beginning" or a time')
    return moment(value)


Since = Annotated[
    Literal["beginning"] | datetime,
    BeforeValidator(_since),
    WithJsonSchema({"anyOf": [{"const": "beginning"}, {"type": "string", "format": "date-time-prefix"}]}),
]


_MAX_MESSAGES: Final = 1000


class ReplayRequest(BaseModel):
    """A replay of the events that were received from a time on, or of the events of given messages."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    from_: Since | None = Field(
        None,
        alias="from",
        description="`beginning` (the oldest stored event), or a time: events received from then on; required without "
        "`messageIds`",
    )
    until: Moment | None = Field(None, description="only events that were received before this time")
    message_ids: list[Text] = Field(
        [], alias="messageIds", max_length=_MAX_MESSAGES, description="only the events of messages with these ids"
    )

    @model_validator(mode="after")
    def _is_bounded(self) -> Self:
        if self.from_ is None and not self.message_ids:
            raise ValueError("give from, messageIds, or both")
        if isinstance(self.from_, datetime) and self.until is not None and self.until <= self.from_:
            raise ValueError("until must be later than from")
        return self


class ReplayResponse(Read):
    """The events of a replay that was started, or of a dry run: those that the sink's filter accepts.

    `id` is null where no replay was started: after a dry run, or because there is no event. `at_least`: there may be
    more than `events`, because the range is too long to count.
    """

    id: int | None
    sink: str
    events: int
    at_least: bool
    after_position: int
    to_position: int
    first_time: Time | None
    dry_run: bool


async def list_sinks(call: Call) -> Listed[SinkRead]:
    page = await sinks.find(call.database, call.query, call.context.sink_types, now=call.context.clock())
    return by_number(page, call.query)


async def get_sink(call: Call) -> SinkRead:
    return await sinks.with_name(call.database, call.path["name"], call.context.sink_types, now=call.context.clock())


async def check_sink(call: Call) -> SinkTest:
    name = call.path["name"]
    if name not in call.context.sinks:
        raise Unknown(f"the settings have no sink {name}")
    return SinkTest.model_validate(await probe_sink(call.context.sinks[name]))


async def pause_sink(call: Call, *, paused: bool) -> SinkRead:
    await sinks.pause(call.database, call.path["name"], paused=paused)
    return await get_sink(call)


async def replay_sink(call: Call) -> ReplayResponse:
    name, dry_run, request = call.path["name"], call.query.dry_run, call.body
    since: replays.Since = request.from_ if request.from_ is not None else "beginning"
    table = call.context.sinks.get(name)
    accepts = filter_of(table) if table is not None else None
    only = {"until": request.until, "message_ids": request.message_ids, "accepts": accepts}
    if dry_run:
        started, log_range = None, await replays.log_range(call.database, name, since, **only)
    else:
        started, log_range = await replays.begin(call.database, name, since, now=call.context.clock(), **only)
    return ReplayResponse(
        id=started.id if started is not None else None,
        sink=name,
        events=log_range.events,
        at_least=log_range.at_least,
        after_position=log_range.after_position,
        to_position=log_range.to_position,
        first_time=log_range.first_at,
        dry_run=dry_run,
    )


async def list_replays(call: Call) -> Listed[ReplayRead]:
    async with call.database.reading() as connection:
        await sinks.row_of(connection, call.path["name"])
        page = await replays.find(connection, call.path["name"], call.query)
    return by_cursor(page, lambda replay: encode_cursor([str(replay.id)]))


async def act_on_replay(call: Call, *, action: ReplayAction) -> ReplayRead:
    """Acts on the replay with the id in the path; a command has none, and acts on the open replay."""
    name, number = call.path["name"], call.path.get("id")
    if number is not None and not (number.isascii() and number.isdecimal() and len(number) < _DIGITS):
        raise Unknown(f"there is no such replay to {name}")
    replay_id = int(number) if number is not None else None
    return await replays.act(call.database, name, action, now=call.context.clock(), replay_id=replay_id)


# The largest number of the database has 19 digits.
_DIGITS: Final = 19
_NAME: Final = {"name": "the name of the sink"}


def _operation(
    name: str, path: str, summary: str, handle: Handle, answer: Any, *problems: int, **more: Any
) -> Operation:
    """An operation on one sink or one of its replays; a POST changes something, so it needs an admin's token."""
    is_post = more.get("method") == "POST"
    path_words = {**_NAME, **({"id": "the id of the replay"} if "{id}" in path else {})}
    return Operation(
        name=name,
        path=f"/api/sinks/{{name}}{path}",
        summary=summary,
        handle=handle,
        answer=answer,
        problems=(*((403,) if is_post else ()), 404, *problems),
        path_words=path_words,
        **more,
    )


def _replay_operation(action: ReplayAction, summary: str) -> Operation:
    handle = partial(act_on_replay, action=action)
    return _operation(f"{action}Replay", f"/replays/{{id}}/{action}", summary, handle, ReplayRead, 409, method="POST")


OPERATIONS: Final = (
    Operation(
        name="listSinks",
        path="/api/sinks",
        summary="List the sinks with their state, lag, retries and dead letters",
        handle=list_sinks,
        query=SinkQuery,
        answer=list[SinkRead],
        has_next=True,
    ),
    _operation("getSink", "", "Get one sink", get_sink, SinkRead),
    _operation(
        "testSink",
        "/test",
        "Test whether a sink can be reached, without publishing to it",
        check_sink,
        SinkTest,
        method="POST",
    ),
    _operation(
        "pauseSink",
        "/pause",
        "Stop publishing to a sink; its events wait",
        partial(pause_sink, paused=True),
        SinkRead,
        method="POST",
    ),
    _operation(
        "resumeSink",
        "/resume",
        "Publish to a paused sink again, from its cursor on",
        partial(pause_sink, paused=False),
        SinkRead,
        method="POST",
    ),
    _operation(
        "replaySink",
        "/replay",
        "Publish old events to a sink again, with the same ids, beside new events",
        replay_sink,
        ReplayResponse,
        409,
        410,
        413,
        415,
        method="POST",
        description="From a time on, or from the oldest stored event, up to a time or the sink's cursor; all events or "
        "those of given messages. One replay at a time.",
        query=DryRunQuery,
        body=ReplayRequest,
    ),
    _operation(
        "listReplays",
        "/replays",
        "List the replays to a sink, newest first",
        list_replays,
        list[ReplayRead],
        query=ReplayQuery,
        has_next=True,
    ),
    _replay_operation("pause", "Pause a replay; retention does not remove its events"),
    _replay_operation("resume", "Resume a paused replay from its position on"),
    _replay_operation("cancel", "Cancel a replay for good; events already published stay published"),
)

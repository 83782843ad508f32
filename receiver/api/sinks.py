"""Operations on sinks: their state, test, pause, resume and replay, while a worker publishes to them."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from receiver.api.answers import json_answer, next_page, read_body
from receiver.api.operations import ApiContext, Handle, Operation, path_value
from receiver.api.parameter_kinds import encode_cursor
from receiver.api.parameters import DryRunParameters, Parameters, ReplayParameters, SinkParameters
from receiver.api.representations import Replay, ReplayRequest, ReplayResponse, Sink, SinkTest
from receiver.domain.queries import ReplayAction
from receiver.errors import Unknown
from receiver.sinks.registry import probe_sink
from receiver.storage import replays, sinks


async def list_sinks(context: ApiContext, request: Request, parameters: SinkParameters) -> Response:
    page = await sinks.find(
        context.database,
        _types(context),
        now=context.clock(),
        order=parameters.sort_order,
        skip=parameters.skip,
        size=parameters.size,
    )
    link = next_page(request, context.public_url, page=str(parameters.page + 1)) if page.more else None
    return json_answer([Sink.model_validate(view) for view in page.items], link=link)


async def get_sink(context: ApiContext, request: Request, _: Parameters) -> Response:
    return await _sink(context, path_value(request, "name"))


async def check_sink(context: ApiContext, request: Request, _: Parameters) -> Response:
    name = path_value(request, "name")
    if name not in context.sinks:
        raise Unknown("the settings have no sink with this name")
    return json_answer(SinkTest.model_validate(await probe_sink(context.sinks[name])))


async def pause_sink(context: ApiContext, request: Request, _: Parameters) -> Response:
    return await _pause(context, request, paused=True)


async def resume_sink(context: ApiContext, request: Request, _: Parameters) -> Response:
    return await _pause(context, request, paused=False)


async def _pause(context: ApiContext, request: Request, *, paused: bool) -> Response:
    name = path_value(request, "name")
    await sinks.pause(context.database, name, paused=paused)
    return await _sink(context, name)


async def _sink(context: ApiContext, name: str) -> Response:
    return json_answer(
        Sink.model_validate(await sinks.one(context.database, name, _types(context), now=context.clock()))
    )


def _types(context: ApiContext) -> dict[str, str]:
    return {name: str(table.get("type")) for name, table in context.sinks.items()}


async def replay_sink(context: ApiContext, request: Request, parameters: DryRunParameters) -> Response:
    name = path_value(request, "name")
    since = (await read_body(request, ReplayRequest)).from_
    if parameters.dry_run:
        begun, log_range = None, await replays.log_range(context.database, name, since)
    else:
        begun, log_range = await replays.begin(context.database, name, since, now=context.clock())
    return json_answer(ReplayResponse.of(name, begun, log_range, dry_run=parameters.dry_run))


async def list_replays(context: ApiContext, request: Request, parameters: ReplayParameters) -> Response:
    name = path_value(request, "name")
    async with context.database.reading() as connection:
        await sinks.row_of(connection, name)
        page = await replays.find(
            connection,
            name,
            order=parameters.sort_order,
            after=parameters.cursor,
            skip=parameters.skip,
            size=parameters.size,
        )
    cursor = encode_cursor([str(page.items[-1].id)]) if page.more else ""
    link = next_page(request, context.public_url, cursor=cursor) if page.more else None
    return json_answer([Replay.model_validate(view) for view in page.items], link=link)


def _replay_handler(action: ReplayAction) -> Handle:
    async def act(context: ApiContext, request: Request, _: Parameters) -> Response:
        name, number = path_value(request, "name"), path_value(request, "id")
        if not (number.isascii() and number.isdecimal() and len(number) < _DIGITS):
            raise Unknown("there is no replay with this id")
        replay = await replays.act(context.database, name, action, now=context.clock(), replay_id=int(number))
        return json_answer(Replay.model_validate(replay))

    return act


# The largest number of the database has 19 digits.
_DIGITS: Final = 19
_NAME: Final = {"name": "the name of the sink"}
_ID: Final = {**_NAME, "id": "the id of the replay"}


def _replay_operation(action: ReplayAction, summary: str) -> Operation:
    return Operation(
        name=f"{action}Replay",
        method="POST",
        path=f"/api/sinks/{{name}}/replays/{{id}}/{action}",
        summary=summary,
        handle=_replay_handler(action),
        answer=Replay,
        problems=(403, 404, 409),
        path_words=_ID,
    )


OPERATIONS: Final = (
    Operation(
        name="listSinks",
        path="/api/sinks",
        summary="List the sinks with their state, lag, retries and dead letters",
        handle=list_sinks,
        parameters=SinkParameters,
        answer=list[Sink],
        has_next=True,
    ),
    Operation(
        name="getSink",
        path="/api/sinks/{name}",
        summary="Get one sink",
        handle=get_sink,
        answer=Sink,
        problems=(404,),
        path_words=_NAME,
    ),
    Operation(
        name="testSink",
        method="POST",
        path="/api/sinks/{name}/test",
        summary="Test whether a sink can be reached, without publishing to it",
        handle=check_sink,
        answer=SinkTest,
        problems=(403, 404),
        path_words=_NAME,
    ),
    Operation(
        name="pauseSink",
        method="POST",
        path="/api/sinks/{name}/pause",
        summary="Stop publishing to a sink; its events wait",
        handle=pause_sink,
        answer=Sink,
        problems=(403, 404),
        path_words=_NAME,
    ),
    Operation(
        name="resumeSink",
        method="POST",
        path="/api/sinks/{name}/resume",
        summary="Publish to a paused sink again, from its cursor on",
        handle=resume_sink,
        answer=Sink,
        problems=(403, 404),
        path_words=_NAME,
    ),
    Operation(
        name="replaySink",
        method="POST",
        path="/api/sinks/{name}/replay",
        summary="Publish old events to a sink again, with the same ids, beside new events",
        description="From a time on, or from the oldest stored event, up to the sink's cursor; one replay at a time.",
        handle=replay_sink,
        parameters=DryRunParameters,
        body=ReplayRequest,
        answer=ReplayResponse,
        problems=(403, 404, 409, 410, 413, 415),
        path_words=_NAME,
    ),
    Operation(
        name="listReplays",
        path="/api/sinks/{name}/replays",
        summary="List the replays to a sink, newest first",
        handle=list_replays,
        parameters=ReplayParameters,
        answer=list[Replay],
        has_next=True,
        problems=(404,),
        path_words=_NAME,
    ),
    _replay_operation("pause", "Pause a replay; retention does not remove its events"),
    _replay_operation("resume", "Resume a paused replay from its position on"),
    _replay_operation("cancel", "Cancel a replay for good; events already published stay published"),
)

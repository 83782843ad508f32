"""Sinks: how they are doing, and what an operator may do to them, also while they are worked for."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from receiver.api.answers import json_answer, next_page, read_body
from receiver.api.operations import Api, Handle, Operation, path_value
from receiver.api.parameter_kinds import encode_cursor
from receiver.api.parameters import DryRunParameters, Parameters, ReplayParameters, SinkParameters
from receiver.api.representations import BegunReplay, Replay, ReplayRequest, Sink, SinkTest
from receiver.domain.queries import ReplayAction
from receiver.errors import Unknown
from receiver.sinks.probe import try_out
from receiver.storage import replays, sinks


async def list_sinks(api: Api, request: Request, asked: SinkParameters) -> Response:
    page = await sinks.find(
        api.database, _types(api), now=api.clock(), order=asked.sort_order, skip=asked.skip, size=asked.size
    )
    link = next_page(request, api.public_url, page=str(asked.page + 1)) if page.more else None
    return json_answer([Sink.model_validate(view) for view in page.items], link=link)


async def get_sink(api: Api, request: Request, _: Parameters) -> Response:
    return await _sink(api, path_value(request, "name"))


async def try_sink(api: Api, request: Request, _: Parameters) -> Response:
    name = path_value(request, "name")
    if name not in api.sinks:
        raise Unknown("there is no sink of this name in the settings")
    return json_answer(SinkTest.model_validate(await try_out(api.sinks[name])))


async def pause_sink(api: Api, request: Request, _: Parameters) -> Response:
    return await _paused(api, request, paused=True)


async def resume_sink(api: Api, request: Request, _: Parameters) -> Response:
    return await _paused(api, request, paused=False)


async def _paused(api: Api, request: Request, *, paused: bool) -> Response:
    name = path_value(request, "name")
    await sinks.pause(api.database, name, paused=paused)
    return await _sink(api, name)


async def _sink(api: Api, name: str) -> Response:
    return json_answer(Sink.model_validate(await sinks.one(api.database, name, _types(api), now=api.clock())))


def _types(api: Api) -> dict[str, str]:
    return {name: str(table.get("type")) for name, table in api.sinks.items()}


async def replay_sink(api: Api, request: Request, asked: DryRunParameters) -> Response:
    name = path_value(request, "name")
    since = (await read_body(request, ReplayRequest)).from_
    if asked.dry_run:
        begun, log_range = None, await replays.log_range(api.database, name, since)
    else:
        begun, log_range = await replays.begin(api.database, name, since, now=api.clock())
    return json_answer(BegunReplay.of(name, begun, log_range, dry_run=asked.dry_run))


async def list_replays(api: Api, request: Request, asked: ReplayParameters) -> Response:
    name = path_value(request, "name")
    async with api.database.reading() as connection:
        await sinks.row_of(connection, name)
        page = await replays.find(
            connection, name, order=asked.sort_order, after=asked.cursor, skip=asked.skip, size=asked.size
        )
    cursor = encode_cursor([str(page.items[-1].id)]) if page.more else ""
    link = next_page(request, api.public_url, cursor=cursor) if page.more else None
    return json_answer([Replay.model_validate(one) for one in page.items], link=link)


def _acting(action: ReplayAction) -> Handle:
    async def act(api: Api, request: Request, _: Parameters) -> Response:
        name, number = path_value(request, "name"), path_value(request, "id")
        if not (number.isascii() and number.isdecimal() and len(number) < _DIGITS):
            raise Unknown("there is no replay with this id")
        replay = await replays.act(api.database, name, action, now=api.clock(), replay_id=int(number))
        return json_answer(Replay.model_validate(replay))

    return act


# more than the database's numbers have
_DIGITS: Final = 19
_NAME: Final = {"name": "the sink's name"}
_ID: Final = {**_NAME, "id": "the replay's id"}


def _replay_operation(action: ReplayAction, summary: str) -> Operation:
    return Operation(
        name=f"{action}Replay",
        method="POST",
        path=f"/api/sinks/{{name}}/replays/{{id}}/{action}",
        summary=summary,
        handle=_acting(action),
        answer=Replay,
        problems=(403, 404, 409),
        path_words=_ID,
    )


OPERATIONS: Final = (
    Operation(
        name="listSinks",
        path="/api/sinks",
        summary="The sinks, with what each still has before it",
        handle=list_sinks,
        parameters=SinkParameters,
        answer=list[Sink],
        has_next=True,
    ),
    Operation(
        name="getSink",
        path="/api/sinks/{name}",
        summary="One sink",
        handle=get_sink,
        answer=Sink,
        problems=(404,),
        path_words=_NAME,
    ),
    Operation(
        name="testSink",
        method="POST",
        path="/api/sinks/{name}/test",
        summary="Tells whether a sink can be reached from here; it is given nothing",
        handle=try_sink,
        answer=SinkTest,
        problems=(403, 404),
        path_words=_NAME,
    ),
    Operation(
        name="pauseSink",
        method="POST",
        path="/api/sinks/{name}/pause",
        summary="Has nothing more published to a sink; what comes meanwhile waits",
        handle=pause_sink,
        answer=Sink,
        problems=(403, 404),
        path_words=_NAME,
    ),
    Operation(
        name="resumeSink",
        method="POST",
        path="/api/sinks/{name}/resume",
        summary="Has events published to a sink again, from where it was",
        handle=resume_sink,
        answer=Sink,
        problems=(403, 404),
        path_words=_NAME,
    ),
    Operation(
        name="replaySink",
        method="POST",
        path="/api/sinks/{name}/replay",
        summary="Gives a sink old events again, with the same ids, beside those that are new",
        description="From a time on, or from the oldest event kept, up to where the sink is now. One replay at a time.",
        handle=replay_sink,
        parameters=DryRunParameters,
        body=ReplayRequest,
        answer=BegunReplay,
        problems=(403, 404, 409, 410, 413, 415),
        path_words=_NAME,
    ),
    Operation(
        name="listReplays",
        path="/api/sinks/{name}/replays",
        summary="The replays to a sink, newest first",
        handle=list_replays,
        parameters=ReplayParameters,
        answer=list[Replay],
        has_next=True,
        problems=(404,),
        path_words=_NAME,
    ),
    _replay_operation("pause", "Has a replay wait; it keeps its events from being forgotten"),
    _replay_operation("resume", "Has a replay go on from where it was"),
    _replay_operation("cancel", "Ends a replay for good; what it gave was given"),
)

"""The pages for operators: sinks with their backlog, one sink with its replays, and dead letters."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from pydantic import ValidationError
from starlette.responses import Response

from receiver.api import dead_letters, sinks
from receiver.api.dead_letters import DeadLetterActionResult
from receiver.api.operations import Listed
from receiver.api.problems import ProblemError, as_problem, invalid_values_problem
from receiver.api.routing import invalid_values
from receiver.api.sinks import ReplayRequest, ReplayResponse, SinkTest
from receiver.domain.publication import DeadLetterReason
from receiver.errors import Conflict, Expired
from receiver.models.queries import DeadLetterChoice, DryRunQuery, ReplayQuery, SinkQuery
from receiver.models.sinks import DeadLetterRead, ReplayRead, SinkRead
from receiver.pages.steps import Work, count_of, fixed_times
from receiver.pages.visit import Visit
from receiver.storage import dead_letters as stored
from receiver.storage.dead_letters import Action

_SINKS: Final = {operation.name: operation for operation in sinks.OPERATIONS}
_DEAD_LETTERS: Final = {operation.name: operation for operation in dead_letters.OPERATIONS}
# The words of a button, and the operation that it performs.
_REPLAY_ACTIONS: Final = {"pause": "pauseReplay", "resume": "resumeReplay", "cancel": "cancelReplay"}
_CHOSEN_BY: Final = ("reason", "messageId", "eventId", "fromDateTime", "toDateTime")


async def list_page(visit: Visit) -> Response:
    """All sinks: state, backlog, dead letters. The page follows them live."""
    found: Listed[SinkRead] = await visit.perform(_SINKS["listSinks"], query=visit.query(_SINKS["listSinks"].query))
    next_page = visit.next_page(found)
    return visit.page("sinks.html", sinks=found.items, next_page=next_page)


async def sink_page(visit: Visit) -> Response:
    """One sink: its state and backlog, the last error, its replays, and what an operator can do."""
    return await _shown(visit)


async def _shown(visit: Visit, **results: Any) -> Response:
    name = {"name": visit.segment("name")}
    sink: SinkRead = await visit.perform(_SINKS["getSink"], path=name)
    replays: Listed[ReplayRead] = await visit.perform(_SINKS["listReplays"], path=name, query=ReplayQuery(size=10))
    shown: dict[str, Any] = {"done": None, "test": None, "replay": None, "problem": None, **results}
    status = shown["problem"].status if shown["problem"] is not None else 200
    return visit.page("sink.html", status=status, sink=sink, replays=replays.items, form=visit.form, **shown)


async def act(visit: Visit) -> Response:
    """Does what the pressed button says, and shows the sink with the result."""
    action = visit.form.get("action", "")
    try:
        return await _shown(visit, **await _result(visit, action))
    except (Conflict, Expired) as error:
        return await _shown(visit, problem=ProblemError(409, as_problem(error).detail))
    except ProblemError as error:
        if error.status != 400:
            raise
        return await _shown(visit, problem=error)


async def _result(visit: Visit, action: str) -> Mapping[str, Any]:
    name = {"name": visit.segment("name")}
    if action == "test":
        test: SinkTest = await visit.perform(_SINKS["testSink"], path=name)
        return {"test": test}
    if action in ("pause", "resume"):
        await visit.perform(_SINKS[f"{action}Sink"], path=name)
        return {"done": "The sink is paused: its events wait." if action == "pause" else "The sink goes on."}
    if action in ("count", "replay"):
        is_dry_run = action == "count"
        response: ReplayResponse = await visit.perform(
            _SINKS["replaySink"], path=name, body=_replay_request(visit.form), query=DryRunQuery(dry_run=is_dry_run)
        )
        return {"replay": response}
    verb, _, replay_id = action.partition("-replay-")
    if verb in _REPLAY_ACTIONS:
        replay: ReplayRead = await visit.perform(_SINKS[_REPLAY_ACTIONS[verb]], path={**name, "id": replay_id})
        return {"done": f"The replay is {replay.state}."}
    raise ProblemError(400, "This page has no such button.")


def _replay_request(form: Mapping[str, str]) -> ReplayRequest:
    ids = form.get("messageIds", "").replace(",", " ").split()
    given = {"from": form.get("from", "").strip(), "until": form.get("until", "").strip()}
    try:
        return ReplayRequest.model_validate({**{name: text for name, text in given.items() if text}, "messageIds": ids})
    except ValidationError as error:
        raise invalid_values_problem(invalid_values(error)) from None


# --- dead letters ---

# A step of the work on many dead letters; between two steps the page shows how far it is.
STEP_SECONDS: Final = 0.5
_ACTIONS: Final[Mapping[str, Action]] = {"requeue": stored.requeue, "drop": stored.drop}
_DONE: Final = {"requeue": "requeued", "drop": "removed for good"}


async def dead_letters_page(visit: Visit) -> Response:
    """Dead letters, oldest first."""
    return await _dead_letters(visit)


async def _dead_letters(visit: Visit, **results: Any) -> Response:
    shown: dict[str, Any] = {"counted": None, "choice": {}, "action": None, "work": None, "problem": None, **results}
    found: Listed[DeadLetterRead] | None = None
    if shown["problem"] is None:
        found, shown["problem"] = await visit.filtered(_DEAD_LETTERS["listDeadLetters"])
    every: Listed[SinkRead] = await visit.perform(_SINKS["listSinks"], query=SinkQuery(size=1000))
    return await visit.filtered_page(
        "dead_letters.html",
        shown.pop("problem"),
        letters=found.items if found is not None else [],
        next_page=visit.next_page(found),
        given={name: value for name, value in visit.parameters if value},
        sinks={sink.name: sum(sink.dead_letters.values()) for sink in every.items},
        reasons=[reason.value for reason in DeadLetterReason],
        **shown,
    )


async def act_on_dead_letters(visit: Visit) -> Response:
    """Counts, requeues or drops the dead letters of a sink that the filters of the page choose, or one of them.

    Those of many are handled in steps, and only those that were counted.
    """
    verb, _, mode = visit.form.get("action", "").partition("-")
    if verb not in _ACTIONS or mode not in ("", "count", "one"):
        raise ProblemError(400, "This page has no such button.")
    names = ("sink", "id") if mode == "one" else ("sink", *_CHOSEN_BY)
    chosen = {name: value for name in names if (value := visit.form.get(name, "").strip())}
    try:
        query = _dead_letter_choice(chosen, dry_run=mode == "count")
    except ValidationError as error:
        return await _dead_letters(visit, problem=invalid_values_problem(invalid_values(error)))
    choice = {**chosen, **fixed_times(query.since, query.until, visit.now)}
    handle = partial(dead_letters.act_on_dead_letters, action=_ACTIONS[verb], seconds=STEP_SECONDS)
    step = replace(_DEAD_LETTERS[f"{verb}DeadLetters"], handle=handle)
    result: DeadLetterActionResult = await visit.perform(step, query=query)
    if mode == "count":
        return await _dead_letters(visit, counted=result.dead_letters, choice=choice, action=verb)
    done = count_of(visit.form, "done") + result.dead_letters
    work = Work(
        sentence=_DONE[verb],
        done=done,
        total=done + result.left,
        fields={**choice, "action": verb, "done": str(done)} if result.left and mode != "one" else None,
    )
    return await _dead_letters(visit, work=work)


def _dead_letter_choice(chosen: Mapping[str, str], *, dry_run: bool) -> DeadLetterChoice:
    given: dict[str, Any] = {**chosen, "dryRun": "true" if dry_run else "false"}
    if "id" in chosen:
        given["id"] = [chosen["id"]]
    return DeadLetterChoice.model_validate(given, by_alias=True, by_name=False)

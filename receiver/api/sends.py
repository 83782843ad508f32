"""The operation that registers sends: an entry of the journal, which the processor folds like callbacks."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final

from pydantic_core import to_json

from receiver.api.operations import JSON, Call, Operation
from receiver.api.problems import InvalidValue, ProblemError, invalid_values_problem
from receiver.domain.events import REGISTERED, Api, Callback
from receiver.intake.endpoint import new_callback_id
from receiver.models.sends import MAX_SENDS, SendResult, Sends
from receiver.providers.sends import SendError, event_of, expanded, normalized

_MAX_BODY_BYTES: Final = 4 * 1024 * 1024


async def register_sends(call: Call) -> SendResult | list[SendResult]:
    given = call.body.root
    is_list = isinstance(given, list)
    now = call.context.clock()
    members = list(_members(given if is_list else [given]))
    if len(members) > MAX_SENDS:
        raise ProblemError(400, f"These are {len(members)} sends; one request registers at most {MAX_SENDS}.")
    sends: list[dict[str, Any]] = []
    results: list[SendResult] = []
    for index, member in enumerate(members):
        try:
            send = _checked(member, now)
        except SendError as error:
            results.append(_refused(index, member, error))
        else:
            sends.append(send)
            results.append(SendResult(index=index, id=send["id"], api=Api(send["api"]), result="registered"))
    if not is_list and len(results) == 1:
        return await _single(call, results[0], sends, now)
    await _append(call, sends, now)
    return results


async def _single(call: Call, result: SendResult, sends: Sequence[dict[str, Any]], now: datetime) -> SendResult:
    """The answer to a body that is one send: a problem if it cannot be registered."""
    if not sends:
        raise invalid_values_problem([InvalidValue(parameter=result.parameter or "body", detail=result.detail or "")])
    await _append(call, sends, now)
    return result


def _members(given: Sequence[object]) -> Iterator[object]:
    """The sends of a list, and errors in place of results that belong to no request."""
    for one in given:
        try:
            yield from expanded(one)
        except SendError as error:
            yield error


def _checked(member: object, now: datetime) -> dict[str, Any]:
    """A send in the form in which it is stored. Raises SendError."""
    if isinstance(member, SendError):
        raise member
    send = normalized(member)
    event_of(send, _entry(Api(send["api"]), [], now))
    return send


def _refused(index: int, member: object, error: SendError) -> SendResult:
    named = member.get("id") if isinstance(member, dict) else None
    return SendResult(
        index=index,
        id=named if isinstance(named, str) else None,
        api=None,
        result="refused",
        parameter=error.name,
        detail=error.detail,
    )


async def _append(call: Call, sends: Sequence[dict[str, Any]], now: datetime) -> None:
    by_api = {api: [send for send in sends if send["api"] == api] for api in Api}
    for api, of_api in by_api.items():
        if of_api:
            await call.context.append(_entry(api, of_api, now))


def _entry(api: Api, sends: Sequence[dict[str, Any]], now: datetime) -> Callback:
    return Callback(
        id=new_callback_id(now),
        received_at=now,
        api=api,
        route=REGISTERED,
        method="POST",
        headers={"content-type": JSON},
        body=to_json(sends),
    )


OPERATIONS: Final = (
    Operation(
        name="registerSends",
        method="POST",
        path="/api/messages",
        summary="Register messages that were sent, so that silence about them is visible",
        description="The body is what Bandwidth answered to a send, or a list of such. A list is answered by a list "
        "with the result of each send: a wrong one does not stop the others. Registering a send again changes nothing.",
        handle=register_sends,
        body=Sends,
        max_body_bytes=_MAX_BODY_BYTES,
        answer=SendResult | list[SendResult],
        problems=(403, 413, 415),
    ),
)

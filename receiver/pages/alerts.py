"""The pages of alerts: what fires now and what did, and one alert with its evidence, to acknowledge and to mute."""

from datetime import timedelta
from typing import Any, Final

from starlette.responses import Response

from receiver.api.alerts import OPERATIONS, MuteRequest
from receiver.api.operations import Listed, named
from receiver.api.problems import ProblemError, as_problem
from receiver.domain.alerts import RuleType, Severity
from receiver.errors import Conflict
from receiver.models.alerts import AlertRead
from receiver.pages.visit import Visit

_LIST: Final = named(OPERATIONS, "listAlerts")
_GET: Final = named(OPERATIONS, "getAlert")
_ACKNOWLEDGE: Final = named(OPERATIONS, "acknowledgeAlert")
_MUTE: Final = named(OPERATIONS, "muteAlert")
# The durations of the buttons.
_MUTES: Final = {"1h": timedelta(hours=1), "8h": timedelta(hours=8), "7d": timedelta(days=7)}


async def list_page(visit: Visit) -> Response:
    """Alerts, newest first; without a filter those that fire."""
    given = {name: value for name, value in visit.parameters if value}
    shown = given if given else {"status": "firing"}
    filters = {name: "" if value == "any" else value for name, value in shown.items()}
    found: Listed[AlertRead] | None
    found, problem = await visit.filtered(_LIST, **filters)
    return await visit.filtered_page(
        "alerts.html",
        problem,
        alerts=found.items if found is not None else [],
        next_page=visit.next_page(found),
        given=shown,
        rules=[rule.value for rule in RuleType],
        severities=[severity.value for severity in Severity],
    )


async def alert_page(visit: Visit) -> Response:
    """One alert: the sentence, the numbers now and before, the messages, what to do."""
    return await _shown(visit)


async def _shown(visit: Visit, *, done: str | None = None, problem: str | None = None) -> Response:
    alert: AlertRead = await visit.perform(_GET, path={"id": visit.segment("id")})
    is_muted = alert.muted_until is not None and alert.muted_until > visit.now
    return visit.page(
        "alert.html",
        status=409 if problem is not None else 200,
        alert=alert,
        is_muted=is_muted,
        mutes=list(_MUTES),
        done=done,
        problem=problem,
    )


async def act(visit: Visit) -> Response:
    """Acknowledges or mutes the alert, as the pressed button says."""
    path: dict[str, Any] = {"id": visit.segment("id")}
    action = visit.form.get("action", "")
    try:
        if action == "acknowledge":
            await visit.perform(_ACKNOWLEDGE, path=path)
            return await _shown(visit, done="The alert is acknowledged.")
        if action == "unmute":
            await visit.perform(_MUTE, path=path, body=MuteRequest(until=None))
            return await _shown(visit, done="The alert is not muted any more.")
        if (duration := _MUTES.get(action.removeprefix("mute-"))) is not None:
            until = visit.now + duration
            await visit.perform(_MUTE, path=path, body=MuteRequest(until=until))
            return await _shown(visit, done="The alert is muted: nobody is notified of it.")
    except Conflict as error:
        return await _shown(visit, problem=as_problem(error).detail)
    raise ProblemError(400, "This page has no such button.")

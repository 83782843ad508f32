"""The pages of alerts: what fires now and what did, and one alert with its evidence, who was notified, and actions."""

from functools import partial
from typing import Any, Final

from starlette.responses import Response

from receiver.api import notifications
from receiver.api.alerts import OPERATIONS, MuteRequest
from receiver.api.operations import Listed, named
from receiver.api.problems import ProblemError, as_problem
from receiver.domain.alerts import RuleType, Severity
from receiver.errors import Conflict
from receiver.models.alerts import AlertRead, NotificationRead
from receiver.pages.visit import Visit, duration

_LIST: Final = named(OPERATIONS, "listAlerts")
_GET: Final = named(OPERATIONS, "getAlert")
_ACKNOWLEDGE: Final = named(OPERATIONS, "acknowledgeAlert")
_MUTE: Final = named(OPERATIONS, "muteAlert")
_RESOLVE: Final = named(OPERATIONS, "resolveAlert")
_NOTIFICATIONS: Final = named(notifications.OPERATIONS, "listNotifications")
_MUTES: Final = {"1h": "1 hour", "4h": "4 hours", "8h": "8 hours", "1d": "1 day", "7d": "7 days", "30d": "30 days"}


# What the numbers of a rule are; those of the others are counts.
_SHARES: Final = frozenset({RuleType.FAILURE_RATE, RuleType.SLOW_DELIVERY, RuleType.STORAGE})
_SECONDS: Final = frozenset({RuleType.PROCESSOR_BEHIND, RuleType.SINK_DOWN, RuleType.SINK_BEHIND})


def quantity(rule: RuleType, value: float) -> str:
    """A number of the evidence of an alert, with its unit."""
    # The alert of all further groups counts them.
    if rule in _SHARES and value <= 1:
        return f"{value * 100:.0f} %"
    if rule in _SECONDS:
        return duration(value)
    return f"{value:,.0f}" if value == int(value) else f"{value:,.2f}"


async def list_page(visit: Visit) -> Response:
    """Alerts, newest first; without a filter those that fire."""
    given = {name: value for name, value in visit.parameters if value}
    shown = given if given else {"status": "firing"}
    filters = {name: "" if value == "any" else value for name, value in shown.items()}
    found: Listed[AlertRead] | None
    found, problem = await visit.filtered(_LIST, filters)
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
    """One alert: the sentence, the numbers now and before, the messages, who was notified, what to do."""
    return await _shown(visit)


async def _shown(visit: Visit, *, done: str | None = None, problem: str | None = None) -> Response:
    path = {"id": visit.segment("id")}
    alert: AlertRead = await visit.perform(_GET, path=path)
    notified: list[NotificationRead] = await visit.perform(_NOTIFICATIONS, path=path)
    return visit.page(
        "alert.html",
        status=409 if problem is not None else 200,
        alert=alert,
        is_muted=alert.muted_until is not None and alert.muted_until > visit.now,
        is_external=alert.rule is RuleType.EXTERNAL,
        notified=notified,
        quantity=partial(quantity, alert.rule),
        mutes=_MUTES,
        done=done,
        problem=problem,
    )


async def act(visit: Visit) -> Response:
    """Acknowledges, mutes or resolves the alert, as the pressed button says."""
    path: dict[str, Any] = {"id": visit.segment("id")}
    try:
        match visit.form.get("action", ""):
            case "acknowledge":
                await visit.perform(_ACKNOWLEDGE, path=path)
                done = "The alert is acknowledged."
            case "resolve":
                await visit.perform(_RESOLVE, path=path)
                done = "The alert is resolved. Those who heard that it fires hear of that, too."
            case "mute" if (duration := visit.form.get("for", "")) in _MUTES:
                await visit.perform(_MUTE, path=path, body=MuteRequest.model_validate({"for": duration}))
                done = "The alert is muted: nobody is notified that it fires."
            case "unmute":
                await visit.perform(_MUTE, path=path, body=MuteRequest(until=None))
                done = "The alert is not muted any more."
            case _:
                raise ProblemError(400, "This page has no such button.")
    except Conflict as error:
        return await _shown(visit, problem=as_problem(error).detail)
    return await _shown(visit, done=done)

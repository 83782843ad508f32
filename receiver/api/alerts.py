"""Operations on alerts: list and show them, acknowledge one, mute one."""

from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from receiver.alerts import external
from receiver.alerts.targets import Targets
from receiver.api.operations import Call, Listed, Operation
from receiver.api.problems import InvalidValue, invalid_values_problem
from receiver.domain.alerts import Alert
from receiver.models.alerts import AlertRead, alert_read
from receiver.models.parameters import AlertPlace, Moment, Span, alert_cursor
from receiver.models.queries import AlertQuery
from receiver.storage import alerts


class MuteRequest(BaseModel):
    """Until when an alert is muted: a time, or a duration from now; `until` null ends the mute."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    until: Moment | None = Field(None, description="a time that is to come; null: the alert is not muted any more")
    for_: Span | None = Field(None, alias="for", description="a duration from now: `90s`, `15m`, `2h`, `7d`")

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if ("until" in self.model_fields_set) is (self.for_ is not None):
            raise ValueError("give either until or for")
        return self


async def list_alerts(call: Call) -> Listed[AlertRead]:
    query: AlertQuery = call.query
    page = await alerts.find(call.database, query)
    following = None
    if page.more:
        last = page.items[-1]
        assert last.fired_at is not None  # noqa: S101
        following = {"cursor": alert_cursor(AlertPlace(last.fired_at, last.id))}
    return Listed(items=[_shown(call, alert) for alert in page.items], next_page=following)


async def get_alert(call: Call) -> AlertRead:
    return _shown(call, await alerts.with_id(call.database, call.path["id"]))


async def acknowledge_alert(call: Call) -> AlertRead:
    return _shown(call, await alerts.acknowledge(call.database, call.path["id"], now=call.context.clock()))


async def mute_alert(call: Call) -> AlertRead:
    request: MuteRequest = call.body
    now, until = call.context.clock(), request.until
    if request.for_ is not None:
        until = now + request.for_
    elif until is not None and until <= now:
        detail = "must be a time that is to come; for a duration use for"
        raise invalid_values_problem([InvalidValue(parameter="until", detail=detail)])
    return _shown(call, await alerts.mute(call.database, call.path["id"], until))


async def resolve_alert(call: Call) -> AlertRead:
    context = call.context
    targets = context.targets or Targets()
    return _shown(call, await external.resolve(call.database, call.path["id"], targets, now=context.clock()))


def _shown(call: Call, alert: Alert) -> AlertRead:
    return alert_read(alert, call.context.base_url)


_ID: Final = {"id": "the id of the alert"}

OPERATIONS: Final = (
    Operation(
        name="listAlerts",
        path="/api/alerts",
        summary="List the alerts that fire and those that are resolved, newest first",
        handle=list_alerts,
        query=AlertQuery,
        answer=list[AlertRead],
        has_next=True,
    ),
    Operation(
        name="getAlert",
        path="/api/alerts/{id}",
        summary="Get one alert",
        handle=get_alert,
        answer=AlertRead,
        problems=(404,),
        path_words=_ID,
    ),
    Operation(
        name="acknowledgeAlert",
        method="POST",
        path="/api/alerts/{id}/acknowledge",
        summary="Record that somebody looks after an alert; the next alert of its rule and group is a new one",
        handle=acknowledge_alert,
        answer=AlertRead,
        problems=(403, 404, 409),
        path_words=_ID,
    ),
    Operation(
        name="resolveAlert",
        method="POST",
        path="/api/alerts/{id}/resolve",
        summary="Resolve an alert of another program, which will not do it itself any more",
        description="Alerts of the rules here are resolved when what they measure is over.",
        handle=resolve_alert,
        answer=AlertRead,
        problems=(403, 404, 409),
        path_words=_ID,
    ),
    Operation(
        name="muteAlert",
        method="POST",
        path="/api/alerts/{id}/mute",
        summary="Mute an alert, and later alerts of its rule and group, until a time, or end the mute",
        description="A muted alert is evaluated and shown, and nobody is notified. Those who heard that it fires still "
        "hear that it is resolved.",
        handle=mute_alert,
        body=MuteRequest,
        answer=AlertRead,
        problems=(403, 404, 413, 415),
        path_words=_ID,
    ),
)

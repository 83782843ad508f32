"""Operations on alerts and people: who was notified, a test alert to targets, and alerts of other programs."""

from typing import Any, Final

from pydantic import Field

from receiver.alerts import external
from receiver.alerts.alertmanager import MAX_ALERTS, MAX_BODY_BYTES, MAX_OPEN, AlertmanagerPost
from receiver.alerts.targets import ConfiguredTarget, Targets
from receiver.alerts.trial import try_targets
from receiver.api.operations import Call, Operation
from receiver.errors import Unknown, did_you_mean
from receiver.models.alerts import NotificationRead
from receiver.models.columns import Read
from receiver.models.parameters import Text
from receiver.models.queries import Query
from receiver.storage import notifications as stored


class AlertTestQuery(Query):
    rule: Text | None = Field(None, description="only the targets of this rule, by its name; default: all targets")


class AlertTargetTest(Read):
    """Whether a target for people accepted a test alert, and the error if not."""

    target: str
    ok: bool
    error: str | None
    seconds: float


class AlertmanagerResponse(Read):
    """How many alerts fired here or were resolved here because of a post; others were known already, or are muted."""

    alerts: int


async def test_targets(call: Call) -> list[AlertTargetTest]:
    targets = call.context.targets or Targets()
    results = await try_targets(
        chosen_targets(targets, call.query.rule), base_url=targets.base_url, now=call.context.clock()
    )
    return [AlertTargetTest.model_validate(result) for result in results]


def chosen_targets(targets: Targets, name: str | None) -> list[ConfiguredTarget]:
    """The targets of a rule, or all; raises Unknown if there is no such rule."""
    if name is None:
        return list(targets.targets.values())
    rules = {rule.name: rule for rule in targets.rules}
    if name not in rules:
        raise Unknown(f"there is no rule {name}{did_you_mean(name, rules)}")
    return targets.of_rule(rules[name])


async def post_alertmanager(call: Call) -> AlertmanagerResponse:
    context = call.context
    heard = await external.take(call.database, call.body, context.targets or Targets(), now=context.clock())
    return AlertmanagerResponse(alerts=len(heard))


async def list_notifications(call: Call) -> list[NotificationRead]:
    return await stored.of_alert(call.database, call.path["id"])


_POST: Final[dict[str, Any]] = {"method": "POST"}

OPERATIONS: Final = (
    Operation(
        name="listNotifications",
        path="/api/alerts/{id}/notifications",
        summary="List who was notified of an alert, and who could not be",
        handle=list_notifications,
        answer=list[NotificationRead],
        problems=(404,),
        path_words={"id": "the id of the alert"},
    ),
    Operation(
        name="testAlertTargets",
        path="/api/alerts/test",
        summary="Send a test alert to the targets for people, and report each",
        description="A target that opens an incident also closes it.",
        handle=test_targets,
        query=AlertTestQuery,
        answer=list[AlertTargetTest],
        problems=(403, 404),
        **_POST,
    ),
    Operation(
        name="postAlertmanager",
        path="/api/alerts/alertmanager",
        summary="Take alerts of other programs, as Alertmanager posts them to a webhook",
        description=f"Version 4 of the format, with at most {MAX_ALERTS} alerts. Posts may be repeated: an alert is "
        f"identified by its fingerprint, or its labels, and its start. At most {MAX_OPEN:,} may be open: 409 beyond, "
        "with those resolved that the post resolves.",
        handle=post_alertmanager,
        body=AlertmanagerPost,
        max_body_bytes=MAX_BODY_BYTES,
        answer=AlertmanagerResponse,
        problems=(403, 409, 413, 415),
        **_POST,
    ),
)

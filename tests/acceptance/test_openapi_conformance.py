"""The query API conforms to its OpenAPI document: generated requests against a real server."""

import os
from collections.abc import Iterator
from datetime import UTC
from typing import Any

import pytest
import schemathesis
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from receiver.api import openapi
from receiver.api.routes import GROUPS
from receiver.dispatch.publish import publication
from receiver.domain.alerts import Condition
from receiver.domain.events import Api, Direction
from receiver.domain.publication import DeadLettered, DeadLetterReason, Outcome, PendingPublication, RetryAt
from receiver.domain.window import Attempt, Decided, Settlement
from receiver.models.parameters import AlertPlace, MessagePlace, alert_cursor, encode_cursor, message_cursor
from receiver.storage import replays, sinks
from receiver.storage import schema as database_schema
from receiver.storage.database import Database
from receiver.storage.retries import settle
from receiver.storage.sinks import Health
from tests.dispatching import append, life
from tests.evaluating import Rounds, finding
from tests.factories import at
from tests.rows import callback, inbound, insert, insert_callbacks, message, minutes, problem
from tests.web import ADMIN, application, basic, serving

DOCUMENT = openapi.document(GROUPS, "0")
SEED = int(os.environ.get("RECEIVER_TEST_SEED", "1"))
# An example is a request to a server.
EXAMPLES = settings.default.max_examples // 5
schema = schemathesis.openapi.from_dict(DOCUMENT, config=schemathesis.Config(seed=SEED))

# the formats of our own
_TIMES = st.datetimes(timezones=st.just(UTC))
_PLACES = st.builds(
    MessagePlace,
    _TIMES,
    st.sampled_from(Api),
    st.sampled_from(Direction),
    st.text(st.characters(codec="utf-8", exclude_characters="\0")),
)
schemathesis.openapi.format("date-time-prefix", _TIMES.map(lambda time: time.strftime("%Y-%m-%d %H:%M:%S").zfill(19)))
schemathesis.openapi.format("telephone-number", st.from_regex(r"\A\+[1-9][0-9]{5,14}\Z"))
schemathesis.openapi.format("message-cursor", _PLACES.map(message_cursor))
schemathesis.openapi.format(
    "callback-cursor", st.from_regex(r"[0-9a-f]{32}", fullmatch=True).map(lambda id_: encode_cursor([id_]))
)
schemathesis.openapi.format("alert-cursor", _TIMES.map(lambda time: alert_cursor(AlertPlace(time, "0"))))
schemathesis.openapi.format("number-cursor", st.integers(0, 2**63 - 1).map(lambda id_: encode_cursor([str(id_)])))


@schema.auth()
class Token:
    """Presents the token in the way the operation asks for."""

    def get(self, case: Any, context: Any) -> str:
        return basic(ADMIN) if case.path.startswith("/v1/") else f"Bearer {ADMIN}"

    def set(self, case: Any, data: str, context: Any) -> None:
        case.headers = {**(case.headers or {}), "Authorization": data}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server with a few messages, callbacks and codes to find."""
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('openapi') / 'receiver.db'}")

    async def fill() -> None:
        await database_schema.migrate(database)
        await insert(database, message("0", api="v1"), message("0", api="v2"), inbound("1", at=minutes(1)))
        await insert_callbacks(database, callback("0"), callback("1", problems=[problem("unreadable")]))
        await stock_sink(database)
        alerts = Rounds(database)
        alerts.evaluator._new_id = lambda: "0"
        await alerts.round(0, finding(Condition.BREACHED))

    with start_blocking_portal() as portal:
        portal.call(fill)
        configured = {"0": {"name": "0", "type": "memory"}}
        with portal.wrap_async_context_manager(serving(application(database, sinks=configured))) as url:
            yield url
        portal.call(database.close)


async def stock_sink(database: Database) -> None:
    """A sink named as the generated requests like to name it, with something of everything."""
    entries = await append(database, life("0"))
    candidates = [PendingPublication(publication=publication(entry)) for entry in entries]
    dead = DeadLettered(cause=DeadLetterReason.REFUSED, reason="status 422", response_code=422)
    again = RetryAt(due_at=at(0), reason="timeout")
    verdicts = [Decided(candidates[0], dead), *(Decided(candidate, again) for candidate in candidates[1:])]
    attempt = Attempt(
        position=entries[0].position,
        event_id=entries[0].event.id,
        started_at=at(0),
        ended_at=at(1),
        outcome=Outcome.REFUSED,
        decision="dead",
    )
    settlement = Settlement(cursor=entries[-1].position, firsts=tuple(verdicts), attempts=(attempt,))
    await sinks.register(database, "0", start="beginning", fingerprint="f")
    lease = await sinks.acquire_lease(database, "0", holder="nobody", fingerprint="f", seconds=60)
    assert lease is not None
    await settle(database, lease, settlement, Health(), now=at(1))
    await replays.begin(database, "0", "beginning", now=at(2))


# A stream has no end; test_event_stream.py shows what it takes and refuses.
@schema.exclude(path="/api/events/stream").parametrize()
@settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_every_operation_conforms_to_the_openapi_document(case: Any, server: str) -> None:
    # which values cannot be signed depends on the key, which times are in order or to come on others: no schema can say
    unsaid = ("/api/tags", "/api/sinks/{name}/replay", "/api/alerts/{id}/mute", "/api/alerts/alertmanager")
    has_range = {"fromDateTime", "toDateTime"} <= (case.query or {}).keys()
    excluded = [positive_data_acceptance] if case.path in unsaid or has_range else []
    if (case.path, case.method) == ("/api/messages", "POST"):
        # an id or the location that ends in it: either is required, and the answer to it names what is missing; a list
        # is answered 200 with a result for each member, also for a wrong one
        excluded = [positive_data_acceptance, negative_data_rejection]
    if case.path == "/v1/users/{userId}/messages":
        # like the Catapult API it takes empty parameters, and words in capitals, which the document does not recommend
        excluded = [negative_data_rejection]
    case.call_and_validate(base_url=server, excluded_checks=excluded, timeout=60)

"""The query API does what its description says, tried with generated requests against a real server."""

import os
from collections.abc import Iterator
from datetime import UTC
from typing import Any

import pytest
import schemathesis
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import positive_data_acceptance

from receiver.domain.events import Api
from receiver.domain.queries import MessagePlace
from receiver.storage import schema as database_schema
from receiver.storage.database import Database
from receiver.web import openapi
from receiver.web.api import GROUPS
from receiver.web.parameters import encode_cursor, message_cursor
from tests.builders import callback, inbound, insert, insert_callbacks, message, minutes
from tests.query_api import ADMIN, application, basic
from tests.web import serving

DESCRIPTION = openapi.description(GROUPS, "0")
SEED = int(os.environ.get("RECEIVER_TEST_SEED", "1"))
schema = schemathesis.openapi.from_dict(DESCRIPTION, config=schemathesis.Config(seed=SEED))

# the formats of our own
_TIMES = st.datetimes(timezones=st.just(UTC))
_PLACES = st.builds(
    MessagePlace, _TIMES, st.sampled_from(Api), st.text(st.characters(codec="utf-8", exclude_characters="\0"))
)
schemathesis.openapi.format("seed-date-time", _TIMES.map(lambda time: time.strftime("%Y-%m-%d %H:%M:%S").zfill(19)))
schemathesis.openapi.format("message-cursor", _PLACES.map(message_cursor))
schemathesis.openapi.format(
    "callback-cursor", st.from_regex(r"[0-9a-f]{32}", fullmatch=True).map(lambda id_: encode_cursor([id_]))
)


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
        await insert_callbacks(database, callback("0"), callback("1", outcome="quarantined", reason="unreadable"))

    with start_blocking_portal() as portal:
        portal.call(fill)
        with portal.wrap_async_context_manager(serving(application(database))) as url:
            yield url
        portal.call(database.close)


@schema.parametrize()
@settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_every_operation_does_what_is_said_of_it(case: Any, server: str) -> None:
    # which values cannot be signed depends on the key: no schema can say it
    excluded = [positive_data_acceptance] if case.path == "/api/tags" else []
    case.call_and_validate(base_url=server, excluded_checks=excluded)

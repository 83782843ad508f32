"""The description of the query API: complete, consistent, the same everywhere."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.routing import Mount, Route

from receiver.api import openapi
from receiver.api.operations import Api, Operation
from receiver.api.parameters import Paged
from receiver.api.routes import GROUPS, routes
from receiver.storage.database import Database
from tests.event_log import now

DESCRIPTION = openapi.description(GROUPS, "1.2.3")
OPERATIONS = [operation for group in GROUPS for operation in group.operations]


def described(operation: Operation) -> dict[str, Any]:
    found: dict[str, Any] = DESCRIPTION["paths"][operation.path][operation.method.lower()]
    return found


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = DESCRIPTION["components"]["schemas"][name]
    return found


def within(value: Any) -> Iterator[dict[str, Any]]:
    """All objects in a JSON value."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from within(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from within(inner)


def test_every_route_is_described_and_nothing_else_is() -> None:
    async def reprocess(ids: object) -> None: ...

    api = Api(database=Database("sqlite:///unused.db"), reprocess=reprocess, tokens=None, clock=now)
    served: set[tuple[str, str]] = set()
    for mount in routes(api):
        if isinstance(mount, Mount):
            inner: Any = mount.app
            for route in inner.app.routes:
                assert isinstance(route, Route)
                served |= {(mount.path + route.path, method) for method in (route.methods or set()) - {"HEAD"}}
    documented = {(path, method.upper()) for path, methods in DESCRIPTION["paths"].items() for method in methods}
    assert served == documented


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_an_operation_tells_what_it_takes_and_may_answer(operation: Operation) -> None:
    told = described(operation)
    assert told["operationId"] == operation.name
    assert told["summary"]
    assert told["responses"].keys() >= {"200", "400", "401", "405", "500", "503"}
    fields = operation.parameters.model_fields.items()
    query = {parameter["name"] for parameter in told["parameters"] if parameter["in"] == "query"}
    assert query == {field.alias or name for name, field in fields}
    assert ("requestBody" in told) is (operation.body is not None)
    assert ("403" in told["responses"]) is (operation.method == "POST")
    if operation.has_next:
        assert "Link" in told["responses"]["200"]["headers"]


def test_names_of_operations_are_unique() -> None:
    assert len({operation.name for operation in OPERATIONS}) == len(OPERATIONS)


def test_every_list_is_paged_in_the_same_way() -> None:
    lists = [one for one in OPERATIONS if one.has_next and one.name != "pullEvents"]
    for operation in lists:
        assert issubclass(operation.parameters, Paged)
        names = {parameter["name"] for parameter in described(operation)["parameters"]}
        assert names >= {"page", "size", "sortOrder"}


def test_every_reference_leads_to_a_schema_and_every_schema_is_used() -> None:
    names = {one["$ref"].removeprefix("#/components/schemas/") for one in within(DESCRIPTION) if "$ref" in one}
    assert names == set(DESCRIPTION["components"]["schemas"])


def test_no_parameter_claims_that_it_may_be_null() -> None:
    for operation in OPERATIONS:
        for parameter in described(operation)["parameters"]:
            assert "null" not in json.dumps(parameter)
            assert "anyOf" not in parameter["schema"]


def test_a_number_tells_its_bounds() -> None:
    operation = next(one for one in OPERATIONS if one.name == "listMessages")
    size = next(one for one in described(operation)["parameters"] if one["name"] == "size")
    assert size["schema"] == {"type": "integer", "minimum": 1, "maximum": 1000, "default": 25}


def test_a_message_is_described_with_the_names_people_rely_on() -> None:
    assert set(schema("Message")["required"]) == {
        *("id", "api", "direction", "from", "to", "owner", "applicationId", "text", "media", "tag", "tagVerdict"),
        *("segmentCount", "channel", "carrierName", "priority", "time", "status", "state", "deliveryState"),
        *("deliveryCode", "deliveryDescription", "contradicted", "awaitingReceipt", "firstReceivedTime"),
        *("updatedTime", "recipients"),
    }
    assert set(schema("Recipient")["required"]) == {
        *("to", "status", "state", "deliveryState", "deliveryCode", "deliveryDescription", "reason", "sentTime"),
        *("deliveredTime", "failedTime", "readTime", "contradicted", "updatedTime"),
    }
    assert set(schema("MessageEvent")["required"]) == {
        *("id", "type", "time", "receivedTime", "recipient", "code", "description", "tagVerdict", "route"),
        *("callbackId", "status"),
    }


def test_errors_are_problems_and_the_seeds_where_its_clients_ask() -> None:
    for operation in OPERATIONS:
        content = described(operation)["responses"]["401"]["content"]
        seeds = operation.path.startswith("/v1/")
        assert list(content) == ["application/json" if seeds else "application/problem+json"]
        assert described(operation)["security"] == [{"tokenAsPassword" if seeds else "token": []}]


def test_the_description_is_json_and_names_its_version() -> None:
    assert json.loads(json.dumps(DESCRIPTION))["info"]["version"] == "1.2.3"

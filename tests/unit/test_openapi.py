"""The OpenAPI document: complete and consistent."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.routing import Mount, Route

from receiver.api import openapi
from receiver.api.operations import ApiContext, Operation
from receiver.api.routes import GROUPS, routes
from receiver.models.queries import PagedQuery
from receiver.storage.database import Database
from tests.dispatching import now

DOCUMENT = openapi.document(GROUPS, "1.2.3")
OPERATIONS = [operation for group in GROUPS for operation in group.operations]


def described(operation: Operation) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["paths"][operation.path][operation.method.lower()]
    return found


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["components"]["schemas"][name]
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

    api = ApiContext(database=Database("sqlite:///unused.db"), reprocess=reprocess, tokens=None, clock=now)
    served: set[tuple[str, str]] = set()
    for mount in routes(api):
        if isinstance(mount, Mount):
            inner: Any = mount.app
            for route in inner.app.routes:
                assert isinstance(route, Route)
                served |= {(mount.path + route.path, method) for method in (route.methods or set()) - {"HEAD"}}
    documented = {(path, method.upper()) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert served == documented


def test_operations_are_grouped_by_what_they_are_about() -> None:
    tags = {operation.name: described(operation)["tags"] for operation in OPERATIONS}
    assert tags["listMessages"] == tags["getMessage"] == ["messages"]
    assert tags["requeueDeadLetters"] == ["dead-letters"]
    assert tags["listCatapultMessages"] == ["catapult"]


def test_schemas_are_named_by_the_terms_of_the_documentation() -> None:
    names = set(DOCUMENT["components"]["schemas"])
    assert names >= {"Message", "Recipient", "CallbackSummary", "Sink"}
    assert names >= {"ApiVersion", "AttemptOutcome", "DeliveryStatus", "QuarantineReason"}
    assert not {name for name in names if name.endswith("Read")}


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_operation_has_parameters_body_and_responses(operation: Operation) -> None:
    found = described(operation)
    assert found["operationId"] == operation.name
    assert found["summary"]
    assert found["responses"].keys() >= {"200", "400", "401", "405", "500", "503"}
    fields = operation.query.model_fields.items()
    query = {parameter["name"] for parameter in found["parameters"] if parameter["in"] == "query"}
    assert query == {field.alias or name for name, field in fields}
    assert ("requestBody" in found) is (operation.body is not None)
    assert ("403" in found["responses"]) is (operation.method == "POST")
    if operation.has_next:
        assert "Link" in found["responses"]["200"]["headers"]


def test_names_of_operations_are_unique() -> None:
    assert len({operation.name for operation in OPERATIONS}) == len(OPERATIONS)


def test_every_list_is_paged_in_the_same_way() -> None:
    lists = [one for one in OPERATIONS if one.has_next and one.name != "pullEvents"]
    for operation in lists:
        assert issubclass(operation.query, PagedQuery)
        names = {parameter["name"] for parameter in described(operation)["parameters"]}
        assert names >= {"page", "size", "sortOrder"}


def test_every_reference_leads_to_a_schema_and_every_schema_is_used() -> None:
    names = {one["$ref"].removeprefix("#/components/schemas/") for one in within(DOCUMENT) if "$ref" in one}
    assert names == set(DOCUMENT["components"]["schemas"])


def test_no_parameter_is_nullable() -> None:
    for operation in OPERATIONS:
        for parameter in described(operation)["parameters"]:
            assert "null" not in json.dumps(parameter)
            assert "anyOf" not in parameter["schema"]


def test_numbers_have_minimum_and_maximum() -> None:
    operation = next(one for one in OPERATIONS if one.name == "listMessages")
    size = next(one for one in described(operation)["parameters"] if one["name"] == "size")
    assert size["schema"] == {"type": "integer", "minimum": 1, "maximum": 1000, "default": 25}


def test_message_schema_has_the_documented_fields() -> None:
    assert set(schema("Message")["required"]) == {
        *("id", "api", "direction", "from", "to", "owner", "applicationId", "text", "media", "tag", "tagVerdict"),
        *("segmentCount", "channel", "carrierName", "priority", "time", "status", "state", "deliveryState"),
        *("deliveryCode", "deliveryDescription", "contradicted", "awaitingReceipt", "firstReceivedTime"),
        *("registeredTime", "updatedTime", "recipients"),
    }
    assert set(schema("Recipient")["required"]) == {
        *("to", "status", "state", "deliveryState", "deliveryCode", "deliveryDescription", "reason", "sentTime"),
        *("deliveredTime", "failedTime", "readTime", "contradicted", "updatedTime"),
    }
    assert set(schema("MessageEvent")["required"]) == {
        *("id", "type", "time", "receivedTime", "recipient", "code", "description", "tagVerdict", "route"),
        *("callbackId", "status"),
    }


def test_errors_are_problem_details_and_catapult_errors_under_v1() -> None:
    for operation in OPERATIONS:
        content = described(operation)["responses"]["401"]["content"]
        is_catapult = operation.path.startswith("/v1/")
        assert list(content) == ["application/json" if is_catapult else "application/problem+json"]
        assert described(operation)["security"] == [{"tokenAsPassword" if is_catapult else "token": []}]


def test_the_openapi_document_is_json_and_has_its_version() -> None:
    assert json.loads(json.dumps(DOCUMENT))["info"]["version"] == "1.2.3"

"""Checks published events against the schemas that their consumers are given."""

from typing import Any, Final

import jsonschema_rs
import orjson

from receiver.api.openapi import event_schema
from receiver.domain.cloudevents import SCHEMA_PATH
from receiver.models.published import CloudEvent

_DATA: Final = jsonschema_rs.validator_for(event_schema(), validate_formats=True)
_EVENT: Final = jsonschema_rs.validator_for(CloudEvent.model_json_schema(mode="serialization"), validate_formats=True)


def check(event: dict[str, Any]) -> None:
    """Fails if a published event is not what its schemas say."""
    written = orjson.loads(orjson.dumps(event))
    _EVENT.validate(written)
    _DATA.validate(written["data"])
    assert written["dataschema"].endswith(SCHEMA_PATH[1:])

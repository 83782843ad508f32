"""Checks published events against the schemas that their consumers are given."""

from typing import Any, Final

import jsonschema_rs
import orjson

from receiver.api.openapi import alert_schema, event_schema
from receiver.domain.cloudevents import ALERT_EVENT_TYPES, ALERT_SCHEMA_PATH, SCHEMA_PATH
from receiver.models.published import AlertCloudEvent, CloudEvent


def _validator(schema: dict[str, Any]) -> Any:
    return jsonschema_rs.validator_for(schema, validate_formats=True)


_DATA: Final = _validator(event_schema())
_EVENT: Final = _validator(CloudEvent.model_json_schema(mode="serialization"))
_ALERT: Final = _validator(alert_schema())
_ALERT_EVENT: Final = _validator(AlertCloudEvent.model_json_schema(mode="serialization"))


def check(event: dict[str, Any]) -> None:
    """Fails if a published event is not what its schemas say."""
    written = orjson.loads(orjson.dumps(event))
    is_alert = written["type"] in ALERT_EVENT_TYPES
    (_ALERT_EVENT if is_alert else _EVENT).validate(written)
    (_ALERT if is_alert else _DATA).validate(written["data"])
    assert written["dataschema"].endswith((ALERT_SCHEMA_PATH if is_alert else SCHEMA_PATH)[1:])

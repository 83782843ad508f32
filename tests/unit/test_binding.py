"""How an event is put into a message of another system."""

import orjson
import pytest

from receiver.sinks.encoding import REPLAYED, Binding, bind
from tests.factories import make_publication


def test_structured_is_the_whole_event_in_the_body() -> None:
    publication = make_publication()
    bound = bind(publication, "structured", prefix="ce-")
    assert (bound.content_type, bound.headers) == ("application/cloudevents+json; charset=utf-8", {})
    assert bound.body == publication.body


def test_binary_is_the_data_in_the_body_and_the_attributes_in_headers() -> None:
    bound = bind(make_publication(), "binary", prefix="ce_")
    assert bound.content_type == "application/json"
    assert bound.headers == {
        "ce_specversion": "1.0",
        "ce_id": "e1",
        "ce_source": "/bandwidth/v2",
        "ce_type": "message.delivered",
        "ce_subject": "m1",
        "ce_time": "2026-01-01T00:00:00Z",
        "ce_dataschema": "urn:bandwidth-receiver:schemas/message-event/1",
    }
    assert orjson.loads(bound.body) == make_publication().event["data"]


def test_what_a_header_cannot_hold_is_percent_encoded() -> None:
    bound = bind(make_publication(messageId='a b"%Ü\r\n\x00'), "binary", prefix="ce-")
    assert bound.headers["ce-subject"] == "a%20b%22%25%C3%9C%0D%0A%00"


@pytest.mark.parametrize("binding", ["structured", "binary"])
def test_a_replayed_event_says_so(binding: Binding) -> None:
    assert bind(make_publication(replayed=True), binding, prefix="ce-").headers[REPLAYED] == "true"
    assert REPLAYED not in bind(make_publication(), binding, prefix="ce-").headers

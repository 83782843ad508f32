import hashlib
import json

from hypothesis import given
from hypothesis import strategies as st

from receiver.domain.events import Api, event_id
from tests.factories import make_event


def id_of(message_id: str, **more: str | None) -> str:
    return event_id(
        api=Api.V2,
        message_id=message_id,
        recipient=more.get("recipient"),
        type="message-sent",
        time=more.get("time"),
        code=more.get("code"),
    )


def id_by_json(message_id: str, **more: str | None) -> str:
    """The id as the first version made it, with the JSON encoder of the standard library."""
    recipient = more.get("recipient")
    number = recipient.removeprefix("+") if recipient else None
    identity = ["v2", message_id, number, "message-sent", more.get("time"), more.get("code")]
    return hashlib.sha256(json.dumps(identity, separators=(",", ":")).encode()).hexdigest()[:32]


def test_every_character_of_the_basic_plane_gives_the_id_of_the_json_encoder() -> None:
    for code in range(0x10000):
        assert id_of(f"a{chr(code)}z") == id_by_json(f"a{chr(code)}z"), hex(code)


texts = st.text(st.characters(), max_size=20)  # surrogates and DEL among them


@given(texts, st.none() | texts, st.none() | texts, st.none() | texts)
def test_any_text_gives_the_id_of_the_json_encoder(
    message_id: str, recipient: str | None, time: str | None, code: str | None
) -> None:
    more = {"recipient": recipient, "time": time, "code": code}
    assert id_of(message_id, **more) == id_by_json(message_id, **more)


times = st.sampled_from([None, 0, 1, 2])


@given(times, times, st.sampled_from("ab"), st.sampled_from("ab"))
def test_an_event_precedes_another_as_their_order_says(
    time: float | None, other_time: float | None, id_: str, other_id: str
) -> None:
    event, other = make_event(time=time, id=id_), make_event(time=other_time, id=other_id)
    assert event.precedes(other) is (event.order < other.order)

"""The tables of RECEIVER_SINKS: what they mean, and one line for each mistake."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from receiver.domain.cloudevents import Filter
from receiver.domain.events import Direction
from receiver.domain.retry import MAX_AGE, SCHEDULE
from receiver.errors import SettingsError
from receiver.sinks.base import Publication, Published, Result, Sink, SinkSettings
from receiver.sinks.registry import configure

HOOK = {"name": "crm", "type": "webhook", "url": "https://crm.example/hook"}


def settings(**fields: Any) -> Any:
    [configured] = configure([{"name": "crm", "type": "memory", **fields}])
    return configured.settings


def webhook(**fields: Any) -> Any:
    [configured] = configure([{**HOOK, **fields}])
    return configured.settings


class PrintSink(Sink):
    """A sink of somebody's own, as small as it can be."""

    def __init__(self, settings: SinkSettings) -> None:
        self.name = settings.name

    async def publish(self, batch: Any) -> list[Result]:
        return [Published() for _ in batch]


class BoundlessSink(PrintSink):
    max_batch = 0


class NoSink:
    Settings = SinkSettings


def test_a_sink_needs_a_name_and_a_type_and_little_else() -> None:
    parsed = settings()
    assert (parsed.events, parsed.changes_only, parsed.start) == (frozenset(), False, "end")
    assert (parsed.timeout, parsed.max_age, parsed.schedule) == (timedelta(seconds=15), MAX_AGE, SCHEDULE)


def test_the_common_fields_are_read() -> None:
    parsed = settings(
        events=["message.sent"],
        changes_only=True,
        start="2026-01-31T01:00:00+01:00",
        timeout="2.5s",
        max_age="2d",
        schedule=["1s", "1m", 7200],
    )
    assert (parsed.filter.types, parsed.filter.changes_only) == (frozenset({"message.sent"}), True)
    assert parsed.start == datetime(2026, 1, 31, tzinfo=UTC)
    assert parsed.timeout == timedelta(seconds=2.5)
    assert parsed.policy.max_age == timedelta(days=2)
    assert parsed.policy.schedule == (timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=2))


def test_a_time_may_come_as_toml_reads_it() -> None:
    assert settings(start=datetime(2026, 1, 31, tzinfo=UTC)).start == datetime(2026, 1, 31, tzinfo=UTC)


def test_a_private_sink_is_named_by_module_and_class() -> None:
    [configured] = configure([{"name": "mine", "type": f"{__name__}:PrintSink"}])
    assert isinstance(configured.sink, PrintSink)
    assert (configured.sink.max_batch, configured.sink.keep_attempts) == (1, "failures")


def test_secrets_are_taken_from_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRM_SECRET", "from the environment")
    (tmp_path / "secret").write_text("from a file\n")
    parsed = webhook(secrets=["plain", "env:CRM_SECRET", f"file:{tmp_path / 'secret'}"])
    assert [secret.get_secret_value() for secret in parsed.secrets] == ["plain", "from the environment", "from a file"]


def test_neither_secrets_nor_addresses_are_shown() -> None:
    parsed = webhook(url="https://user:canary1@crm.example/canary2", secrets=["canary3"])
    assert "canary" not in f"{parsed!r} {parsed} {parsed.model_dump_json()}"


def test_the_fingerprint_changes_with_the_settings_and_not_with_their_order() -> None:
    def fingerprint(**fields: Any) -> str:
        [configured] = configure([{**HOOK, **fields}])
        return configured.fingerprint

    types = [f"message.{word}" for word in ("sent", "failed", "read", "queued", "delivered")]
    assert fingerprint() == fingerprint()
    assert fingerprint(events=types) == fingerprint(events=types[::-1])
    assert fingerprint() != fingerprint(changes_only=True)


def test_several_sinks_are_made_in_their_order() -> None:
    made = configure([{"name": name, "type": "memory"} for name in ("b", "a")])
    assert [one.name for one in made] == ["b", "a"]


MISTAKES = [
    ({"type": "memory"}, "number 1: name: Field required"),
    ({"name": "x"}, "x: type: Field required"),
    ({"name": "x", "type": 7}, "x: type: Field required"),
    ({"name": "x", "type": "pulsar"}, "x: type: there is no 'pulsar'; there are jsonl, kafka, "),
    (
        {"name": "x", "type": "no_such_module:Sink"},
        "cannot be loaded: No module named 'no_such_module'; install it, or put its folder into PYTHONPATH",
    ),
    ({"name": "x", "type": "json:NoSuchClass"}, "x: type: json:NoSuchClass cannot be loaded"),
    ({"name": "x", "type": f"{__name__}:NoSink"}, "is not a sink, it lacks max_batch"),
    ({"name": "a b", "type": "memory"}, "a b: name: String should match pattern"),
    ({"name": "", "type": "memory"}, "number 1: name: String should match pattern"),
    ({"name": "a\nb", "type": "memory"}, "number 1: name: String should match pattern"),
    ({"name": 7, "type": "memory"}, "number 1: name: Input should be a valid string"),
    ({"name": "x", "type": "memory", "evnets": []}, "x: evnets is not a field of this sink; did you mean events?"),
    ({"name": "x", "type": "webhook", "urll": ""}, "x: urll is not a field of this sink; did you mean url?"),
    ({"name": "x", "type": "webhok"}, "x: type: there is no 'webhok'; "),
    ({"name": "x", "type": "memory", "events": ["message.lost"]}, "x: events: message.lost is not an event type"),
    (
        {"name": "x", "type": "memory", "events": ["message.failed", "alert.firing"]},
        "x: events: alert.firing is not an event type; there are alert.fired, alert.resolved, message.delivered, ",
    ),
    ({"name": "x", "type": "memory", "start": "yesterday"}, 'x: start: must be "end", "beginning" or a time'),
    ({"name": "x", "type": "memory", "start": "2026-01-31T00:00:00"}, 'x: start: must be "end", "beginning" or a time'),
    ({"name": "x", "type": "memory", "start": datetime(2026, 1, 31)}, "x: start: must be"),  # noqa: DTZ001
    ({"name": "x", "type": "memory", "timeout": "soon"}, 'x: timeout: must be a duration such as "15s"'),
    ({"name": "x", "type": "memory", "timeout": "60s"}, "x: timeout: Input should be less than or equal to 18 seconds"),
    ({"name": "x", "type": "memory", "timeout": 0}, "x: timeout: Input should be greater than 0 seconds"),
    ({"name": "x", "type": "memory", "schedule": []}, "x: schedule: Tuple should have at least 1 item"),
    ({"name": "x", "type": "memory", "schedule": ["1s", "0s"]}, "x: schedule.1: Input should be greater than or equal"),
    ({"name": "x", "type": "memory", "direction": "up"}, "x: direction: Input should be 'in' or 'out'"),
    ({"name": "x", "type": "memory", "number_prefixes": ["+1 919"]}, "x: number_prefixes.0: String should match"),
    ({"name": "x", "type": "memory", "tag_prefixes": [""]}, "x: tag_prefixes.0: String should have at least 1"),
    ({"name": "x", "type": "memory", "applications": "one"}, "x: applications: Input should be a valid frozenset"),
    ({"name": "x", "type": "memory", "on_refused": "stop"}, "x: on_refused: Input should be 'continue' or 'park'"),
    ({"name": "x", "type": "memory", "on_expire": "drop"}, "x: on_expire: Input should be 'keep' or 'dead_letter'"),
    ({"name": "x", "type": "memory", "coalesce": "all"}, "x: coalesce: Input should be 'latest'"),
    ({"name": "x", "type": "jsonl"}, "x: path: Field required"),
    ({"name": "x", "type": "webhook"}, "x: url: Field required"),
    ({**HOOK, "url": "ftp://crm.example/"}, "crm: url: must begin with http:// or https://"),
    ({**HOOK, "url": "file:///etc/passwd"}, "crm: url: "),
    ({**HOOK, "url": "https:///path"}, "crm: url: must begin with http:// or https:// and name a host"),
    ({**HOOK, "url": "https://crm.example/\r\nx: y"}, "crm: url: must be without spaces and control characters"),
    ({**HOOK, "url": "https://crm.example:99999/"}, "crm: url: has a port that does not exist"),
    (
        {**HOOK, "secrets": ["env:NO_SUCH"]},
        "crm: secrets.0: there is no environment variable NO_SUCH",
    ),
    ({**HOOK, "secrets": ["ok", "file:/no/such/file"]}, "crm: secrets.1: cannot read /no/such/file: No such file"),
    ({**HOOK, "secrets": [""]}, "crm: secrets.0: must not be empty"),
    ({**HOOK, "secrets": ["whsec_!"]}, "crm: secrets.0: what follows whsec_ is not base64"),
    ({**HOOK, "secrets": "one"}, "crm: secrets: Input should be a valid tuple"),
    ({**HOOK, "concurrency": 0}, "crm: concurrency: Input should be greater than or equal to 1"),
]


@pytest.mark.parametrize(("table", "line"), MISTAKES, ids=[line for _, line in MISTAKES])
def test_a_mistake_is_one_line_that_names_sink_and_field(table: dict[str, Any], line: str) -> None:
    with pytest.raises(SettingsError) as refused:
        configure([table])
    error = str(refused.value)
    assert error.startswith("RECEIVER_SINKS: ")
    assert line in error
    assert "\n" not in error


def test_the_fields_of_a_filter_become_a_filter() -> None:
    fields = {"direction": "in", "applications": ["a"], "number_prefixes": ["+1919", "44"], "tag_prefixes": ["order-"]}
    [sink] = configure([{"name": "x", "type": "memory", **fields}])
    assert sink.settings.filter == Filter(
        sink="x",
        direction=Direction.IN,
        applications=frozenset({"a"}),
        number_prefixes=("1919", "44"),
        tag_prefixes=("order-",),
    )


def test_there_may_be_only_so_many_sinks() -> None:
    with pytest.raises(SettingsError, match="RECEIVER_SINKS: 65 sinks are more than the 64 there may be"):
        configure([{"name": f"s{number}", "type": "memory"} for number in range(65)])


def test_a_client_that_is_not_installed_is_named_with_its_extra() -> None:
    hidden = "import sys; sys.modules['nats'] = None; from receiver.sinks.registry import configure; configure"
    code = f"{hidden}([{{'name': 'bus', 'type': 'nats', 'servers': ['nats://127.0.0.1'], 'stream': 'S'}}])"
    error = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr
    line = "RECEIVER_SINKS: bus: type: nats needs the extra nats: pip install 'bandwidth-receiver[nats]'"
    assert error.splitlines()[-1].endswith(line)


def test_a_sink_that_could_be_given_nothing_is_refused() -> None:
    with pytest.raises(SettingsError, match="x: type: max_batch of the sink must be a whole number above 0"):
        configure([{"name": "x", "type": f"{__name__}:BoundlessSink"}])


def test_a_module_that_is_no_python_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_sinks.py").write_text("class")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingsError, match="x: type: broken_sinks:Any cannot be loaded: "):
        configure([{"name": "x", "type": "broken_sinks:Any"}])


def test_two_sinks_of_one_name_are_refused() -> None:
    with pytest.raises(SettingsError, match="crm: name: 2 sinks are called so"):
        configure([HOOK, {"name": "crm", "type": "memory"}])


def test_a_mistake_does_not_show_the_secret_it_is_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRM_URL", "gopher://canary")
    for table in ({**HOOK, "url": "env:CRM_URL"}, {**HOOK, "secrets": ["whsec_canary!"]}):
        with pytest.raises(SettingsError) as refused:
            configure([table])
        assert "canary" not in str(refused.value)


def test_a_publication_is_what_a_private_sink_works_with() -> None:
    assert {"id", "position", "ordering_key", "type", "event", "body"} <= set(Publication.__slots__)


class DefiantSink(PrintSink):
    def __init__(self, settings: SinkSettings) -> None:
        raise RuntimeError("secret")


def test_a_sink_that_cannot_be_made_is_one_line_that_gives_nothing_away() -> None:
    with pytest.raises(SettingsError, match=r"^RECEIVER_SINKS: x: type: cannot be made: RuntimeError$"):
        configure([{"name": "x", "type": f"{__name__}:DefiantSink"}])


def test_a_module_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "failing_sinks.py").write_text("unheard_of")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingsError, match="x: type: failing_sinks:Any cannot be loaded: name 'unheard_of' is not"):
        configure([{"name": "x", "type": "failing_sinks:Any"}])


@pytest.mark.parametrize("field", ["max_age", "schedule"])
def test_a_time_span_may_not_lead_beyond_the_calendar(field: str) -> None:
    with pytest.raises(SettingsError, match=f"crm: {field}.*: must not be longer than 36500d"):
        settings(**{field: ["36501d"] if field == "schedule" else "36501d"})
    parsed = settings(**{field: ["36500d"] if field == "schedule" else "36500d"})
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert parsed.policy.due(now, now, parsed.policy.pause(1, 1.0)) is not None

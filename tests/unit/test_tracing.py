"""The ids of traces, whether they are sampled, whose trace is continued, and what a message says of its span."""

import dataclasses
import subprocess
import sys
from importlib.machinery import ModuleSpec
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from receiver.dispatch.publish import publication as published
from receiver.domain.publication import LogEntry, Publication
from receiver.errors import SettingsError
from receiver.settings import GivenSettings, dump, load, restore
from receiver.sinks.encoding import bind, traced_body
from receiver.tracing import settings as tracing_settings
from receiver.tracing.ids import Caller, trace_of
from receiver.tracing.recorder import refuse_other_process
from tests import event_schema
from tests.dispatching import appended
from tests.factories import make_event, make_publication

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_the_trace_of_a_callback_is_derived_from_its_id() -> None:
    trace = trace_of("callback-1", 1.0)
    assert trace == trace_of("callback-1", 1.0)
    others = {trace_of(f"callback-{number}", 1.0).id for number in range(1000)}
    assert len(others) == 1000
    assert len({trace.id, trace.callback, trace.processing}) == 3


@given(st.text(min_size=1), st.floats(0, 1))
def test_a_trace_is_sampled_as_the_sampler_of_opentelemetry_does(callback_id: str, ratio: float) -> None:
    trace = trace_of(callback_id, ratio)
    sampled = TraceIdRatioBased(ratio).should_sample(None, trace.id, "callback").decision.is_sampled()
    assert trace.is_sampled == sampled


def test_the_ratio_is_the_share_of_sampled_traces() -> None:
    sampled = sum(trace_of(f"callback-{number}", 0.1).is_sampled for number in range(20_000))
    assert 1_800 < sampled < 2_200
    assert not trace_of("callback-1", 0.0).is_sampled


def test_the_trace_of_a_caller_is_continued_with_its_decision() -> None:
    caller = Caller.of({"traceparent": f"00-{TRACE}-{SPAN}-00", "tracestate": "vendor=1"})
    assert caller is not None
    trace = trace_of("callback-1", 1.0, caller)
    assert (f"{trace.id:032x}", trace.is_sampled, trace.state) == (TRACE, False, "vendor=1")
    own = trace_of("callback-1", 1.0)
    assert (trace.callback, trace.processing) == (own.callback, own.processing)
    assert trace.traceparent(1) == f"00-{TRACE}-0000000000000001-00"


@pytest.mark.parametrize(
    ("header", "is_sampled"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-03", True),
        (f"01-{TRACE}-{SPAN}-01-more", True),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}-01, 00-{TRACE}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}-01\n", None),
        ("", None),
    ],
)
def test_a_traceparent_is_read_as_trace_context_prescribes(header: str, is_sampled: bool | None) -> None:
    caller = Caller.of({"traceparent": header})
    assert (caller.is_sampled if caller is not None else None) == is_sampled


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("congo=t61rcWkgMzE,rojo=00f067aa0ba902b7", "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"),
        (" fw529a3039@dt=FfAuq ", "fw529a3039@dt=FfAuq"),
        ("no member", None),
        ("a=b\r\nx: y", None),
        (f"a={'b' * 600}", None),
        (",".join(f"k{number}=v" for number in range(33)), None),
        ("", None),
    ],
)
def test_a_tracestate_that_is_not_valid_is_left_out(state: str, expected: str | None) -> None:
    caller = Caller.of({"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": state})
    assert caller is not None
    assert caller.state == expected


# --- messages ---


def publication(**more: Any) -> Publication:
    return dataclasses.replace(make_publication(), traceparent=f"00-{TRACE}-{SPAN}-01", **more)


@pytest.mark.parametrize("binding", ["structured", "binary"])
def test_headers_name_the_span_of_the_attempt(binding: Any) -> None:
    bound = bind(publication(tracestate="vendor=1"), binding, prefix="ce-")
    assert bound.headers["traceparent"] == f"00-{TRACE}-{SPAN}-01"
    assert bound.headers["tracestate"] == "vendor=1"
    plain = bind(make_publication(), binding, prefix="ce-")
    # Neither what is signed nor what is parsed depends on the trace.
    assert plain.body == bound.body
    assert plain.headers.keys() == bound.headers.keys() - {"traceparent", "tracestate"}


def test_a_body_alone_has_the_attributes_of_the_distributed_tracing_extension() -> None:
    one = publication(tracestate="vendor=1")
    event = orjson.loads(traced_body(one))
    assert event == orjson.loads(one.body) | {"traceparent": one.traceparent, "tracestate": "vendor=1"}
    assert traced_body(make_publication()) == make_publication().body


def test_an_event_with_the_attributes_is_what_its_schemas_say() -> None:
    one = appended(make_event())
    entry = LogEntry(position=1, event=one.event, previous_status=None, changed=True, delivery=one.delivery, message={})
    made = dataclasses.replace(published(entry), traceparent=f"00-{TRACE}-{SPAN}-01")
    event_schema.check(orjson.loads(traced_body(made)))


# --- settings ---


@pytest.mark.parametrize("exporter", ["otlp", "application"])
def test_a_missing_extra_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch, exporter: str) -> None:
    def none(name: str) -> ModuleSpec | None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(tracing_settings, "find_spec", none)
    monkeypatch.setenv("RECEIVER_TRACING__EXPORTER", exporter)
    line = rf"^RECEIVER_TRACING__EXPORTER: {exporter} needs the extra otel: pip install 'bandwidth-receiver\[otel\]'$"
    with pytest.raises(SettingsError, match=line):
        load()


def test_settings_of_tracing_are_read_and_reach_the_worker_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECEIVER_TRACING__EXPORTER", "otlp")
    monkeypatch.setenv("RECEIVER_TRACING__ENDPOINT", "https://collector.example.com:4318")
    monkeypatch.setenv("RECEIVER_TRACING__HEADERS", '{"api-key": "canary-5ec"}')
    monkeypatch.setenv("RECEIVER_TRACING__RATIO", "0.25")
    settings = load()
    assert "canary" not in repr(settings)
    restored = restore(dump(settings)).tracing
    assert restored == settings.tracing
    assert restored.headers["api-key"].get_secret_value() == "canary-5ec"
    assert restored.ratio == 0.25


@pytest.mark.parametrize("endpoint", ["collector:4318", "ftp://collector", "http://", "http://user:pass@collector"])
def test_an_endpoint_must_be_a_url_without_a_user(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("RECEIVER_TRACING__ENDPOINT", endpoint)
    with pytest.raises(SettingsError, match=r"^RECEIVER_TRACING__ENDPOINT: must begin with http") as raised:
        load()
    assert "pass" not in str(raised.value)


def test_a_misspelled_setting_of_tracing_gets_a_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECEIVER_TRACING__EXPORTERS", "otlp")
    with pytest.raises(SettingsError, match=r"did you mean RECEIVER_TRACING__EXPORTER\?"):
        load()


def test_the_tracer_provider_of_an_application_cannot_reach_a_worker_process() -> None:
    settings = GivenSettings(tracing={"exporter": "application"})
    with pytest.raises(SettingsError, match=r"^RECEIVER_TRACING__EXPORTER: application reaches no worker process"):
        refuse_other_process(settings.tracing, settings.worker)
    refuse_other_process(settings.tracing, "inline")
    refuse_other_process(GivenSettings(tracing={"exporter": "otlp"}).tracing, "process")


# --- switched off ---


def test_without_the_setting_opentelemetry_is_not_imported() -> None:
    program = """
import sys
import receiver.cli.program, receiver.cli.serve, receiver.cli.work, receiver.worker, receiver.app
from receiver.settings import GivenSettings
receiver.app.Receiver(GivenSettings(worker="inline", callback_auth="none", api_auth="none", metrics_auth="none"))
print(sorted(name for name in sys.modules if name.partition(".")[0] == "opentelemetry"))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=60)
    assert (ended.stdout, ended.stderr) == (b"[]\n", b"")

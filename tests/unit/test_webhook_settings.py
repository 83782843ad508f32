"""The fields of a webhook's table: what they may be, and one line for each mistake."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from receiver.errors import SettingsError
from receiver.sinks.registry import configure
from receiver.sinks.webhook import WebhookSettings

HOOK = {"name": "crm", "type": "webhook", "url": "https://crm.example/hook"}


def settings(**fields: Any) -> Any:
    [configured] = configure([HOOK | fields])
    return configured.settings


def complaint(**fields: Any) -> str:
    with pytest.raises(SettingsError) as refused:
        settings(**fields)
    return str(refused.value).removeprefix("RECEIVER_SINKS: crm: ")


@pytest.mark.parametrize(
    "url",
    [
        "gopher://crm.example/",
        "unix:///run/app.sock",
        "http+unix://%2Frun%2Fapp.sock/",
        "ftp://crm.example/",
        "ws://crm.example/",
        "javascript:alert(1)",
        "//crm.example/",
        "crm.example",
        "https://",
        "http://[fe80::1%eth0]/",
        "http://[fe80::1%25eth0]/",
        "http://%31%32%37.0.0.1/",
    ],
)
def test_only_http_to_a_host_is_spoken(url: str) -> None:
    assert complaint(url=url) == "url: must begin with http:// or https:// and name a host"


def test_a_file_is_where_a_url_is_kept_and_none_itself(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("https://crm.example/\n")
    assert settings(url=f"file:{tmp_path / 'url'}").url.get_secret_value() == "https://crm.example/"
    assert complaint(url="file:///no/such/file") == "url: cannot read /no/such/file: No such file or directory"


@pytest.mark.parametrize("url", ["http://0177.0.0.1/", "http://１２７.0.0.1/", "http://[::1", "http://[v1.x]/"])
def test_a_host_that_is_spelled_to_deceive_is_no_url(url: str) -> None:
    assert complaint(url=url) == "url: is not a URL"


@pytest.mark.parametrize(
    ("url", "port"), [("http://crm.example/", 80), ("https://crm.example/", 443), ("https://crm.example:8443/", 8443)]
)
def test_ports_may_be_limited(url: str, port: int) -> None:
    assert settings(url=url).egress_ports == ()
    assert settings(url=url, egress_ports=[port, 1]).egress_ports == (port, 1)
    assert complaint(url=url, egress_ports=[1, 2]) == f"url: its port, {port}, is not in egress_ports"
    assert complaint(url=url, egress_ports=[0]).startswith("egress_ports.0: ")


def test_a_port_exists() -> None:
    for port in (0, 65536):
        assert complaint(url=f"https://crm.example:{port}/") == "url: has a port that does not exist"


@pytest.mark.parametrize("network", ["10.0.0.0/33", "10.0.0.1/8", "crm.example", ""])
def test_an_allowed_network_is_one(network: str) -> None:
    assert complaint(egress_allow=["10.0.0.0/8", network]).startswith("egress_allow.1: ")


@pytest.mark.parametrize(
    "name",
    [
        "Host",
        "HOST",
        "Connection",
        "Keep-Alive",
        "TE",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
        "Expect",
        "Accept-Encoding",
        "User-Agent",
        "Content-Length",
        "Content-Type",
        "Content-Encoding",
        "Proxy-Authorization",
        "Proxy-Connection",
        "webhook-id",
        "Webhook-Signature",
        "ce-id",
        "receiver-replayed",
        "traceparent",
        "TraceState",
    ],
)
def test_a_header_that_is_ours_cannot_be_set(name: str) -> None:
    assert complaint(headers={"X-Env": "prod", name: "canary"}) == f"headers: {name} is a reserved header"


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a\r\nb", "ü", "a\n"])
def test_a_headers_name_is_a_token(name: str) -> None:
    assert complaint(headers={name: "x"}) == f"headers: {name!r} is not the name of a header"


@pytest.mark.parametrize("value", ["a\r\nb: canary", "canary\n", "\0canary", " canary", "canaryü", "canary\x7f"])
def test_a_headers_value_is_printable_and_not_shown(value: str) -> None:
    error = complaint(headers={"X-Token": value})
    assert error == "headers: X-Token must be of printable ASCII characters, on one line"


def test_a_header_is_there_once() -> None:
    assert complaint(headers={"X-Env": "a", "x-env": "b"}) == "headers: a header is there twice"
    error = complaint(url="https://user:canary@crm.example/", headers={"authorization": "Bearer canary"})
    assert error == "headers: Authorization is in url already"


def test_a_headers_value_is_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRM_TOKEN", "Bearer canary")
    parsed = settings(headers={"Authorization": "env:CRM_TOKEN", "Cookie": "a=canary"})
    assert parsed.headers["Authorization"].get_secret_value() == "Bearer canary"
    assert "canary" not in f"{parsed!r} {parsed} {parsed.model_dump_json()}"
    assert complaint(headers={"X": "env:NO_SUCH"}) == "headers.X: there is no environment variable NO_SUCH"


def test_a_file_of_certificates_is_there_and_holds_one(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("")
    (tmp_path / "broken.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    for name in ("empty.pem", "broken.pem"):
        assert complaint(ca_file=str(tmp_path / name)) == f"ca_file: {tmp_path / name} holds no certificate"
    error = complaint(ca_file=str(tmp_path / "none.pem"))
    assert error == f"ca_file: cannot read {tmp_path / 'none.pem'}: No such file or directory"


def test_a_binding_is_one_of_two() -> None:
    assert settings().binding == "structured"
    assert complaint(binding="raw").startswith("binding: Input should be 'structured' or 'binary'")


OWN = {"own_urls": [f"{base}/callbacks/bandwidth/v2" for base in ("https://sms.example", "http://127.0.0.1:8080")]}


@pytest.mark.parametrize(
    "url",
    [
        "https://sms.example/callbacks/bandwidth/v2",
        "HTTPS://user:password@SMS.example:443/callbacks/bandwidth/v2?x=y",
        "http://127.0.0.1:8080/callbacks/bandwidth/v2",
    ],
)
def test_where_we_take_callbacks_ourselves_nothing_is_posted(url: str) -> None:
    with pytest.raises(ValidationError, match="is where this receiver takes callbacks itself"):
        WebhookSettings.model_validate(HOOK | {"url": url}, context=OWN)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8081/callbacks/bandwidth/v2",
        "https://sms.example/hooks",
        "https://crm.example/callbacks/bandwidth/v2",
    ],
)
def test_a_neighbour_of_ours_may_be_posted_to(url: str) -> None:
    assert WebhookSettings.model_validate(HOOK | {"url": url}, context=OWN).url.get_secret_value() == url

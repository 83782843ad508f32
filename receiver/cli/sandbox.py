"""`receiver sandbox`: stands in for Bandwidth until it is stopped."""

import ipaddress
import os
import socket
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import typer
from pydantic import ValidationError

from receiver import logs
from receiver.cli.options import option_name
from receiver.cli.output import OutputClosed, echo, echo_error
from receiver.cli.serve import bind, run, serving, stop_signal
from receiver.errors import SettingsError
from receiver.sandbox.app import application
from receiver.sandbox.client import is_local
from receiver.sandbox.settings import VARIABLES, SandboxSettings
from receiver.settings_sources import is_service_link

_JSON = "-H 'Content-Type: application/json'"
# The word for an empty list: an empty variable of the environment counts as absent.
_NONE = "none"


def sandbox(values: dict[str, Any], *, host: str, port: int) -> int:
    """Serves until SIGTERM or SIGINT. `values` are the given settings, as texts, lists of texts and flags."""
    _refuse_unknown_variables()
    settings = _settings({name: _value(name, value) for name, value in values.items()})
    logs.configure(level="warning")
    with ExitStack() as stack:
        listeners = bind(host, port)
        for listener in listeners:
            stack.callback(listener.close)
        _refuse_strangers(settings, host, listeners)
        run(_serve(settings, host, listeners))
    return 0


def _refuse_unknown_variables() -> None:
    """Refuses a variable with the prefix whose name is no setting: it would be ignored silently."""
    for variable, value in os.environ.items():
        is_setting = variable.removeprefix(VARIABLES).lower() in SandboxSettings.model_fields
        if variable.startswith(VARIABLES) and not is_setting and not is_service_link(variable, value, VARIABLES):
            raise SettingsError(f"{variable} is not a setting of the sandbox")


def _value(name: str, value: Any) -> Any:
    if name == "rates":
        return _parse_rates(value)
    return [] if value == [_NONE] else value


def _settings(values: dict[str, Any]) -> SandboxSettings:
    try:
        return SandboxSettings.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        name = str(problem["loc"][0])
        keys = [part for part in problem["loc"][1:] if isinstance(part, str)]
        message = ": ".join([*keys, problem["msg"].removeprefix("Value error, ")])
        option = option_name(name, SandboxSettings.model_fields[name])
        raise typer.BadParameter(message, param_hint=option) from None


def _parse_rates(rates: Iterable[str]) -> dict[str, str]:
    """Parses rates of the form `NAME=SHARE`."""
    pairs = [rate.partition("=") for rate in rates]
    if not all(share for _, _, share in pairs):
        raise typer.BadParameter("must be NAME=SHARE, for example failed=0.1", param_hint="--rate")
    return {name: share for name, _, share in pairs}


def _refuse_strangers(settings: SandboxSettings, host: str, listeners: Sequence[socket.socket]) -> None:
    """Other machines are served only with `--remote-clients`: a client of `/sandbox/` can make it send requests."""
    if not settings.remote_clients and not all(map(_is_loopback, listeners)):
        raise typer.BadParameter(
            f"other machines can reach {host}, and the paths under /sandbox/ need no credentials: "
            "add --remote-clients if that is intended",
            param_hint="--host",
        )


async def _serve(settings: SandboxSettings, host: str, listeners: Sequence[socket.socket]) -> None:
    stop = stop_signal()
    app = application(settings)
    async with serving(app, listeners):
        url = f"http://{f'[{host}]' if ':' in host else host}:{listeners[0].getsockname()[1]}"
        for option in _remote_urls(settings):
            echo_error(f"{option} is not on this machine: callbacks are not sent there without --remote-callbacks")
        with suppress(OutputClosed):
            echo(*_banner(settings, url))
        await stop.wait()
        app.state.callback_sender.end_waits()


def _remote_urls(settings: SandboxSettings) -> list[str]:
    """Returns the options with a URL on another machine, to which the sandbox does not send callbacks."""
    urls = {
        "--outbound-url": settings.outbound_url,
        "--inbound-url": settings.inbound_url,
        "--v1-inbound-url": settings.v1_inbound_url,
        "--v1-inbound-fallback-url": settings.v1_inbound_fallback_url,
    }
    if settings.remote_callbacks:
        return []
    return [option for option, url in urls.items() if url and not is_local(url.get_secret_value())]


def _banner(settings: SandboxSettings, url: str) -> list[str]:
    """Returns the lines printed at the start: the URL and examples."""
    return [
        f"sandbox listens on {url}",
        "",
        "Send a message with v2 and with v1",
        f"  {_post(settings, url + '/api/v2/users/u-1/messages', _V2_MESSAGE)}",
        # v1 answers 201 without a body: -i shows the address of the message.
        f"  {_post(settings, '-i ' + url + '/v1/users/u-1/messages', _V1_MESSAGE)}",
        *_outbound_url_hint(settings),
        "Simulate an inbound message",
        f"  curl {url}/sandbox/inbound {_JSON} -d '{_INBOUND}'",
        "List the callbacks sent, and the recipients that fail or have faults",
        f"  curl {url}/sandbox/posts",
        f"  curl {url}/sandbox/numbers",
    ]


_V2_MESSAGE = '{"from": "+19195551234", "to": "+19195554321", "text": "hello", "applicationId": "a-1"}'
_V1_MESSAGE = (
    '{"from": "+19195551234", "to": "+19195554321", "text": "hello", "receiptRequested": "all", '
    '"callbackUrl": "http://USER:PASSWORD@127.0.0.1:8080/callbacks/bandwidth/v1"}'
)
_INBOUND = '{"from": "+19195554321", "to": "+19195551234", "text": "hello"}'


def _post(settings: SandboxSettings, url: str, message: str) -> str:
    credentials = {(): "", SandboxSettings().credentials: "-u token:secret "}.get(
        settings.credentials, "-u TOKEN:SECRET "
    )
    return f"curl {credentials}{url} {_JSON} -d '{message}'"


def _outbound_url_hint(settings: SandboxSettings) -> list[str]:
    if settings.outbound_url is not None:
        return []
    return ["Status callbacks of v2 messages are not sent: set --outbound-url."]


def _is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback

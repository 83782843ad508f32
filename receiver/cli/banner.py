"""The lines that `receiver serve` prints once it listens: callback URLs, addresses of the API, credentials."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from receiver.providers import PROVIDERS
from receiver.providers.base import Provider
from receiver.settings import PREFIX, Settings


def banner(settings: Settings, *, given: Settings, file: Path | None, secrets: bool) -> list[str]:
    """The lines. `given` are the settings before credentials were filled in from `file`.

    Without `secrets` the lines name the file or the setting that holds the credentials.
    """
    return [
        f"receiver listens on {settings.base_url}",
        *_unreachable(settings),
        "",
        *(line for api in sorted(PROVIDERS) for line in _urls(settings, PROVIDERS[api], secrets)),
        *_user(settings, secrets),
        *_stored_in("callback_credentials", settings, given, file, secrets),
        "",
        f"API          {settings.base_url}/api",
        f"Docs         {settings.base_url}/docs",
        f"OpenAPI      {settings.base_url}/openapi.json",
        *_token(settings, secrets),
        *_stored_in("api_tokens", settings, given, file, secrets),
    ]


def _urls(settings: Settings, provider: Provider, secrets: bool) -> Iterator[str]:
    yield f"{provider.title}: {provider.fields}"
    for url in provider.urls:
        if provider.user_in_url:
            yield f"  {_with_user(settings, url.path, secrets)}"
        elif url.route == "primary":
            yield f"  {settings.base_url}{url.path}"


def _unreachable(settings: Settings) -> list[str]:
    if settings.public_url is not None:
        return []
    return [f"Set {PREFIX}PUBLIC_URL to the address under which Bandwidth reaches this server."]


def _pair(settings: Settings) -> tuple[str, str] | None:
    """The user and the password for Bandwidth: the first of the callback credentials."""
    if settings.callback_auth == "none":
        return None
    user, _, password = settings.callback_credentials[0].get_secret_value().partition(":")
    return user, password


def _with_user(settings: Settings, path: str, secrets: bool) -> str:
    pair = _pair(settings)
    if pair is None:
        return settings.base_url + path
    user, password = (quote(part, safe="") for part in pair) if secrets else ("USER", "PASSWORD")
    url = urlsplit(settings.base_url + path)
    return urlunsplit(url._replace(netloc=f"{user}:{password}@{url.netloc}"))


def _user(settings: Settings, secrets: bool) -> list[str]:
    pair = _pair(settings)
    if pair is None or not secrets:
        return []
    return [f"  user      {pair[0]}", f"  password  {pair[1]}"]


def _token(settings: Settings, secrets: bool) -> list[str]:
    if not settings.api_tokens or not secrets:
        return []
    return [f"API token    {_bare(settings.api_tokens[0].get_secret_value())}"]


def _bare(token: str) -> str:
    """The token that a request carries, from `token` or `name:access:token`."""
    parts = token.split(":", 2)
    return parts[2] if len(parts) == 3 and parts[1] in ("read", "admin") else token


def _stored_in(name: str, settings: Settings, given: Settings, file: Path | None, secrets: bool) -> list[str]:
    """The place that holds credentials which are not printed."""
    if secrets or not getattr(settings, name):
        return []
    label = _LABELS[name]
    return [f"{label} as set in {PREFIX}{name.upper()}" if getattr(given, name) else f"{label} in {file}"]


_LABELS = {"callback_credentials": "  user and password", "api_tokens": "API token   "}

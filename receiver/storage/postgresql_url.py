"""The URL of a PostgreSQL database, as libpq's programs and hosts of databases write it, made into the driver's."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlencode

from sqlalchemy import URL

from receiver.errors import SettingsError

_SETTING: Final = "RECEIVER_DATABASE_URL"
DEFAULT_PORT: Final = 5432
POOLER: Final = "pgbouncer"
"""The parameter by which a URL says that a connection pooler stands before the server; Prisma calls it so."""

# libpq's parameters as hosts of databases print them. These have nothing to set here: asyncpg authenticates without
# channel binding, and the timeouts and the name of a session are ours.
_NOT_NEEDED: Final = frozenset(
    {
        "application_name",
        "channel_binding",
        "client_encoding",
        "connect_timeout",
        "gssencmode",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "load_balance_hosts",
        "prepared_statement_cache_size",
        "statement_cache_size",
        "tcp_user_timeout",
    }
)
# These name the parts of the URL that may also stand before the `?`.
_PARTS: Final = frozenset({"host", "port", "user", "password", "dbname"})
# The driver takes these from a DSN alone.
_FILES: Final = frozenset({"sslcert", "sslcrl", "sslkey", "sslrootcert"})
_IN_DSN: Final = frozenset({*_FILES, "options", "sslpassword"})
_CHOICES: Final = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "target_session_attrs": ("any", "primary", "read-write"),
    POOLER: ("true", "false"),
}
_TAKEN: Final = frozenset({"passfile", *_CHOICES, *_IN_DSN, *_PARTS})


def postgresql_url(url: str) -> URL:
    """The URL for asyncpg. Raises SettingsError with one line that contains no part of a password.

    Several hosts become lists of hosts and ports in the query, a form that SQLAlchemy knows.
    """
    address, _, query = url.partition("://")[2].partition("?")
    authority, _, name = address.partition("/")
    # The last @: a password with one that is not encoded is still understood.
    login, _, listed = authority.rpartition("@")
    user, _, password = login.partition(":")
    if "@" in name or "@" in query:
        # A / or ? in a password ended the address too early.
        raise _undecipherable()
    given = _parameters(query)
    parts = {part: given.pop(part) for part in _PARTS & given.keys()}
    hosts = list(_hosts(parts.get("host", unquote(listed)), parts.get("port", "")))
    if len(hosts) > 1:
        # Callbacks can only be stored where writes are taken: by libpq's default the first host that answers would do.
        given.setdefault("target_session_attrs", "read-write")
    return URL.create(
        "postgresql+asyncpg",
        username=parts.get("user", unquote(user)) or None,
        password=parts.get("password", unquote(password)) or None,
        database=parts.get("dbname", unquote(name)) or None,
        host=hosts[0][0] if len(hosts) == 1 else None,
        port=hosts[0][1] if len(hosts) == 1 else None,
        query=_driver_query(given, hosts),
    )


def _undecipherable() -> SettingsError:
    return SettingsError(
        f"{_SETTING} is not a database URL: write postgresql://user:password@host:port/name, with every @ : / ? # % of "
        "the password as %40 %3A %2F %3F %23 %25",
        topic="settings",
    )


def _parameters(query: str) -> dict[str, str]:
    """The parameters that count. An error has no text of the query: a password with a ? or & looks like parameters."""
    listed = parse_qsl(query, keep_blank_values=True)
    for number, (name, value) in enumerate(listed, 1):
        if name in _CHOICES and value not in _CHOICES[name]:
            raise SettingsError(f"{_SETTING}: {name} must be one of {', '.join(_CHOICES[name])}", topic="settings")
        if name in _FILES and not Path(value).is_file():
            raise SettingsError(f"{_SETTING}: there is no such file as {name} says", topic="settings")
        if name not in _TAKEN | _NOT_NEEDED:
            raise SettingsError(f"{_SETTING}: parameter {number} after the ? is not supported", topic="settings")
    return {name: value for name, value in listed if name in _TAKEN}


def _hosts(listed: str, ports: str) -> Iterator[tuple[str, int | None]]:
    """The hosts and ports of `host1:port1,host2:port2`, or of a list of hosts and one of ports."""
    hosts = listed.split(",")
    separate = ports.split(",")
    if len(separate) not in (1, len(hosts)):
        raise SettingsError(f"{_SETTING}: there are {len(hosts)} hosts and {len(separate)} ports", topic="settings")
    for place, host in enumerate(hosts):
        if host.startswith("/"):
            found = re.fullmatch(r"(?P<name>.*)(?P<port>)", host)
        else:
            found = re.fullmatch(r"(?P<name>\[[0-9A-Fa-f:.%\w]+\]|[^:@/?#\s]*)(?::(?P<port>\d{0,5}))?", host)
        port = (found["port"] if found else "") or separate[place % len(separate)]
        if found is None or not (port == "" or (port.isascii() and port.isdecimal() and 0 < int(port) < 65536)):
            raise _undecipherable()
        yield found["name"].strip("[]"), int(port) if port else None


def _driver_query(given: dict[str, str], hosts: list[tuple[str, int | None]]) -> dict[str, str]:
    query: dict[str, str] = {
        name: given[name] for name in ("passfile", "target_session_attrs", POOLER) if name in given
    }
    if "sslmode" in given:
        query["ssl"] = given["sslmode"]
    if files := {name: value for name, value in given.items() if name in _IN_DSN}:
        query["dsn"] = f"postgresql://?{urlencode(files)}"
    if len(hosts) > 1:
        query["host"] = ",".join(host or "localhost" for host, _ in hosts)
        query["port"] = ",".join(str(port or DEFAULT_PORT) for _, port in hosts)
    return query

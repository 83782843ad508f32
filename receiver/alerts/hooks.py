"""The targets that receiver talks to itself: webhooks in Alertmanager's format, PagerDuty and Opsgenie.

They know an alert by its id, so that it opens one incident, however often it is sent, and closes it when it is
resolved. Apprise sends to PagerDuty and Opsgenie too, but not with a key for each alert.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final
from urllib.parse import parse_qsl, quote

import httpx2

from receiver.alerts import alertmanager
from receiver.alerts.http import Failure, in_time, post_json
from receiver.alerts.text import Templates, cleaned, fields
from receiver.domain.alerts import Severity
from receiver.domain.cloudevents import rfc3339
from receiver.domain.notifications import Notification
from receiver.sinks.egress import Network

SECONDS: Final = 15.0
"""A notification is delivered within this time, or it is tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What all targets need: the templates, the beginning of links, and the networks that may be connected to."""

    templates: Templates
    base_url: str
    egress_allow: tuple[Network, ...] = ()


class InvalidTarget(ValueError):
    """A target cannot be used; the message has no part of its URL that could be a secret."""


class AlertmanagerTarget:
    """A webhook that takes the JSON that Alertmanager posts."""

    closes: ClassVar[bool] = True

    def __init__(self, url: str, context: Context) -> None:
        self._url = _web_url(url.removeprefix("alertmanager+"))
        self._context = context

    async def send(self, notification: Notification) -> Failure | None:
        content = alertmanager.payload(notification, self._context.templates, self._context.base_url)
        return await in_time(SECONDS, post_json(self._url, content, allowed=self._context.egress_allow))


_PAGERDUTY_URLS: Final = {"us": "https://events.pagerduty.com", "eu": "https://events.eu.pagerduty.com"}
_OPSGENIE_URLS: Final = {"us": "https://api.opsgenie.com", "eu": "https://api.eu.opsgenie.com"}
_KEY: Final = re.compile(r"[A-Za-z0-9_-]{8,128}")
_PRIORITIES: Final = {Severity.CRITICAL: "P1", Severity.WARNING: "P3", Severity.INFO: "P5"}

# The longest texts that the services take.
_PAGERDUTY_SUMMARY: Final = 1024
_OPSGENIE_MESSAGE: Final = 130
_OPSGENIE_ENTITY: Final = 512
_OPSGENIE_DESCRIPTION: Final = 15_000


class PagerDutyTarget:
    """PagerDuty's Events API v2. The alert's id is the `dedup_key`."""

    closes: ClassVar[bool] = True

    def __init__(self, url: str, context: Context) -> None:
        self._key, base = _key_and_base(url, _PAGERDUTY_URLS, "the integration key of a service")
        self._url = base.copy_with(path=f"{base.path.rstrip('/')}/v2/enqueue")
        self._context = context

    async def send(self, notification: Notification) -> Failure | None:
        content = pagerduty_event(notification, self._key, self._context)
        return await in_time(SECONDS, post_json(self._url, content, allowed=self._context.egress_allow))


def pagerduty_event(notification: Notification, key: str, context: Context) -> dict[str, Any]:
    """https://developer.pagerduty.com/docs/events-api-v2/trigger-events/"""
    alert, values = notification.alert, fields(notification)
    event: dict[str, Any] = {
        "routing_key": key,
        "event_action": "resolve" if notification.is_resolved else "trigger",
        "dedup_key": alert.id,
    }
    if notification.is_resolved:
        return event
    summary = f"{context.templates.render_title(notification)}: {values['summary']}"
    known = ("group", "value", "threshold", "before", "volume", "messages", "runbook")
    return event | {
        "payload": {
            "summary": cleaned(summary, _PAGERDUTY_SUMMARY),
            "source": context.base_url,
            "severity": str(alert.severity),
            "timestamp": rfc3339(alert.fired_at or alert.began_at),
            "component": "receiver",
            "class": str(alert.rule),
            "group": values["group"] or values["name"],
            "custom_details": {name: values[name] for name in known if values[name]},
        },
        "client": "receiver",
        "client_url": context.base_url,
        "links": [{"href": notification.link, "text": "Alert"}],
    }


class OpsgenieTarget:
    """Opsgenie's alert API. The alert's id is the `alias`."""

    closes: ClassVar[bool] = True

    def __init__(self, url: str, context: Context) -> None:
        self._key, base = _key_and_base(url, _OPSGENIE_URLS, "the key of an API integration")
        self._url = base.copy_with(path=f"{base.path.rstrip('/')}/v2/alerts")
        self._context = context

    async def send(self, notification: Notification) -> Failure | None:
        url, content = opsgenie_request(notification, self._url, self._context)
        headers = {"authorization": f"GenieKey {self._key}"}
        sending = post_json(url, content, allowed=self._context.egress_allow, headers=headers)
        return await in_time(SECONDS, sending)


def opsgenie_request(
    notification: Notification, url: httpx2.URL, context: Context
) -> tuple[httpx2.URL, dict[str, Any]]:
    """https://docs.opsgenie.com/docs/alert-api"""
    alert, values = notification.alert, fields(notification)
    if notification.is_resolved:
        closing = f"{url.path}/{quote(alert.id, safe='')}/close"
        return (
            url.copy_with(path=closing, params={"identifierType": "alias"}),
            {"source": "receiver", "note": values["summary"]},
        )
    known = ("rule", "group", "value", "threshold", "before", "volume", "messages", "link", "runbook")
    return url, {
        "message": cleaned(context.templates.render_title(notification), _OPSGENIE_MESSAGE),
        "alias": alert.id,
        "description": context.templates.render_body(notification)[:_OPSGENIE_DESCRIPTION],
        "entity": (values["group"] or values["name"])[:_OPSGENIE_ENTITY],
        "source": "receiver",
        "priority": _PRIORITIES[alert.severity],
        "tags": ["receiver", str(alert.rule)],
        "details": {name: values[name] for name in known if values[name]},
    }


def _key_and_base(url: str, regions: Mapping[str, str], meaning: str) -> tuple[str, httpx2.URL]:
    """The key and the address of the API of `scheme://KEY?region=eu` or `scheme://KEY?url=https://…`."""
    scheme, _, rest = url.partition("://")
    key, _, query = rest.partition("?")
    key = key.rstrip("/")
    if not _KEY.fullmatch(key):
        raise InvalidTarget(f"must be {scheme}://KEY, where KEY is {meaning}")
    options = _options(query, ("region", "url"))
    region = options.get("region", "us")
    if region not in regions:
        raise InvalidTarget(f"region must be one of {', '.join(sorted(regions))}")
    return key, _web_url(options.get("url", regions[region]))


def _options(query: str, known: Collection[str]) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    if options.keys() - set(known):
        raise InvalidTarget(f"has a parameter that is not one of {', '.join(known)}")
    return options


def _web_url(text: str) -> httpx2.URL:
    if not text.isprintable() or " " in text:
        raise InvalidTarget("must be without spaces and control characters")
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL:
        raise InvalidTarget("is not a URL") from None
    if url.port is not None and not 0 < url.port <= 65535:
        raise InvalidTarget("has a port that does not exist")
    if url.scheme not in ("http", "https") or not url.host or "%" in url.host:
        raise InvalidTarget("must name a host")
    return url

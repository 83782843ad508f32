"""The pages for developers: the URLs to paste into Bandwidth's settings, and signed tags."""

from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlsplit, urlunsplit

from starlette.responses import Response

from receiver import tags
from receiver.api.operations import named
from receiver.api.problems import ProblemError
from receiver.api.reference import OPERATIONS, SignedTag, TagRequest
from receiver.api.status import OPERATIONS as STATUS
from receiver.api.status import InstallationStatus
from receiver.pages.visit import Visit
from receiver.providers.base import Provider
from receiver.providers.registry import PROVIDERS

SIGN: Final = named(OPERATIONS, "signTag")
STATUS_NOW: Final = named(STATUS, "getStatus")


@dataclass(frozen=True, slots=True, kw_only=True)
class PastedUrl:
    """A callback URL as Bandwidth's setting takes it; `with_user` has user and password in it, where v1 needs that."""

    title: str
    fields: str
    route: str
    url: str
    with_user: str | None
    seen: str | None


async def setup_page(visit: Visit) -> Response:
    """The URLs to paste, and whether callbacks have come by them."""
    status: InstallationStatus = await visit.perform(STATUS_NOW)
    seen = dict(status.last_callbacks or {})
    return visit.page(
        "setup.html",
        urls=[url for api in sorted(PROVIDERS) for url in _urls(visit, PROVIDERS[api], seen)],
        seen=seen,
        base=visit.base_url,
        is_public=visit.context.public_url is not None,
        user=_callback_user(visit),
        has_user=visit.settings.callback_user is not None,
        problems=status.problems,
    )


def _urls(visit: Visit, provider: Provider, seen: dict[str, str]) -> list[PastedUrl]:
    user = _callback_user(visit) if provider.user_in_url else None
    return [
        PastedUrl(
            title=provider.title,
            fields=provider.fields,
            route=url.route,
            url=visit.base_url + url.path,
            with_user=_with_user(visit.base_url + url.path, user) if user is not None else None,
            seen=seen.get(f"{provider.api}/{url.route}"),
        )
        for url in provider.urls
        if provider.user_in_url or url.route == "primary"
    ]


def _callback_user(visit: Visit) -> tuple[str, str] | None:
    """User and password for Bandwidth, for those who have signed in as administrators."""
    return visit.settings.callback_user if visit.session is not None and visit.is_admin else None


def _with_user(url: str, user: tuple[str, str]) -> str:
    parts = urlsplit(url)
    name, password = (quote(part, safe="") for part in user)
    return urlunsplit(parts._replace(netloc=f"{name}:{password}@{parts.netloc}"))


# --- tags ---


async def tags_page(visit: Visit) -> Response:
    """Signs a tag, and says what a tag on a message proves; a link may have filled in the tag and its numbers."""
    given = dict(visit.parameters)
    visit.form = {name: given[name] for name in ("tag", "from", "to") if name in given}
    return _tags(visit)


def _tags(
    visit: Visit, *, signed: str | None = None, check: tags.TagCheck | None = None, problem: str | None = None
) -> Response:
    return visit.page(
        "tags.html",
        status=400 if problem is not None else 200,
        form=visit.form,
        has_key=bool(visit.settings.tag_keys),
        signed=signed,
        check=check,
        problem=problem,
    )


async def use_tag(visit: Visit) -> Response:
    """Signs the value of the form, or checks its tag."""
    form = {name: value.strip() for name, value in visit.form.items()}
    recipients = [number for number in form.get("to", "").replace(",", " ").split() if number]
    sender = form.get("from") or None
    if form.get("action") == "check":
        tag = form.get("tag", "")
        return _tags(visit, check=tags.verify(tag, visit.settings.tag_keys, sender=sender, recipients=recipients))
    try:
        body = TagRequest.model_validate(
            {"value": form.get("value", ""), "from": sender, "to": recipients or None}, by_alias=True
        )
        result: SignedTag = await visit.perform(SIGN, body=body)
    except (ProblemError, ValueError) as error:
        return _tags(visit, problem=error.detail if isinstance(error, ProblemError) else "The value is too long.")
    return _tags(visit, signed=result.tag)

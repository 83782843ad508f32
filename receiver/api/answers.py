"""Bodies: responses as JSON or CSV, links to the next page, and request bodies validated by a model."""

from collections.abc import Mapping
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, urlencode

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from receiver.api.operations import JSON
from receiver.api.parameters import invalid_values
from receiver.api.problems import ProblemError, invalid_values_problem

CSV: Final = "text/csv"
_HEADERS: Final = {
    # Responses hold message texts and numbers, which no cache may store.
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


def json_answer(
    value: Any, *, link: Mapping[str, str] | None = None, media_type: str = JSON, leave_out_null: bool = False
) -> Response:
    """Models, lists of them, or plain values as JSON; `link` is a header from `next_page`."""
    # Bytes are JSON already.
    body = value if isinstance(value, bytes) else to_json(value, by_alias=True, exclude_none=leave_out_null)
    return Response(body, headers={**_HEADERS, **(link or {})}, media_type=media_type)


def csv_answer(text: str, *, name: str, link: Mapping[str, str]) -> Response:
    """A table as a file to download: a browser must not render text that strangers wrote."""
    disposition = {"Content-Disposition": f'attachment; filename="{name}.csv"'}
    return Response(text, 200, {**_HEADERS, **disposition, **link}, f"{CSV}; charset=utf-8; header=present")


MOUNTED_AT: Final = "receiver.mounted_at"
"""The key in a request's scope for the path under which another application mounts this one."""


def next_page(request: Request, public_url: str | None, **changes: str) -> dict[str, str]:
    """The `Link` header with this request's own address, some parameters changed, and without `page`."""
    query = parse_qsl(request.scope["query_string"].decode(), keep_blank_values=True)
    unchanged = [(name, value) for name, value in query if name not in {"page", *changes}]
    path: str = request.scope["path"]
    # The Host header, unless `public_url` is set, which includes the path where the application is mounted.
    if public_url is None:
        address = f"{request.url.scheme}://{request.url.netloc}{path}"
    else:
        address = public_url.rstrip("/") + path.removeprefix(request.scope.get(MOUNTED_AT, ""))
    address += f"?{urlencode([*unchanged, *changes.items()])}"
    return {"Link": f'<{address}>; rel="next"'}


def prefers_csv(accept: str) -> bool:
    """Whether an Accept header prefers CSV to JSON."""
    return _quality(accept, "text", "csv") > _quality(accept, "application", "json")


def _quality(accept: str, kind: str, subtype: str) -> float:
    """The quality of a media type in an Accept header, by the most specific range that covers it."""
    ranges = {}
    for part in accept.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        ranges[name] = _weight(parameters)
    wanted = (f"{kind}/{subtype}", f"{kind}/*", "*/*")
    return next((ranges[name] for name in wanted if name in ranges), 0.0)


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter.removeprefix("q="))
            except ValueError:
                return 0.0
    return 1.0


MAX_BODY_BYTES: Final = 65_536

Model = TypeVar("Model", bound=BaseModel)


async def read_body(request: Request, model: type[Model]) -> Model:
    """The body as a model; raises a problem that names every invalid field."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        raise ProblemError(415, "The body must be application/json.")
    try:
        return model.model_validate_json(await _body(request))
    except ValidationError as error:
        raise invalid_values_problem(invalid_values(error)) from None


async def _body(request: Request) -> bytes:
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY_BYTES:
                raise ProblemError(413, headers={"Connection": "close"})
    except ClientDisconnect:
        raise ProblemError(400) from None
    return body

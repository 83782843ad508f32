"""Routes for groups of operations: a request becomes a call, its result or its error a response."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, unquote_to_bytes

from pydantic import BaseModel
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Mount, Route, Router
from starlette.types import ASGIApp, Scope

from receiver.api import problems
from receiver.api.answers import MOUNTED_AT, csv_answer, json_answer, next_page, prefers_csv, read_body
from receiver.api.auth import Scheme, TokenBackend, is_admin
from receiver.api.operations import ApiContext, Call, Listed, Operation
from receiver.api.parameters import parse_query
from receiver.api.problems import Problem, ProblemError, as_problem
from receiver.errors import ReceiverError
from receiver.providers.fields import storable

PENDING_HEADER: Final = "Receiver-Pending"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Operations under one prefix, with the same authentication and the same form of errors."""

    prefix: str
    operations: Sequence[Operation]
    scheme: Scheme
    error_handler: problems.Handler = problems.answer
    error: type[BaseModel] = Problem
    error_media_type: str = problems.MEDIA_TYPE


def mount(group: Group, context: ApiContext) -> Mount:
    """The routes of a group, behind its token check."""
    app: ASGIApp = Router(
        [_route(operation, context, group.prefix) for operation in group.operations], redirect_slashes=False
    )
    if context.tokens is not None:
        app = AuthenticationMiddleware(app, backend=TokenBackend(context.tokens, group.scheme))
    return EncodedMount(group.prefix, ExceptionMiddleware(app, problems.handlers(group.error_handler)))


class EncodedMount(Mount):
    """Routes by the undecoded path, so that `%2F` is part of an id and not a separator."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        raw = scope.get("raw_path")
        path = raw.decode("latin-1") if raw else quote(scope["path"])
        match, child = super().matches({**scope, "path": path})
        # The path under which this application is mounted; `Mount` adds its own prefix to `root_path`.
        return match, {**child, "path": path, MOUNTED_AT: scope.get("root_path", "")}


def _route(operation: Operation, context: ApiContext, prefix: str) -> Route:
    async def endpoint(request: Request) -> Response:
        call = Call(
            context=context,
            query=parse_query(operation.query, request.scope["query_string"]),
            path={name: _decoded(value) for name, value in request.path_params.items()},
            body=await read_body(request, operation.body) if operation.body is not None else None,
            is_admin=is_admin(request),
        )
        try:
            response = _response(operation, request, context, await operation(call))
        except (ProblemError, ReceiverError) as error:
            problem = as_problem(error)
            problem.headers = {**(problem.headers or {}), **_pending_header(call)}
            raise problem from error
        response.headers.update(_pending_header(call))
        return response

    path = operation.path.removeprefix(prefix)
    return Route(path, endpoint, methods=[operation.method], name=operation.name)


def _response(operation: Operation, request: Request, context: ApiContext, result: Any) -> Response:
    link: Mapping[str, str] = {}
    if isinstance(result, Listed):
        if result.next_page is not None:
            link = next_page(request, context.public_url, **result.next_page)
        result = result.items
    if operation.csv is not None and prefers_csv(request.headers.get("accept", "")):
        return csv_answer(operation.csv(result), name=operation.path.rpartition("/")[2], link=link)
    return json_answer(result, link=link, media_type=operation.media_type, leave_out_null=operation.leaves_out_null)


def _pending_header(call: Call) -> dict[str, str]:
    """The header with the number of callbacks that are not in the response yet; no header if there are none."""
    return {PENDING_HEADER: str(call.pending)} if call.pending else {}


def _decoded(value: str) -> str:
    """A decoded value of the path. One that is not UTF-8 cannot be an id, so the answer is 404."""
    try:
        return storable(unquote_to_bytes(value).decode("utf-8"))
    except UnicodeDecodeError:
        raise ProblemError(404) from None

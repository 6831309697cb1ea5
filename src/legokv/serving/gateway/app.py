"""The gateway's app: paths, and errors in the shape of the API that a client speaks (ASGI)."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Message, Receive, Scope, Send

from legokv.built.folder import FACTS_FILE, cache_root, read_engine_folder
from legokv.errors import AnswerBroken, ApiRefused, LegokvError
from legokv.serving.body_bounds import BODIES_AT_ONCE, HeldBodies
from legokv.serving.gateway.accounts import Account, Everybody
from legokv.serving.gateway.anthropic import AnthropicChats
from legokv.serving.gateway.bodies import held
from legokv.serving.gateway.chat import Chats
from legokv.serving.gateway.facts import Facts
from legokv.serving.gateway.files import Files
from legokv.serving.gateway.guard import REQUEST_ID, request_id_of
from legokv.serving.gateway.library import Library, Uploads
from legokv.serving.gateway.models import Ask, ModelForm, Models
from legokv.serving.gateway.openapi import openapi_routes
from legokv.serving.gateway.page_routes import page_routes
from legokv.serving.gateway.refusals import refusal
from legokv.serving.gateway.streams import note_failure
from legokv.serving.gateway.tool_calls import tool_form_of
from legokv.serving.gateway.world import Readiness, ShowMetrics, World
from legokv.serving.log import RequestLine
from legokv.serving.settings import Settings
from legokv.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]
OfAccount = Callable[[Request, Account], Awaitable[Response]]


def gateway_app(
    settings: Settings,
    forms: Mapping[str, ModelForm],
    ask: Ask,
    readiness: Readiness,
    show_metrics: ShowMetrics,
) -> "Gateway":
    """The app over the models that `ask` reaches; to be made and used in one event loop."""
    facts = read_engine_folder(settings.engine)
    tokenizer = Tokenizer.open(settings.engine)
    template = tokenizer.chat_template
    models = Models(forms, ask)
    world = World(
        settings=settings,
        facts=facts,
        created=int((settings.engine / FACTS_FILE).stat().st_mtime),
        tokenizer=tokenizer,
        models=models,
        library=Library(models),
        uploads=Uploads(cache_root(settings.cache_dir, facts) / "uploads"),
        readiness=readiness,
        show_metrics=show_metrics,
        tool_form=tool_form_of(None if template is None else template.source),
    )
    return Gateway(world)


class Gateway:
    """The app. One for all requests; nothing of a request is left in it.

    What stands before it may put an `account` and a `request_id` into a request's state.
    """

    def __init__(self, world: World) -> None:
        self._bodies = HeldBodies(BODIES_AT_ONCE * world.settings.request_bytes)
        self._app = Starlette(routes=_routes(world), exception_handlers=_HANDLERS)
        # A redirect's address would be made of the Host that a client sent.
        self._app.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope.setdefault("state", {})
        state.setdefault("account", Everybody())
        request_id = state.setdefault("request_id", request_id_of(scope["headers"]))
        state["line"] = RequestLine("gateway", request_id)

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                named = (REQUEST_ID, request_id.encode("latin-1"))
                message = {**message, "headers": [*message.get("headers", ()), named]}
            await send(message)

        with held(self._bodies, receive) as receive_counted:
            await self._app(scope, receive_counted, send_named)


def _routes(world: World) -> list[Route]:
    chats, messages = Chats(world), AnthropicChats(world)
    files, facts = Files(world), Facts(world)
    return [
        _of_account("/v1/chat/completions", chats.chat, "POST"),
        _of_account("/v1/completions", chats.completion, "POST"),
        _of_account("/v1/messages", messages.message, "POST"),
        _of_account("/v1/messages/count_tokens", messages.count_tokens, "POST"),
        _of_account("/v1/models", facts.models),
        _of_account("/v1/models/{model:path}", facts.model),
        _of_account("/v1/files", files.upload, "POST"),
        _of_account("/v1/files", files.list_files),
        _of_account("/v1/files/{file_id}", files.get),
        _of_account("/v1/files/{file_id}", files.delete, "DELETE"),
        _of_account("/v1/files/{file_id}/content", files.content),
        _of_account("/tokenize", facts.tokenize, "POST"),
        _of_account("/detokenize", facts.detokenize, "POST"),
        _of_account("/metrics", facts.metrics),
        Route("/health", _answered(facts.health)),
        Route("/ready", _answered(facts.ready)),
        Route("/version", _answered(facts.version)),
        *openapi_routes(),
        *page_routes(),
    ]


def _of_account(path: str, endpoint: OfAccount, method: str = "GET") -> Route:
    async def answer(request: Request) -> Response:
        return await endpoint(request, request.state.account)

    return Route(path, _answered(answer), methods=[method])


def _answered(endpoint: Endpoint) -> Endpoint:
    """The endpoint with its errors told to the client and to the log."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except AnswerBroken as error:
            note_failure(request.state.line, error)
            return Response(status_code=499)
        except LegokvError as error:
            note_failure(request.state.line, error)
            return refusal(request, error)
        except Exception:
            # The boundary of one request: a fault of ours reaches its client and the log alone.
            log.exception("a fault in request %s at the gateway", request.state.request_id)
            return refusal(request, LegokvError("an internal error; the server's log has it"))

    return answer


async def _no_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "Starlette hands over what the table names"
    path = f"{request.method[:20]} {request.url.path[:200]}"
    sentence = f"there is nothing at {path}: /docs lists the paths"
    if error.status_code == 405:
        sentence = f"{path}: this path has another method, /docs lists them"
    refused = ApiRefused(sentence, error.status_code, kind="unknown_url")
    note_failure(request.state.line, refused)
    answer = refusal(request, refused)
    answer.headers.update(error.headers or {})
    if error.status_code == 405:
        answer.headers["allow"] = ", ".join(sorted(_methods_of(request)))
    return answer


def _methods_of(request: Request) -> set[str]:
    """Those of all routes of the path: Starlette names the first one's alone."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    matching = (route for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    return {method for route in matching for method in route.methods or ()}


_HANDLERS: Mapping[Any, Any] = {HTTPException: _no_path}

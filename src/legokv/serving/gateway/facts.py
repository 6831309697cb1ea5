"""What the server says of itself, and its tokenizer as an endpoint."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from legokv.errors import ApiRefused, Busy
from legokv.serving import fields as readers
from legokv.serving.fields import Reader
from legokv.serving.gateway.accounts import Account
from legokv.serving.gateway.bodies import json_body, read_fields
from legokv.serving.gateway.refusals import is_anthropic
from legokv.serving.gateway.world import World
from legokv.text.length import check_num_tokens
from legokv.version import VERSION

TOKENIZE: dict[str, Reader] = {
    "model": readers.text,
    "prompt": readers.text,
    "add_special_tokens": readers.flag,
    "return_token_strs": readers.flag,
}
DETOKENIZE: dict[str, Reader] = {
    "model": readers.text,
    "tokens": partial(readers.whole_numbers, low=0, high=readers.MAX_INT32),
}


class Facts:
    """The endpoints. None but the last two need an account."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def models(self, request: Request, account: Account) -> Response:
        """The one model."""
        model = self._model(request)
        if is_anthropic(request):
            ends = {"has_more": False, "first_id": model["id"], "last_id": model["id"]}
            return JSONResponse({"data": [model], **ends})
        return JSONResponse({"object": "list", "data": [model]})

    async def model(self, request: Request, account: Account) -> Response:
        """The model of this name."""
        self._world.check_model(request.path_params["model"])
        return JSONResponse(self._model(request))

    def _model(self, request: Request) -> dict[str, Any]:
        name, created = self._world.facts.name, self._world.created
        if is_anthropic(request):
            made = datetime.fromtimestamp(created, UTC).isoformat()
            return {"id": name, "type": "model", "display_name": name, "created_at": made}
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "legokv",
            "max_model_len": self._world.facts.model.context_len,
        }

    async def health(self, request: Request) -> Response:
        """Whether this process answers."""
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Whether requests would be answered now."""
        if not self._world.readiness.ready:
            raise Busy(self._world.readiness.reason())
        return JSONResponse({"status": "ready"})

    async def version(self, request: Request) -> Response:
        """The version of this project."""
        return JSONResponse({"version": VERSION})

    async def metrics(self, request: Request, account: Account) -> Response:
        """Triton's and the models' numbers, for Prometheus."""
        account.check_metrics()
        status, kind, body = await self._world.show_metrics()
        return PlainTextResponse(body, status, headers={"content-type": kind})

    async def tokenize(self, request: Request, account: Account) -> Response:
        """The ids of a text. A plain text's first token comes before it, unless told otherwise."""
        values = await self._values(request, TOKENIZE)
        if "prompt" not in values:
            raise ApiRefused("'prompt' is missing: a text", param="prompt")
        ids = await asyncio.to_thread(self._encoded, values)
        names = [self._world.tokenizer.decode([i], skip_special_tokens=False) for i in ids]
        return JSONResponse(
            {
                "count": len(ids),
                "max_model_len": self._world.facts.model.context_len,
                "tokens": ids,
                "token_strs": names if values.get("return_token_strs") else None,
            }
        )

    def _encoded(self, values: Mapping[str, Any]) -> list[int]:
        tokenizer, text = self._world.tokenizer, values["prompt"]
        most = self._world.settings.max_document_tokens
        check_num_tokens(text, tokenizer.encode, most, "'prompt'")
        first = tokenizer.first_ids if values.get("add_special_tokens", True) else ()
        return [*first, *tokenizer.encode(text, first=not first)]

    async def detokenize(self, request: Request, account: Account) -> Response:
        """The text of ids."""
        values = await self._values(request, DETOKENIZE)
        if "tokens" not in values:
            raise ApiRefused("'tokens' is missing: a list of token ids", param="tokens")
        ids, size = values["tokens"], self._world.tokenizer.vocab_size
        for token_id in ids:
            if token_id >= size:
                raise ApiRefused(
                    f"token {token_id} is not below {size}, the vocabulary's size", param="tokens"
                )
        text = await asyncio.to_thread(self._world.tokenizer.decode, ids, skip_special_tokens=False)
        return JSONResponse({"prompt": text})

    async def _values(self, request: Request, fields: dict[str, Reader]) -> dict[str, Any]:
        body = await json_body(request, self._world.settings.request_bytes)
        values = read_fields(body, fields, (), {})
        if "model" in values:
            self._world.check_model(values["model"])
        return values

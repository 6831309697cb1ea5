"""`/v1/chat/completions` and `/v1/completions`: OpenAI's requests become those of `generate`."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from legokv.errors import ApiRefused, LegokvError, NotFound
from legokv.serving.gateway import fields
from legokv.serving.gateway.accounts import Account, Reservation, Uncounted
from legokv.serving.gateway.bodies import json_body, read_fields, while_client_stays
from legokv.serving.gateway.models import Values, json_text
from legokv.serving.gateway.refusals import Names, openai_error
from legokv.serving.gateway.replies import Answer, Replies, listed
from legokv.serving.gateway.streams import EventStream, event
from legokv.serving.gateway.tool_calls import Tools, tools_of
from legokv.serving.gateway.turns import Turns, places_named
from legokv.serving.gateway.world import World


@dataclass(frozen=True)
class Asked:
    """One request to `generate`: its fields, its documents, and how the client calls the fields."""

    fields: dict[str, Any]
    document_ids: list[str] = field(default_factory=list)
    names: Names = field(default_factory=dict)


@dataclass(frozen=True)
class Begun:
    """An answer that has begun: its first reply, and those that follow."""

    first: Values
    rest: AsyncGenerator[Values, None]
    reservation: Reservation

    async def all(self) -> AsyncGenerator[Values, None]:
        """All replies; the account is told what they took.

        Where an error ends them, each counts as one token. Who leaves gets nothing back.
        """
        num_pieces = 0
        async with aclosing(self.rest) as rest:
            values = self.first
            while "finish_reason" not in values:
                yield values
                num_pieces += 1
                try:
                    values = await anext(rest)
                except Exception:
                    self.reservation.settle(self.reservation.prompt + num_pieces)
                    raise
            generated = sum(listed(values["generated_tokens"]))
            self.reservation.settle(values["prompt_tokens"] + generated)
            yield values


class Chats:
    """The endpoints. `account` is who asks."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def chat(self, request: Request, account: Account) -> Response:
        """Answer a conversation."""
        body = await json_body(request, self._world.settings.request_bytes)
        values = read_fields(body, fields.CHAT, fields.WITHOUT_EFFECT, fields.ASKS_FOR_NOTHING)
        tools = tools_of(values, self._world.tool_form)
        chosen = {**fields.for_generate(values), **_tool_fields(values, tools)}
        names = fields.names_of(values, fields.CHAT_NAMES)
        if tools.forced:
            names["response_format"] = "tools"

        async def ask() -> Asked:
            turns = Turns(self._world, account)
            messages = await turns.of(values.get("messages", []), values.get("documents", []))
            names.update(places_named([f"messages[{n}]" for n in range(len(messages))]))
            text = json_text(messages)
            return Asked({**chosen, "messages": text}, turns.document_ids, names)

        return await self._answer(request, account, values, ask, tools)

    async def completion(self, request: Request, account: Account) -> Response:
        """Go on with a text as it is, without a chat template."""
        body = await json_body(request, self._world.settings.request_bytes)
        values = read_fields(
            body, fields.COMPLETION, fields.WITHOUT_EFFECT, fields.ASKS_FOR_NOTHING
        )
        chosen = {**fields.for_generate(values), **_prompt(values)}

        async def ask() -> Asked:
            return Asked(chosen, names=fields.names_of(values, fields.COMPLETION_NAMES))

        return await self._answer(request, account, values, ask, None)

    async def _answer(
        self,
        request: Request,
        account: Account,
        values: Mapping[str, Any],
        ask: Callable[[], Awaitable[Asked]],
        tools: Tools | None,
    ) -> Response:
        world = self._world
        model = required_model(values)
        world.check_model(model)
        with_usage = fields.wants_usage(values)
        begun = await while_client_stays(request, begin(world, request, account, ask))
        replies = Replies(model, tools is not None, answers_for(world, values, tools), with_usage)
        if values.get("stream"):
            events = _events(begun, replies)
            return EventStream(events, last_word, request.state.line)
        return JSONResponse(replies.whole(await while_client_stays(request, only_reply(begun))))


async def begin(
    world: World, request: Request, account: Account, ask: Callable[[], Awaitable[Asked]]
) -> Begun:
    """Ask, and wait for the first reply; what refuses the request is raised here.

    Documents that are not there any more, though they were a moment ago, are looked for again.
    """
    for last in (False, True):
        asked = await ask()
        namespaced = {**asked.fields, "namespace": account.namespace()}
        reservation: Reservation = Uncounted()
        try:
            if account.limits_tokens and "count_only" not in asked.fields:
                reservation = await _reserved(world, account, asked, request.state.request_id)
            replies = world.models.generate(namespaced, request.state.request_id, asked.names)
            return Begun(await anext(replies), replies, reservation)
        except NotFound:
            reservation.settle(0)
            for document_id in asked.document_ids:
                world.library.forget(account.namespace(), document_id)
            if last or not asked.document_ids:
                raise
        except Exception:  # not of a client that leaves: what it asked for was computed
            reservation.settle(0)
            raise
    raise AssertionError("the second time returns or raises")


async def _reserved(world: World, account: Account, asked: Asked, request_id: str) -> Reservation:
    """The most that the request may take: its prompt, which is counted first, and its answers."""
    counting = {**asked.fields, "namespace": account.namespace(), "count_only": True}
    replies = world.models.generate(counting, request_id, asked.names)
    async with aclosing(replies):
        counted = await anext(replies)
    prompt = counted["prompt_tokens"]
    room = max(0, world.facts.model.context_len - prompt)
    longest = min(room, asked.fields.get("max_tokens", world.settings.default_max_tokens))
    return account.reserve_tokens(prompt, longest * asked.fields.get("num_return_sequences", 1))


async def only_reply(begun: Begun) -> Values:
    """The one reply to a request that is not streamed."""
    async with aclosing(begun.all()) as replies:
        return [values async for values in replies][-1]


async def _events(begun: Begun, replies: Replies) -> AsyncGenerator[bytes, None]:
    async with aclosing(begun.all()) as all_replies:
        yield replies.first()
        async for values in all_replies:
            yield replies.last(values) if "finish_reason" in values else replies.piece(values)


def last_word(error: LegokvError) -> bytes:
    """The event that ends a stream with an error."""
    return event(openai_error(error))


def required_model(values: Mapping[str, Any]) -> str:
    """The model that is asked; ApiRefused if none is named."""
    model = values.get("model")
    if model is None:
        raise ApiRefused("'model' is missing: /v1/models lists what is here", param="model")
    return str(model)


def answers_for(world: World, values: Mapping[str, Any], tools: Tools | None) -> list[Answer]:
    """One record for each of the answers that are asked for."""
    made = []
    for _ in range(values.get("n", 1)):
        reader = None
        if tools is not None and tools.tools and world.tool_form is not None:
            reader = tools.reader(world.tool_form)
        several = tools is None or tools.several
        made.append(Answer(reader, 1024 if several else 1))
    return made


def _tool_fields(values: Mapping[str, Any], tools: Tools) -> dict[str, Any]:
    if not tools.tools:
        return {}
    if not tools.forced:
        return {"tools": json_text(tools.tools)}
    if values.get("response_format", {}).get("type", "text") != "text":
        raise ApiRefused(
            "'response_format' and a 'tool_choice' that forces a call are both there: one form "
            "can be had",
            param="response_format",
        )
    form = json_text(tools.response_format())
    return {"tools": json_text(tools.tools), "response_format": form}


def _prompt(values: Mapping[str, Any]) -> dict[str, Any]:
    prompt = values.get("prompt")
    if prompt is None:
        raise ApiRefused("'prompt' is missing: one text", param="prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        (prompt,) = prompt
    if not isinstance(prompt, str):
        raise ApiRefused(
            "'prompt' is one text: others go into requests of their own", param="prompt"
        )
    if not prompt:
        raise ApiRefused("'prompt' is empty: there is nothing to go on with", param="prompt")
    return {"text_input": prompt, "apply_chat_template": False}

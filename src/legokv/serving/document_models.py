"""The documents service with the engine model behind it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from legokv.built.folder import read_engine_folder
from legokv.documents.compiling import Compiler
from legokv.documents.opening import open_registry
from legokv.errors import InvalidRequest
from legokv.serving import fields
from legokv.serving.answering import Reply
from legokv.serving.documents import DocumentService
from legokv.serving.generate import AskEngine
from legokv.serving.log import RequestLine
from legokv.serving.messages import Compile, Compiled, Drop, Warm
from legokv.serving.settings import Settings
from legokv.text.tokenizer import Tokenizer


def open_document_service(settings: Settings, ask_engine: AskEngine) -> DocumentService:
    """The service for the settings' engine folder; `ask_engine` compiles and drops chunks."""

    def compile_chunk(namespace: str, token_ids: Sequence[int]) -> str:
        (event,) = ask_engine(Compile(namespace, token_ids))
        assert isinstance(event, Compiled), "a Compile is answered with a Compiled"
        return event.key

    def drop_chunks(keys: Sequence[str]) -> None:
        ask_engine(Drop(tuple(keys)))

    def warm_chunk(namespace: str, token_ids: Sequence[int], tier: str) -> None:
        ask_engine(Warm(namespace, token_ids, tier))

    facts = read_engine_folder(settings.engine)
    registry = open_registry(settings.registry_path(facts), settings.shared_cache(facts))
    limits = replace(settings.document_limits, namespace_quota=settings.namespace_quota(facts))
    compiler = Compiler(registry, compile_chunk, drop_chunks, limits, warm_chunk)
    return DocumentService(registry, Tokenizer.open(settings.engine), compiler, limits)


def document_replies(
    service: DocumentService, given: Mapping[str, object], line: RequestLine
) -> Iterator[Reply]:
    """The one reply to a request whose only field is `request`, JSON in UTF-8."""
    line.check_id()
    fields.refuse_unknown(given, ("request",))
    body = given.get("request")
    if not isinstance(body, bytes):
        raise InvalidRequest("'request' is missing: a JSON object as text")
    request = fields.parse_request(body)
    reply = service.reply(request)
    line.facts |= {
        name: request[name] for name in ("namespace", "operation", "id") if name in request
    }
    yield Reply({"reply": json.dumps(reply, ensure_ascii=False).encode()}, final=True)

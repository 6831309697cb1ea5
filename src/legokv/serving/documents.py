"""The documents service: one JSON request in, one JSON reply out. No tensors, no Triton."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain, islice
from typing import Any, cast

from legokv.built.folder import EngineFacts, read_engine_folder
from legokv.documents.compiling import Compiler
from legokv.documents.cut import TextCodec, cut, document_token_ids
from legokv.documents.document import (
    MAX_ID_LEN,
    MAX_NAME_LEN,
    Changes,
    Document,
    DocumentLimits,
    NewDocument,
    State,
    StoredChunk,
    TokenSpan,
    is_hidden,
    namespace_or_default,
    normalise_text,
)
from legokv.documents.protocol import DocumentRegistry
from legokv.engine.naming import ChunkNaming
from legokv.errors import CacheUnavailable, InvalidRequest, NotFound
from legokv.serving import fields
from legokv.serving.answering import Reply
from legokv.serving.background import Background
from legokv.serving.fields import Request
from legokv.serving.heads import own_head
from legokv.serving.log import RequestLine
from legokv.serving.messages import (
    WARM_TIERS,
    AskEngine,
    Compile,
    Compiled,
    Drop,
    Find,
    Places,
    PromptSegment,
    Rank,
    Warm,
    ask_by_keys,
)
from legokv.serving.pieces import segments_as_registered
from legokv.serving.settings import Settings
from legokv.stores.opening import open_registry
from legokv.text.formats import PromptFormats
from legokv.text.length import check_num_tokens
from legokv.text.tokenizer import Tokenizer

MAX_PAGE_LEN = 1000
NUM_BACKGROUND_THREADS = 4
"""Documents compiled at a time that nobody waits for."""


def _name(request: Request, name: str) -> str | None:
    """A document's name, or None; InvalidRequest for letters that nobody sees."""
    label = fields.optional_text(request, name, max_len=MAX_NAME_LEN)
    hidden = next(filter(is_hidden, label or ""), None)
    if hidden is not None:
        raise InvalidRequest(f"'{name}' has U+{ord(hidden):04X}, which is not shown: leave it out")
    return label


_OF_ALL: dict[str, fields.Reader] = {
    "operation": fields.text,
    "namespace": fields.if_given(fields.text),
}
_OF_CHANGES: dict[str, fields.Reader] = {
    "name": _name,
    "ttl_seconds": fields.optional_seconds,
    "pinned": fields.flag,
}


def _after(request: Request, name: str) -> int | str:
    """A page's end, or a document's id."""
    if isinstance(request.get(name), str):
        return fields.text(request, name, max_len=MAX_ID_LEN)
    return fields.whole_number(request, name, low=0, high=2**63 - 1)


_ID = partial(fields.text, max_len=MAX_ID_LEN)
_FIELDS: dict[str, dict[str, fields.Reader]] = {
    "create": {
        **_OF_ALL,
        **_OF_CHANGES,
        "wait": partial(fields.flag, default=True),
        "warm": partial(fields.optional_choice, choices=WARM_TIERS),
        "namespace_bytes": partial(fields.whole_number, low=0, high=2**63 - 1),
        "rank": fields.if_given(fields.flag),
        "text": fields.text,
    },
    "get": {
        **_OF_ALL,
        "id": _ID,
        "wait": fields.flag,
        "rank": fields.flag,
        "text": fields.flag,
        "tiers": fields.flag,
    },
    "list": {
        **_OF_ALL,
        "after": _after,
        "newest_first": fields.flag,
        "limit": partial(fields.whole_number, default=100, low=1, high=MAX_PAGE_LEN),
        "name": partial(fields.optional_text, max_len=MAX_NAME_LEN),
        "tiers": fields.flag,
    },
    "update": {**_OF_ALL, "id": _ID, **_OF_CHANGES},
    "delete": {**_OF_ALL, "id": _ID},
}

Result = dict[str, Any]
RunInBackground = Callable[[Callable[[], object]], object]


def _recorded_keys(namespace: str, chunks: Sequence[StoredChunk]) -> Sequence[str]:
    return [chunk.key for chunk in chunks if chunk.key is not None]


@dataclasses.dataclass(frozen=True)
class ChunkRules:
    """What one engine's chunks are.

    keys_of: the keys that a document's chunks have in a namespace, recorded or not. head_of: the
    token ids that a document of these chunks is compiled behind.
    """

    keys_of: Callable[[str, Sequence[StoredChunk]], Sequence[str]] = _recorded_keys
    head_of: Callable[[Sequence[TokenSpan]], TokenSpan] = lambda chunks: ()


class DocumentService:
    """Creates, finds, changes and deletes the documents of a namespace, "default" unless told.

    operation  fields (? may be missing)                       reply
    create     text, name?, ttl_seconds?, pinned?,             document, created, and
               wait? true, warm?, rank?, namespace_bytes? 0    warmed_chunks and ranked_chunks if
                                                               it waited
    get        id, wait? false, rank? false, text? false,      document, and text and
               tiers? false                                    ranked_chunks if asked for
    list       after? 0, limit? 100, name?, tiers? false,      documents, next_after
               newest_first? false
    update     id, name?, ttl_seconds?, pinned?                document
    delete     id                                              deleted, dropped_chunks

    A document is an object with the fields of `Document`. With `wait` it comes ready, or failed
    with the reason. With `tiers` it says how many of its chunks are in which, each where it is read
    fastest. `warm` is one of WARM_TIERS: this server then has the document's KV in that tier or a
    faster one, whoever compiled it. `namespace_bytes` is the namespace's quota, if that is less
    than the server's. Bad requests raise the errors of `legokv.errors` and
    change nothing.
    """

    def __init__(
        self,
        registry: DocumentRegistry,
        codec: TextCodec,
        compiler: Compiler,
        limits: DocumentLimits,
        run_in_background: RunInBackground | None = None,
        rules: ChunkRules | None = None,
    ) -> None:
        self._registry = registry
        self._codec = codec
        self._compiler = compiler
        self._limits = limits
        self._rules = rules or ChunkRules()
        self._run_in_background = run_in_background or Background(NUM_BACKGROUND_THREADS)
        self._operations: dict[str, Callable[[Request, Request], Result]] = {
            "create": self._create,
            "get": self._get,
            "list": self._list,
            "update": self._update,
            "delete": self._delete,
        }

    @property
    def max_request_bytes(self) -> int:
        """Longest request in JSON, which takes up to six bytes for one of a text."""
        return 6 * self._limits.max_document_bytes + 2**16

    def reply(self, request: object) -> Result:
        """The reply to one request, an object with an `operation`; expired pins go first."""
        arguments = fields.require_object(request)
        operation = fields.text(arguments, "operation")
        if operation not in self._operations:
            raise InvalidRequest(
                f"unknown operation {operation[:80]!r}; known are {', '.join(self._operations)}"
            )
        values = fields.read(arguments, _FIELDS[operation])
        self._registry.sweep()
        return self._operations[operation](arguments, values)

    def _create(self, request: Request, values: Request) -> Result:
        namespace, warm = _namespace(values), values["warm"]
        rank = self._limits.rank if values["rank"] is None else values["rank"]
        document, created = self._registry.register(
            self._new_document(namespace, values["text"]),
            _changes(request, values),
            self._limits.max_pinned_tokens,
            self._limits.quota_of(values["namespace_bytes"]),
        )
        if not values["wait"]:
            self._run_in_background(lambda: self._prepare(namespace, document.id, rank, warm))
            return {"document": dataclasses.asdict(document), "created": created}
        document = self._compiler.bring_to_ready(namespace, document.id)
        reply = {"document": dataclasses.asdict(document), "created": created}
        # First: a chunk that is ranked is stored anew, and leaves the faster tiers for that.
        if rank:
            reply["ranked_chunks"] = self._rank(document)
        if warm is not None:
            reply["warmed_chunks"] = self._warm(document, warm)
        return reply

    def _rank(self, document: Document) -> int:
        ready = document.state == State.READY
        return self._compiler.rank(document.namespace, document.id) if ready else 0

    def _warm(self, document: Document, tier: str) -> int:
        ready = document.state == State.READY
        return self._compiler.warm(document.namespace, document.id, tier) if ready else 0

    def _prepare(self, namespace: str, document_id: str, rank: bool, tier: str | None) -> None:
        if not rank and tier is None:
            self._compiler.compile_if_free(namespace, document_id)
            return
        with suppress(NotFound):  # deleted meanwhile
            document = self._compiler.bring_to_ready(namespace, document_id)
            if rank:
                self._rank(document)
            if tier is not None:
                self._warm(document, tier)

    def _new_document(self, namespace: str, text: str) -> NewDocument:
        text = normalise_text(text)
        if not text:
            raise InvalidRequest("the document is empty: there is nothing but blanks in 'text'")
        num_bytes, max_bytes = len(text.encode()), self._limits.max_document_bytes
        if num_bytes > max_bytes:
            raise InvalidRequest(f"the document has {num_bytes} bytes, at most {max_bytes} fit")
        max_tokens = self._limits.max_document_tokens
        check_num_tokens(text, self._codec.encode, max_tokens, "the document")
        ids = document_token_ids(text, self._codec)
        if len(ids) > max_tokens:
            raise InvalidRequest(f"the document has {len(ids)} tokens, at most {max_tokens} fit")
        chunks = cut(ids, self._limits.max_chunk_tokens, self._codec)
        return NewDocument(namespace, text, chunks, self._rules.head_of(chunks))

    def _get(self, request: Request, values: Request) -> Result:
        namespace, document_id = _namespace(values), values["id"]
        if values["rank"] and not values["wait"]:
            raise InvalidRequest("'rank' of a document needs 'wait': it is ranked when it is ready")
        if values["wait"]:
            document = self._compiler.bring_to_ready(namespace, document_id)
        else:
            document = self._registry.get(namespace, document_id)
        (facts,) = self._shown([document], with_tiers=values["tiers"])
        reply: Result = {"document": facts}
        if values["rank"]:
            reply["ranked_chunks"] = self._rank(document)
        if values["text"]:
            reply["text"] = self._registry.text(namespace, document_id)
        return reply

    def _list(self, request: Request, values: Request) -> Result:
        names = ("after", "limit", "name", "newest_first")
        page = self._registry.page(_namespace(values), **{name: values[name] for name in names})
        documents = self._shown(page.documents, with_tiers=values["tiers"])
        return {"documents": documents, "next_after": page.next_after}

    def _shown(self, documents: Sequence[Document], *, with_tiers: bool) -> list[Result]:
        results: list[Result] = [dataclasses.asdict(document) for document in documents]
        if with_tiers:
            keys = [self._stored_keys(document) for document in documents]
            places = iter(self._compiler.places(list(chain.from_iterable(keys))))
            for result, own in zip(results, keys, strict=True):
                result["tiers"] = Counter(filter(None, islice(places, len(own))))
        return results

    def _stored_keys(self, document: Document) -> list[str]:
        """Keys of the chunks that are compiled; none of a document that was just deleted."""
        with suppress(NotFound):
            chunks = self._registry.chunks(document.namespace, document.id)
            return [chunk.key for chunk in chunks if chunk.key is not None]
        return []

    def _update(self, request: Request, values: Request) -> Result:
        changes = _changes(request, values)
        if not changes:
            raise InvalidRequest("nothing to update: give 'name', 'ttl_seconds' or 'pinned'")
        document = self._registry.update(
            _namespace(values), values["id"], changes, self._limits.max_pinned_tokens
        )
        return {"document": dataclasses.asdict(document)}

    def _delete(self, request: Request, values: Request) -> Result:
        namespace, document_id = _namespace(values), values["id"]
        unrecorded = self._unrecorded_keys(namespace, document_id)
        unnamed = self._registry.delete(namespace, document_id)
        # A question may be compiling what nobody has recorded: it is not to be stored.
        self._compiler.drop([*unnamed, *unrecorded])
        return {"deleted": document_id, "dropped_chunks": len(unnamed)}

    def _unrecorded_keys(self, namespace: str, document_id: str) -> Sequence[str]:
        """Keys of the document's chunks that the registry has none for, as far as it is read."""
        with suppress(NotFound, CacheUnavailable):  # to delete what is left of it may be done
            document = self._registry.get(namespace, document_id)
            if document.compiled_chunks < document.num_chunks:
                chunks = self._registry.chunks(namespace, document_id)
                recorded = {chunk.key for chunk in chunks}
                return [
                    key for key in self._rules.keys_of(namespace, chunks) if key not in recorded
                ]
        return []


def _namespace(values: Request) -> str:
    return namespace_or_default(values["namespace"])


def _changes(request: Request, values: Request) -> Changes:
    """What of a document the request names; a null is a change too."""
    return cast(Changes, {name: values[name] for name in _OF_CHANGES if name in request})


def _head_of(
    settings: Settings,
    facts: EngineFacts,
    tokenizer: Tokenizer,
    formats: PromptFormats,
    chunks: Sequence[TokenSpan],
) -> TokenSpan:
    """What a document of these chunks is compiled behind."""
    if settings.compile_behind == "nothing":
        return ()
    head = own_head(settings, tokenizer, formats)
    # What is compiled behind another is in the pool with it, each chunk in pages of its own.
    num_tokens = len(head) + sum(map(len, chunks))
    most_in_pool = settings.pool_tokens - (len(chunks) + 1) * facts.page_size
    return head if num_tokens <= min(facts.model.context_len, most_in_pool) else ()


def open_document_service(settings: Settings, ask_engine: AskEngine) -> DocumentService:
    """The service for the settings' engine folder; `ask_engine` compiles and drops chunks."""

    def compile_chunk(namespace: str, chunks: Sequence[StoredChunk]) -> str:
        pieces = segments(namespace, chunks)
        event = ask_by_keys(ask_engine, Compile(namespace, pieces), {str(pieces[-1].key)})
        assert isinstance(event, Compiled), "a Compile is answered with a Compiled"
        return event.key

    def drop_chunks(keys: Sequence[str]) -> None:
        ask_engine(Drop(tuple(keys)))

    def find_chunks(keys: Sequence[str]) -> Sequence[str]:
        if not keys:
            return ()
        (event,) = ask_engine(Find(tuple(keys)))
        assert isinstance(event, Places), "a Find is answered with Places"
        return event.tiers

    def warm_chunk(namespace: str, chunks: Sequence[StoredChunk], tier: str) -> None:
        ask_by_keys(ask_engine, Warm(namespace, segments(namespace, chunks), tier), set())

    def rank_chunk(namespace: str, chunks: Sequence[StoredChunk]) -> None:
        ask_by_keys(ask_engine, Rank(namespace, segments(namespace, chunks)), set())

    def segments(namespace: str, chunks: Sequence[StoredChunk]) -> tuple[PromptSegment, ...]:
        return segments_as_registered(naming, chunks, namespace)

    def keys_of(namespace: str, chunks: Sequence[StoredChunk]) -> Sequence[str]:
        return [str(piece.key) for piece in segments(namespace, chunks) if piece.in_prompt]

    facts = read_engine_folder(settings.engine)
    naming = ChunkNaming.by_settings(facts, settings)
    registry = open_registry(settings.registry_path(facts), settings.shared_cache(facts))
    limits = settings.document_limits_of(facts)
    tokenizer = Tokenizer.open(settings.engine)
    formats = PromptFormats(tokenizer, settings.switches)
    compiler = Compiler(
        registry, compile_chunk, drop_chunks, limits, warm_chunk, find_chunks, rank_chunk
    )
    rules = ChunkRules(keys_of, partial(_head_of, settings, facts, tokenizer, formats))
    return DocumentService(registry, tokenizer, compiler, limits, rules=rules)


def document_replies(
    payload: Mapping[str, object], service: DocumentService, line: RequestLine
) -> Iterator[Reply]:
    """The one reply to a request whose only field is `request`, JSON in UTF-8.

    The server's own question is answered with nothing: it only asks whether this process answers.
    """
    if line.is_probe:
        yield Reply({"reply": b"{}"}, final=True)
        return
    line.check_id()
    fields.refuse_unknown(payload, ("request",))
    body = payload.get("request")
    if not isinstance(body, bytes):
        raise InvalidRequest("'request' is missing: a JSON object as text")
    request = fields.parse_request(body, service.max_request_bytes)
    reply = service.reply(request)
    line.facts |= {
        name: request[name] for name in ("namespace", "operation", "id") if name in request
    }
    yield Reply(
        {"reply": json.dumps(reply, ensure_ascii=False, allow_nan=False).encode()}, final=True
    )

"""The generate service: a question becomes a prompt, the engine's events become replies."""

import queue
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from legokv.built.folder import read_engine_folder
from legokv.documents.document import StoredChunk
from legokv.documents.protocol import DocumentRegistry
from legokv.engine.naming import ChunkNaming
from legokv.engine.request import Finished, Token, check_biased_ids, check_stop_token_ids
from legokv.errors import Cancelled, InvalidRequest
from legokv.metrics import Histogram, Sample
from legokv.serving.answering import Reply
from legokv.serving.answers import AnswersSoFar
from legokv.serving.asking import AskEngine, ask_by_keys
from legokv.serving.background import Background
from legokv.serving.drawn import DrawnAnswers
from legokv.serving.event_stream import EventInbox, Events
from legokv.serving.log import RequestLine
from legokv.serving.messages import (
    Cancel,
    Event,
    Failed,
    Generate,
    Probe,
    PromptSegment,
    error_of,
)
from legokv.serving.pieces import by_document, document_segments
from legokv.serving.question import Question, check_reply_size, question_from_fields
from legokv.serving.settings import Settings
from legokv.stores.opening import open_registry
from legokv.text.conversation import ConversationFormats, ConversationPrompt
from legokv.text.formats import PromptFormats
from legokv.text.length import check_num_tokens
from legokv.text.prompt import build_prompt
from legokv.text.tokenizer import Tokenizer

MAX_DRAWN_TOKENS = 1 << 22
"""Tokens of answers to conversations that are remembered as they were drawn: 36 MB of lists."""
LOOK_SECONDS = 0.25
"""How often a request without events looks whether its client is still there."""


@dataclass
class _Progress:
    """What is known of an answer while it is under way; times in seconds of one clock."""

    started: float = field(default_factory=time.monotonic)
    looked_up: float = 0.0
    first_token: float = 0.0


class GenerateService:
    """Answers questions about registered documents. Safe to use from several threads."""

    def __init__(
        self,
        settings: Settings,
        registry: DocumentRegistry,
        tokenizer: Tokenizer,
        naming: ChunkNaming,
        ask_engine: AskEngine,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._tokenizer = tokenizer
        self._formats = PromptFormats(tokenizer, settings.switches)
        self._formats.of({})  # a template that fails, fails now
        self._conversations = ConversationFormats(tokenizer, settings.switches)
        self._drawn = DrawnAnswers(MAX_DRAWN_TOKENS)
        self._naming = naming
        self._inbox = EventInbox()
        self._ask_engine = ask_engine
        # No answer waits until the registry has written when its documents were used.
        self._in_background = Background(1)
        self._first_tokens = Histogram(
            "legokv_time_to_first_token_seconds", "From a question's arrival to its first token"
        )

    @classmethod
    def open(cls, settings: Settings, ask_engine: AskEngine) -> "GenerateService":
        """The service for the settings' engine folder and its document registry."""
        facts = read_engine_folder(settings.engine)
        registry = open_registry(settings.registry_path(facts), settings.shared_cache(facts))
        tokenizer = Tokenizer.open(settings.engine)
        naming = ChunkNaming.by_settings(facts, settings)
        return cls(settings, registry, tokenizer, naming, ask_engine)

    def close(self) -> None:
        """Take no events any more, and render nothing."""
        self._inbox.close()
        self._conversations.close()

    def samples(self) -> Iterator[Sample]:
        """What is published about all answers up to now; for any thread."""
        return self._first_tokens.samples()

    def replies(
        self,
        fields: Mapping[str, object],
        is_cancelled: Callable[[], bool],
        line: RequestLine,
    ) -> Iterator[Reply]:
        """Replies to one request: text as it comes if it asks for a stream, then one with all else.

        Without a stream the one reply has the whole text too. Raises the errors of
        `legokv.errors`; a Cancelled soon after `is_cancelled` turns true. The request's `line` is
        told what is known before its end.
        """
        if line.is_probe:
            yield from self._probed()
            return
        progress = _Progress()
        line.check_id()
        question = question_from_fields(fields, self._settings)
        line.facts["namespace"] = question.namespace
        command, place = self._command(question, line.request_id)
        progress.looked_up = time.monotonic()
        if question.document_ids:
            touch = self._registry.touch
            self._in_background(partial(touch, question.namespace, question.document_ids))
        ends = {*self._naming.facts.model.eos_token_ids, *question.answering.stop_token_ids}
        answers = AnswersSoFar(question, self._tokenizer, ends)
        with self._inbox.expect(command.request_id) as events:
            for event in self._answered(command, events, is_cancelled):
                if isinstance(event, Token):
                    if not progress.first_token:
                        self._note_first(progress)
                    outputs = answers.add(event)
                    if outputs is not None:
                        yield Reply(outputs)
                else:
                    assert isinstance(event, Finished), "an answer is Tokens and a Finished"
                    if place:
                        for answer in answers.drawn(self._tokenizer.decode):
                            self._drawn.put(question.namespace, place, answer)
                    result = {**answers.outputs(), **_result(line, question, event, progress)}
                    yield Reply(result, final=True)

    def _probed(self) -> Iterator[Reply]:
        """The reply to the server's question whether this model and the engine answer."""
        self._ask_engine(Probe())
        yield Reply({"text_output": "", "finish_reason": "stop"}, final=True)

    def _answered(
        self, command: Generate, events: Events, is_cancelled: Callable[[], bool]
    ) -> Iterator[Event]:
        """All events of the answer; however this is left, the engine is not left working on it."""
        self._begin(command)
        over = False
        try:
            while not over:
                event = _next(events, is_cancelled)
                over = not isinstance(event, Token)
                if isinstance(event, Failed):
                    raise error_of(event)
                yield event
        finally:
            if not over:
                self._ask_engine(Cancel(command.request_id))

    def _begin(self, command: Generate) -> None:
        """Have the engine begin; token ids go along only of the chunks that it does not know."""
        ask_by_keys(self._ask_engine, command, set())

    def _note_first(self, progress: _Progress) -> None:
        progress.first_token = time.monotonic()
        self._first_tokens.observe(progress.first_token - progress.started)

    def _command(self, question: Question, request_id: str) -> tuple[Generate, str]:
        """The engine's command, and the digest of the prompt where that is a conversation's."""
        model = self._naming.facts.model
        check_stop_token_ids(question.answering.stop_token_ids, model)
        check_biased_ids(question.sampling.logit_bias, model)
        longest = question.max_tokens or self._settings.default_max_tokens
        check_reply_size(question, min(longest, model.context_len))
        asked = question.document_ids
        chunks = self._registry.chunks(question.namespace, *asked) if asked else ()
        self._check_length(question)
        prompt = self._prompt(question, chunks)
        segments, num_tokens = self._segments(prompt, question, chunks)
        command = Generate(
            # Two clients may give the same id.
            request_id=f"{request_id}/{uuid.uuid4().hex}",
            reply_to=self._inbox.address,
            namespace=question.namespace,
            segments=segments,
            max_tokens=question.max_tokens or self._default_max_tokens(num_tokens),
            mode=question.mode,
            link_tokens=question.link_tokens,
            sampling=question.sampling,
            stop_words=question.stop_words,
            answering=question.answering,
            recompute_percent=question.recompute_percent,
        )
        return command, prompt.digest

    def _check_length(self, question: Question) -> None:
        """InvalidRequest for a text that no prompt of the model's could hold."""
        most = self._naming.facts.model.context_len
        texts = [("'text_input'", question.text), ("'system_text'", question.system_text or "")]
        if question.conversation is not None:
            texts = question.conversation.named_texts()
        for name, text in texts:
            check_num_tokens(text, self._tokenizer.encode, most, name)

    def _segments(
        self, prompt: ConversationPrompt, question: Question, chunks: Sequence[StoredChunk]
    ) -> tuple[tuple[PromptSegment, ...], int]:
        """The prompt's pieces, and its length in tokens."""
        documents = list(by_document(chunks))
        pieces: list[PromptSegment] = []
        if prompt.head_ids:
            # A head with a request's own words is not worth a file on disk.
            persistent = not (prompt.is_own or question.switches)
            pieces += document_segments(
                self._naming, [(prompt.head_ids, None)], question.namespace, persistent=persistent
            )
        for part in prompt.rest:
            if isinstance(part, int):
                stored = [(chunk.token_ids, chunk.key) for chunk in documents[part]]
                pieces += document_segments(self._naming, stored, question.namespace)
            else:
                pieces.append(PromptSegment(part))
        num_fresh = sum(len(part) for part in prompt.rest if not isinstance(part, int))
        num_tokens = sum(len(chunk.token_ids) for chunk in chunks)
        return tuple(pieces), len(prompt.head_ids) + num_fresh + num_tokens

    def _prompt(self, question: Question, chunks: Sequence[StoredChunk]) -> ConversationPrompt:
        if question.conversation is not None:
            drawn = partial(self._drawn.find, question.namespace)
            return self._conversations.prompt(question.conversation, question.switches, drawn)
        if not question.apply_chat_template:
            return self._plain_prompt(question, chunks)
        form = self._formats.of(question.switches)
        ids = [chunk.token_ids for chunk in chunks]
        asked = build_prompt(self._tokenizer, form, question.text, ids, question.system_text)
        numbers = range(sum(not chunk.position for chunk in chunks))
        is_own = question.system_text is not None
        return ConversationPrompt(asked.head_ids, (*numbers, asked.tail_ids), is_own)

    def _plain_prompt(
        self, question: Question, chunks: Sequence[StoredChunk]
    ) -> ConversationPrompt:
        """The documents and the text alone, behind what comes before a plain text."""
        if not question.text:
            raise InvalidRequest("'text_input' is empty: there is nothing to go on with")
        head = self._tokenizer.first_ids
        text_ids = self._tokenizer.encode(question.text, first=not (head or chunks))
        numbers = range(sum(not chunk.position for chunk in chunks))
        return ConversationPrompt(head, (*numbers, tuple(text_ids)), False)

    def _default_max_tokens(self, num_tokens: int) -> int:
        left = self._naming.facts.model.context_len - num_tokens
        return max(1, min(self._settings.default_max_tokens, left))


def _next(events: Events, is_cancelled: Callable[[], bool]) -> Event:
    """The next event, whenever it comes; Cancelled if the client goes away before."""
    while True:
        if is_cancelled():
            raise Cancelled("the client went away")
        with suppress(queue.Empty):
            return events.get(timeout=LOOK_SECONDS)


def _result(
    line: RequestLine, question: Question, event: Finished, progress: _Progress
) -> dict[str, object]:
    usage = event.usage
    return {
        "request_id": line.request_id,
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "recomputed_tokens": usage.recomputed_tokens,
        "fresh_tokens": usage.fresh_tokens,
        "reused_tokens": usage.reused_tokens,
        "compiled_tokens": usage.compiled_tokens,
        "documents_linked": 0 if question.mode == "full" else len(question.document_ids),
        "lookup_seconds": progress.looked_up - progress.started,
        "queue_seconds": usage.queue_seconds,
        "load_seconds": usage.load_seconds,
        "compile_seconds": usage.compile_seconds,
        "link_seconds": usage.link_seconds,
        "engine_time_to_first_token_seconds": usage.time_to_first_token_seconds,
        "time_to_first_token_seconds": progress.first_token - progress.started,
        "total_seconds": time.monotonic() - progress.started,
    }

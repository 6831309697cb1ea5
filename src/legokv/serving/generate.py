"""The generate service: a question becomes a prompt, the engine's events become replies."""

import queue
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

from legokv.built.folder import read_engine_folder
from legokv.chunks.header import token_bytes
from legokv.documents.document import StoredChunk
from legokv.documents.protocol import DocumentRegistry
from legokv.engine.naming import ChunkNaming
from legokv.engine.request import Finished, Token, check_biased_ids, check_stop_token_ids
from legokv.errors import Cancelled, InvalidRequest, RankingMissing
from legokv.metrics import Family, Histogram, Sample
from legokv.serving.answering import Reply
from legokv.serving.answers import AnswersSoFar
from legokv.serving.background import Background
from legokv.serving.drawn import CountedPrompts, DrawnAnswers
from legokv.serving.event_stream import EventInbox, Events
from legokv.serving.heads import OtherHeads
from legokv.serving.linking import HeadWord, Linked, Linking
from legokv.serving.log import RequestLine
from legokv.serving.messages import (
    AskEngine,
    Cancel,
    Event,
    Failed,
    Generate,
    Probe,
    ask_by_keys,
    error_of,
)
from legokv.serving.pieces import by_document
from legokv.serving.question import Question, check_reply_size, question_from_fields
from legokv.serving.settings import Settings
from legokv.stores.opening import open_registry
from legokv.text.conversation import ConversationFormats, ConversationPrompt
from legokv.text.formats import PromptFormats
from legokv.text.length import check_num_tokens
from legokv.text.prompt import build_prompt
from legokv.text.tokenizer import Tokenizer

MAX_DRAWN_TOKENS = 1 << 22
"""Tokens of answers to conversations that are remembered as they were drawn: 36 MB."""
MAX_COUNTED_TOKENS = 1 << 20
"""Tokens of prompts that were counted and not asked yet."""
PROMPTS_BY_HEAD = Family(
    "legokv_prompts_by_head_total",
    "counter",
    "Answers about documents, by whether these were compiled behind the prompt's own head",
)

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
        # A gateway with limits has each prompt counted before it asks.
        self._counted_prompts = CountedPrompts(MAX_COUNTED_TOKENS)
        self._naming = naming
        self._inbox = EventInbox()
        self._ask_engine = ask_engine
        # No answer waits until the registry has written when its documents were used.
        self._in_background = Background(1)
        self._other_heads = _other_heads(settings, naming, ask_engine)
        self._linking = Linking(naming, self._other_heads)
        self._num_by_head: dict[HeadWord, int] = {"own": 0, "other": 0}
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
        yield from self._first_tokens.samples()
        for head, number in self._num_by_head.items():
            yield Sample(PROMPTS_BY_HEAD, (("head", head),), number)

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
        if question.count_only:
            yield self._counted(question, line)
            return
        command, linked, place = self._command(question, line.request_id)
        progress.looked_up = time.monotonic()
        if question.document_ids:
            touch = self._registry.touch
            self._in_background(partial(touch, question.namespace, question.document_ids))
        ends = {*self._naming.facts.model.eos_token_ids, *question.answering.stop_token_ids}
        answers = AnswersSoFar(question, self._tokenizer, ends)
        with self._inbox.expect(command.request_id) as events:
            for event in self._named(
                self._answered(command, events, is_cancelled), question, linked
            ):
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
                    self._note_heads(question, linked, event)
                    result = {
                        **answers.outputs(),
                        **_result(line, question, linked, event, progress),
                    }
                    yield Reply(result, final=True)

    def _probed(self) -> Iterator[Reply]:
        """The reply to the server's question whether this model and the engine answer."""
        self._ask_engine(Probe())
        yield Reply({"text_output": "", "finish_reason": "stop"}, final=True)

    def _counted(self, question: Question, line: RequestLine) -> Reply:
        """How long the prompt is; the engine is not asked."""
        # The day may end while it is laid out.
        key = self._counted_prompts.key_of(question)
        prompt, documents = self._prompt_and_documents(question)
        self._counted_prompts.put(key, prompt)
        num_tokens = len(prompt.head_ids)
        for part in prompt.rest:
            pieces = documents[part] if isinstance(part, int) else ()
            num_tokens += sum(len(chunk.token_ids) for chunk in pieces)
            num_tokens += 0 if isinstance(part, int) else len(part)
        counts = {"prompt_tokens": num_tokens, "generated_tokens": 0}
        return Reply(
            {"request_id": line.request_id, "text_output": "", "finish_reason": "stop", **counts},
            final=True,
        )

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

    def _named(
        self, events: Iterator[Event], question: Question, linked: Linked
    ) -> Iterator[Event]:
        """The events; an error about chunks names the documents that these are of."""
        try:
            yield from events
        except RankingMissing as error:
            named = zip(question.document_ids, linked.documents, strict=True)
            ids = dict.fromkeys(i for i, keys in named if keys.intersection(error.keys))
            if not ids:
                raise
            raise RankingMissing(
                f"mode {question.mode!r} needs a ranking of each document, and {len(ids)} of "
                f"{len(set(question.document_ids))} have none: {', '.join(ids)}. Register "
                "them again with 'rank' true, which ranks what is not ranked",
                error.keys,
            ) from None

    def _begin(self, command: Generate) -> None:
        """Have the engine begin; token ids go along only of the chunks that it does not know."""
        ask_by_keys(self._ask_engine, command, set())

    def _note_first(self, progress: _Progress) -> None:
        progress.first_token = time.monotonic()
        self._first_tokens.observe(progress.first_token - progress.started)

    def _note_heads(self, question: Question, linked: Linked, event: Finished) -> None:
        if question.document_ids:
            self._num_by_head[linked.head] += 1
        if event.usage.compiled_tokens:
            # Else a memory too small for them would have each request compile them again.
            self._other_heads.forget(linked.copies)

    def _command(self, question: Question, request_id: str) -> tuple[Generate, Linked, str]:
        """The engine's command, and the digest of the prompt where that is a conversation's."""
        model = self._naming.facts.model
        check_stop_token_ids(question.answering.stop_token_ids, model)
        check_biased_ids(question.sampling.logit_bias, model)
        longest = question.max_tokens or self._settings.default_max_tokens
        check_reply_size(question, min(longest, model.context_len))
        prompt, documents = self._prompt_and_documents(question)
        linked = self._linked(prompt, question, documents)
        self._check_context(linked.num_tokens, documents, question)
        command = Generate(
            # Two clients may give the same id.
            request_id=f"{request_id}/{uuid.uuid4().hex}",
            reply_to=self._inbox.address,
            namespace=question.namespace,
            segments=linked.segments,
            max_tokens=question.max_tokens or self._default_max_tokens(linked.num_tokens),
            mode=question.mode,
            link_tokens=question.link_tokens,
            sampling=question.sampling,
            stop_words=question.stop_words,
            answering=question.answering,
            recompute_percent=question.recompute_percent,
        )
        return command, linked, prompt.digest

    def _prompt_and_documents(
        self, question: Question
    ) -> tuple[ConversationPrompt, list[Sequence[StoredChunk]]]:
        asked = question.document_ids
        chunks = self._registry.chunks(question.namespace, *asked) if asked else ()
        # One that is counted again is as old as this count.
        prompt = None if question.count_only else self._counted_prompts.take(question)
        if prompt is None:
            self._check_length(question)
            prompt = self._prompt(question, chunks)
        return prompt, list(by_document(chunks))

    def _check_context(
        self, num_tokens: int, documents: Sequence[Sequence[StoredChunk]], question: Question
    ) -> None:
        """InvalidRequest for a prompt that leaves no room for its answer, with what may go."""
        context_len, longest = self._naming.facts.model.context_len, question.max_tokens
        if num_tokens >= context_len:
            of_documents = sum(len(chunk.token_ids) for chunk in chain.from_iterable(documents))
            within = f", {of_documents} of them in {len(documents)} documents" * bool(documents)
            raise InvalidRequest(
                f"the prompt has {num_tokens} tokens{within}, and the model's context has "
                f"{context_len}: leave out documents or messages of "
                f"{num_tokens + 1 - context_len} tokens or more"
            )
        if longest is not None and num_tokens + longest > context_len:
            raise InvalidRequest(
                f"{num_tokens} prompt tokens and max_tokens {longest} exceed the model's context "
                f"of {context_len} tokens: {context_len - num_tokens} are left for the answer"
            )

    def _check_length(self, question: Question) -> None:
        """InvalidRequest for a text that no prompt of the model's could hold."""
        most = self._naming.facts.model.context_len
        texts = [("'text_input'", question.text), ("'system_text'", question.system_text or "")]
        if question.conversation is not None:
            texts = question.conversation.named_texts()
        for name, text in texts:
            check_num_tokens(text, self._tokenizer.encode, most, name)

    def _linked(
        self,
        prompt: ConversationPrompt,
        question: Question,
        documents: Sequence[Sequence[StoredChunk]],
    ) -> Linked:
        return self._linking.linked(
            prompt,
            documents,
            question.namespace,
            question.mode,
            # A head with a request's own words is not worth a file on disk.
            persistent_head=not (prompt.is_own or question.switches),
        )

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
        is_own = question.system_text != self._settings.own_system_text
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
        return min(self._settings.default_max_tokens, left)


def _other_heads(settings: Settings, naming: ChunkNaming, ask_engine: AskEngine) -> OtherHeads:
    """By the settings; where documents are to be compiled alone, they are behind no head."""
    compiles = settings.other_heads == "compile" and settings.compile_behind == "head"
    facts = naming.facts
    return OtherHeads(
        ask_engine,
        # One thread: these compiles come behind each other, and before nobody's answer.
        Background(1),
        num_requests=settings.other_heads_after if compiles else 0,
        max_bytes=settings.other_heads_bytes,
        token_bytes=token_bytes(facts.model, facts.dtype, "model"),
    )


def _next(events: Events, is_cancelled: Callable[[], bool]) -> Event:
    """The next event, whenever it comes; Cancelled if the client goes away before."""
    while True:
        if is_cancelled():
            raise Cancelled("the client went away")
        with suppress(queue.Empty):
            return events.get(timeout=LOOK_SECONDS)


def _result(
    line: RequestLine, question: Question, linked: Linked, event: Finished, progress: _Progress
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
        "head": linked.head,
        "lookup_seconds": progress.looked_up - progress.started,
        "queue_seconds": usage.queue_seconds,
        "load_seconds": usage.load_seconds,
        "compile_seconds": usage.compile_seconds,
        "link_seconds": usage.link_seconds,
        "engine_time_to_first_token_seconds": usage.time_to_first_token_seconds,
        "time_to_first_token_seconds": progress.first_token - progress.started,
        "total_seconds": time.monotonic() - progress.started,
    }

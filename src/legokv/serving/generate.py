"""The generate service: a question becomes a prompt, the engine's events become replies."""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from legokv.built.folder import read_engine_folder
from legokv.documents.protocol import DocumentRegistry
from legokv.errors import Cancelled
from legokv.metrics import Histogram, Sample
from legokv.serving.answering import Reply
from legokv.serving.answers import AnswersSoFar
from legokv.serving.background import Background
from legokv.serving.log import RequestLine
from legokv.serving.messages import (
    Answered,
    Cancel,
    Command,
    Event,
    Generate,
    Next,
    Piece,
    PromptSegment,
)
from legokv.serving.question import Question, question_from_fields
from legokv.serving.settings import Settings
from legokv.stores.opening import open_registry
from legokv.text.prompt import Prompt, build_prompt, prompt_format
from legokv.text.tokenizer import Tokenizer

# Gives the events that answer a command and raises the error among them.
AskEngine = Callable[[Command], tuple[Event, ...]]


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
        context_tokens: int,
        ask_engine: AskEngine,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._tokenizer = tokenizer
        self._format = prompt_format(tokenizer)
        self._context_tokens = context_tokens
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
        return cls(settings, registry, tokenizer, facts.model.max_positions, ask_engine)

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
        progress = _Progress()
        line.check_id()
        question = question_from_fields(fields, self._settings)
        line.facts["namespace"] = question.namespace
        command = self._command(question, line.request_id)
        progress.looked_up = time.monotonic()
        if question.document_ids:
            used = (question.namespace, question.document_ids)
            self._in_background(lambda: self._registry.touch(*used))
        answers = AnswersSoFar(question, self._text_of)
        for event in self._events(command, is_cancelled):
            if isinstance(event, Piece):
                self._note_first(progress)
                outputs = answers.add(event)
                if outputs is not None:
                    yield Reply(outputs)
            else:
                assert isinstance(event, Answered), "an answer is Pieces and an Answered"
                result = {**answers.outputs(), **_result(line, question, event, progress)}
                yield Reply(result, final=True)

    def _events(self, command: Generate, is_cancelled: Callable[[], bool]) -> Iterator[Event]:
        """All events of the answer; however this is left, the engine is not left working on it."""
        answered = False
        try:
            events = self._ask_engine(command)
            while not answered:
                answered = any(isinstance(event, Answered) for event in events)
                yield from events
                if not answered and is_cancelled():
                    raise Cancelled("the client went away")
                if not answered:
                    events = self._ask_engine(Next(command.request_id))
        finally:
            if not answered:
                self._ask_engine(Cancel(command.request_id))

    def _note_first(self, progress: _Progress) -> None:
        if not progress.first_token:
            progress.first_token = time.monotonic()
            self._first_tokens.observe(progress.first_token - progress.started)

    def _command(self, question: Question, request_id: str) -> Generate:
        chunks = [
            chunk.token_ids
            for document_id in question.document_ids
            for chunk in self._registry.chunks(question.namespace, document_id)
        ]
        prompt = build_prompt(
            self._tokenizer, self._format, question.text, chunks, question.system_text
        )
        return Generate(
            # Two clients may give the same id.
            request_id=f"{request_id}/{uuid.uuid4().hex}",
            namespace=question.namespace,
            segments=_segments(prompt, question),
            max_tokens=question.max_tokens or self._default_max_tokens(prompt),
            mode=question.mode,
            link_tokens=question.link_tokens,
            sampling=question.sampling,
            stop_words=question.stop_words,
            answering=question.answering,
        )

    def _text_of(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)

    def _default_max_tokens(self, prompt: Prompt) -> int:
        left = self._context_tokens - prompt.num_tokens
        return max(1, min(self._settings.default_max_tokens, left))


def _segments(prompt: Prompt, question: Question) -> tuple[PromptSegment, ...]:
    """The prompt's pieces. A head with a user's system text is not worth a file on disk."""
    own_system = question.system_text is not None
    head = [PromptSegment(prompt.head_ids, persistent=not own_system)] if prompt.head_ids else []
    documents = [PromptSegment(ids) for ids in prompt.document_chunks]
    return (*head, *documents, PromptSegment(prompt.tail_ids, cached=False))


def _result(
    line: RequestLine, question: Question, event: Answered, progress: _Progress
) -> dict[str, object]:
    usage = event.usage
    return {
        "request_id": line.request_id,
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "recomputed_tokens": usage.recomputed_tokens,
        "fresh_tokens": usage.fresh_tokens,
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

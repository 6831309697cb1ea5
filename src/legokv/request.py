"""What a caller asks of the engine and what it is told: plain data, checked before it runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from legokv.chunks.chunk import Chunk
from legokv.config import ModelConfig
from legokv.errors import InvalidRequest
from legokv.link import Segment
from legokv.policy import Policy, everything, legolink, nothing
from legokv.sample import SamplingOptions

MODES = ("legolink", "legolink-0", "full")
LINK_TOKENS = 16
DUMMY_TOKENS = 4
"""How many dummies stand before a chunk compiled for LegoLink-0 (arXiv 2410.15332)."""


@dataclass(frozen=True)
class GenerateRequest:
    """A prompt of segments and how to answer it.

    mode "legolink" recomputes the first `link_tokens` of each chunk but the first; "legolink-0"
    none, over chunks compiled behind dummy tokens; "full" all. With max_tokens 0 the prompt is
    computed and its logits are the answer.
    """

    segments: Sequence[Segment]
    max_tokens: int
    mode: str = "legolink"
    link_tokens: int = LINK_TOKENS
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    stop_words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InvalidRequest(f"mode is one of {', '.join(MODES)}, not '{self.mode}'")
        if self.link_tokens < 0:
            raise InvalidRequest(f"link_tokens is 0 or more, not {self.link_tokens}")
        if self.max_tokens < 0:
            raise InvalidRequest(f"max_tokens is 0 or more, not {self.max_tokens}")

    @property
    def policy(self) -> Policy:
        """Which cached tokens are recomputed."""
        if self.mode == "legolink":
            return legolink(self.link_tokens)
        return everything if self.mode == "full" else nothing


def check_context(num_tokens: int, max_tokens: int, config: ModelConfig) -> None:
    """InvalidRequest if prompt and answer together pass the model's context."""
    if num_tokens + max_tokens > config.max_positions:
        raise InvalidRequest(
            f"{num_tokens} prompt tokens and max_tokens {max_tokens} exceed the model's context "
            f"of {config.max_positions} tokens"
        )


def check_token_ids(segment: Segment, config: ModelConfig) -> None:
    """InvalidRequest if a segment names a token that the vocabulary does not have."""
    ids = segment.token_ids if isinstance(segment, Chunk) else segment
    if len(ids) and not (min(ids) >= 0 and max(ids) < config.vocab_size):
        raise InvalidRequest(
            f"token ids lie between 0 and {config.vocab_size - 1}, not {min(ids)} to {max(ids)}"
        )


@dataclass
class Usage:
    """What a request took. prompt = cached + recomputed + fresh tokens; times in seconds.

    `compiled_tokens` are those of chunks that were in no tier and had to be compiled first;
    `chunks_found` of `chunks_used` chunks were in one. Link time runs from having all pages to the
    first logits.
    """

    prompt_tokens: int
    cached_tokens: int
    recomputed_tokens: int
    fresh_tokens: int
    chunks_used: int
    chunks_found: int = 0
    compiled_tokens: int = 0
    generated_tokens: int = 0
    queue_seconds: float = 0.0
    load_seconds: float = 0.0
    compile_seconds: float = 0.0
    link_seconds: float = 0.0
    time_to_first_token_seconds: float = 0.0


@dataclass(frozen=True)
class Token:
    """One generated token and the text that became certain with it (may be empty)."""

    id: int
    text: str
    finish_reason: str | None = None


@dataclass(frozen=True)
class Finished:
    """The end of a job: why it ended ("stop", "length"), and what it took."""

    finish_reason: str
    usage: Usage

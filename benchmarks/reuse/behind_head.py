"""Chunks compiled behind other tokens whose KV isn't stored with them.

Behind the prompt's own first segment (a system prompt, say), or behind LegoLink-0's dummies.
"""

from benchmarks.reuse.linked_model import LinkedModel
from benchmarks.reuse.prompt import Prompt
from legokv.chunks.chunk import Chunk
from legokv.engine.request import DUMMY_TOKENS


def alone(model: LinkedModel, prompt: Prompt) -> list[Chunk]:
    """Each chunk alone from position 0."""
    return [model.compile(ids) for ids in prompt.segments]


def behind_dummies(model: LinkedModel, prompt: Prompt) -> list[Chunk]:
    """Each but the first behind LegoLink-0's dummies."""
    config = model.facts.model
    dummy = next(t for t in (config.bos_token_id, *config.eos_token_ids, 0) if t is not None)
    return _behind(model, prompt, (dummy,) * DUMMY_TOKENS)


def behind_first(model: LinkedModel, prompt: Prompt) -> list[Chunk]:
    """Each but the first behind the prompt's own first segment; the second is exact then."""
    return _behind(model, prompt, prompt.segments[0] if prompt.segments else ())


def _behind(model: LinkedModel, prompt: Prompt, before: tuple[int, ...]) -> list[Chunk]:
    first, rest = prompt.segments[:1], prompt.segments[1:]
    return [model.compile(ids) for ids in first] + [model.compile(ids, before) for ids in rest]

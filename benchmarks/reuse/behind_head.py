"""Chunks compiled behind other tokens whose KV isn't stored with them.

Behind the prompt's own first segment (a system prompt, say), behind a head that is not the
prompt's, or behind LegoLink-0's dummies.
"""

from benchmarks.reuse.linked_model import LinkedModel
from benchmarks.reuse.prompt import Prompt, TokenIds
from legokv.chunks.chunk import Chunk
from legokv.engine.request import DUMMY_TOKENS
from legokv.text.prompt import build_prompt, prompt_format


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


SENTENCE = "Here is some material that was collected for the people who will read it later on.\n"


def behind_chat_head(model: LinkedModel, prompt: Prompt) -> list[Chunk]:
    """Each but the first behind the head of the model's chat template."""
    head = build_prompt(model.tokenizer, prompt_format(model.tokenizer), "?").head_ids
    return _behind(model, prompt, head)


def behind_sentence(model: LinkedModel, prompt: Prompt) -> list[Chunk]:
    """Each but the first behind one plain sentence."""
    return _behind(model, prompt, tuple(model.tokenizer.encode(SENTENCE)))


PARAGRAPH = """The harbour office opens at seven, an hour before the first ferry. Whoever wants to
cross with a cart signs the list at the door, and the list is read aloud at half past. Foot
passengers walk on last. In winter the boats wait for the mail, which comes over the hill by sledge
and may be late; then tea is served in the shed, and the children of the island feed the gulls from
the steps. Nobody has been left behind since the year of the long fog, when two were.
"""


def behind_paragraph(model: LinkedModel, prompt: Prompt) -> list[Chunk]:
    """Each but the first behind a paragraph of plain text."""
    return _behind(model, prompt, tuple(model.tokenizer.encode(PARAGRAPH)))


def as_one_document(model: LinkedModel, prompt: Prompt) -> list[Chunk]:
    """Each behind all that stand before it, as a document's own chunks are."""
    chunks: list[Chunk] = []
    for ids in prompt.segments:
        chunks.append(model.compile_behind(ids, chunks[-1] if chunks else None))
    return chunks


def _behind(model: LinkedModel, prompt: Prompt, before: TokenIds) -> list[Chunk]:
    first, rest = prompt.segments[:1], prompt.segments[1:]
    return [model.compile(ids) for ids in first] + [model.compile(ids, before) for ids in rest]

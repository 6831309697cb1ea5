"""Documents compiled whole, as the product does: each chunk behind those before it in its own."""

from benchmarks.reuse.linked_model import LinkedModel
from benchmarks.reuse.prompt import Prompt, TokenIds
from legokv.chunks.chunk import Chunk


def alone(model: LinkedModel, prompt: Prompt) -> list[Chunk]:
    """Each document behind nothing."""
    return _compiled(model, prompt, ())


def behind_head(model: LinkedModel, prompt: Prompt) -> list[Chunk]:
    """Each document behind the prompt's own head; the first one is exact then."""
    return _compiled(model, prompt, prompt.head)


def _compiled(model: LinkedModel, prompt: Prompt, before: TokenIds) -> list[Chunk]:
    chunks = [model.compile(prompt.head)] if prompt.head else []
    for document in prompt.documents:
        behind = model.compile(before) if before else None
        for ids in document:
            behind = model.compile_behind(ids, behind)
            chunks.append(behind)
    return chunks

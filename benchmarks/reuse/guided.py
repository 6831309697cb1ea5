"""Query-aware scores as the product finds them: how much the question attends to each token."""

from benchmarks.reuse.linked_model import LinkedModel
from legokv.chunks.chunk import Chunk
from legokv.link.policy import Scores


def scores(model: LinkedModel, chunks: list[Chunk], question: tuple[int, ...]) -> Scores:
    """The attention that each token of the prompt gets."""
    placement = model.place([*chunks, question])
    placed = model.bind(placement.first_pass())
    try:
        mass = model.runner.attention_mass(model.batch_of(placed), placement.question_tokens)
    finally:
        model.release(placed)
    by_token: Scores = mass.numpy()
    return by_token

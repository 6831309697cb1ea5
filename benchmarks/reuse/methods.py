"""Every reuse method by its name: how its chunks are compiled, and what it recomputes."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.reuse import behind_head, cacheblend, guided, selections
from benchmarks.reuse.linked_model import LinkedModel, Placed
from benchmarks.reuse.prompt import Prompt, TokenIds, without_documents
from legokv.chunks.chunk import Chunk
from legokv.link.policy import Policy, everything, legolink, nothing

Compile = Callable[[LinkedModel, Prompt], list[Chunk]]
Choose = Callable[[LinkedModel, list[Chunk], TokenIds], Policy]


class UnknownMethod(Exception):
    """A method that there is not; the message lists those there are."""


@dataclass(frozen=True)
class Method:
    """`compile` makes the chunks, `choose` says which of their tokens are recomputed."""

    name: str
    choose: Choose
    compile: Compile = behind_head.alone
    has_documents: bool = True

    def place(
        self, model: LinkedModel, prompt: Prompt, answer: TokenIds = (), reserve_tokens: int = 0
    ) -> Placed:
        """The prompt linked, `answer` behind its question. The choice never sees the answer."""
        if not self.has_documents:
            prompt = without_documents(prompt)
        chunks = self.compile(model, prompt)
        policy = self.choose(model, chunks, prompt.question)
        return model.place([*chunks, prompt.question + answer], policy, reserve_tokens)


def share_recomputed(placed: Placed) -> float:
    """Recomputed tokens over all tokens of chunks."""
    link = placed.link
    reusable = link.cached_tokens + link.recomputed_tokens
    return link.recomputed_tokens / reusable if reusable else 0.0


def method_by_name(name: str) -> Method:
    """UnknownMethod if there is none of that name."""
    if name not in METHODS:
        raise UnknownMethod(f"unknown method '{name}'; known are {', '.join(METHODS)}")
    return METHODS[name]


def _static(policy: Policy) -> Choose:
    return lambda model, chunks, question: policy


def _cacheblend(percent: float) -> Choose:
    return lambda model, chunks, question: cacheblend.policy(model, chunks, question, percent)


def _guided(percent: float, link_tokens: int = 0) -> Choose:
    def choose(model: LinkedModel, chunks: list[Chunk], question: TokenIds) -> Policy:
        chosen = guided.policy(model, chunks, question, percent)
        return selections.both(chosen, legolink(link_tokens))

    return choose


MAIN = (
    Method("full", _static(everything)),
    Method("no-documents", _static(nothing), has_documents=False),
    Method("naive", _static(nothing)),
    Method("legolink-2", _static(legolink(2))),
    Method("legolink-16", _static(legolink(16))),
    Method("cacheblend-15", _cacheblend(15)),
    Method("guided-10+legolink-2", _guided(10, 2)),
    Method("legolink-0", _static(nothing), behind_head.behind_dummies),
    Method("behind-head", _static(nothing), behind_head.behind_first),
    Method("last-16", _static(selections.last(16))),
    Method("random-16", _static(selections.scattered(16))),
)
OTHERS = (
    *(Method(f"legolink-{k}", _static(legolink(k))) for k in (1, 4, 8, 32, 64)),
    *(Method(f"cacheblend-{r}", _cacheblend(r)) for r in (5, 30)),
    *(Method(f"guided-{r}", _guided(r)) for r in (5, 10, 20)),
    *(Method(f"guided-{r}+legolink-2", _guided(r, 2)) for r in (5, 20)),
    *(Method(f"last-{k}", _static(selections.last(k))) for k in (2,)),
    *(Method(f"random-{k}", _static(selections.scattered(k))) for k in (2,)),
    Method("prefix", _static(selections.prefix)),
)
METHODS = {method.name: method for method in (*MAIN, *OTHERS)}

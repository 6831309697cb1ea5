"""Every reuse method by its name: how its chunks are compiled, and what it recomputes."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.reuse import behind_head, cacheblend, guided, ranked, selections, whole
from benchmarks.reuse.linked_model import LinkedModel, Placed
from benchmarks.reuse.prompt import Prompt, TokenIds, without_documents
from benchmarks.reuse.selections import Best, Both
from legokv.chunks.chunk import Chunk
from legokv.engine.request import DRIFT_PROBES
from legokv.link.policy import (
    Budget,
    ByScores,
    Policy,
    Scores,
    Share,
    everything,
    legolink,
    nothing,
    spread,
)

Compile = Callable[[LinkedModel, Prompt], list[Chunk]]
Score = Callable[[LinkedModel, list[Chunk], TokenIds], Scores]


class UnknownMethod(Exception):
    """A method that there is not; the message lists those there are."""


@dataclass(frozen=True)
class Method:
    """`compile` makes the chunks, `policy` says which of their tokens are recomputed.

    A policy that needs scores is given those of `score`.
    """

    name: str
    policy: Policy
    compile: Compile = behind_head.alone
    score: Score = guided.scores
    has_documents: bool = True

    def place(
        self, model: LinkedModel, prompt: Prompt, answer: TokenIds = (), reserve_tokens: int = 0
    ) -> Placed:
        """The prompt linked, `answer` behind its question. The choice never sees the answer."""
        if not self.has_documents:
            prompt = without_documents(prompt)
        chunks, scores = self.compile(model, prompt), None
        if self.policy.needs_scores:
            scores = self.score(model, chunks, prompt.question)
        placement = model.place([*chunks, prompt.question + answer], reserve_tokens)
        return model.bind(placement.link(self.policy, scores))


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


def _cacheblend(percent: int) -> Method:
    return Method(f"cacheblend-{percent}", Best(percent), score=cacheblend.scores)


BEHIND_HEAD = behind_head.behind_first
WHERE = {
    "": behind_head.alone,
    "behind-head": BEHIND_HEAD,
    "behind-chat-head": behind_head.behind_chat_head,
    "behind-sentence": behind_head.behind_sentence,
    "behind-paragraph": behind_head.behind_paragraph,
}


def _drifted(budget: Budget, where: str = "", *, ranking: bool = False) -> Method:
    """`budget` tokens a document, some of them spread evenly, and all others moved."""
    amount = f"{budget.percent:g}%" if isinstance(budget, Share) else f"{budget}"
    name = f"{where}{where and '+'}guided-{'ranked-' if ranking else ''}drift-{amount}"
    score = ranked.times_attention if ranking else guided.scores
    return Method(name, ByScores(budget, DRIFT_PROBES, drift=True), WHERE[where], score)


MAIN = (
    Method("full", everything),
    Method("no-documents", nothing, has_documents=False),
    Method("naive", nothing),
    Method("legolink-2", legolink(2)),
    Method("legolink-16", legolink(16)),
    _cacheblend(15),
    Method("guided-10+legolink-2", Both(ByScores(Share(10)), legolink(2))),
    Method("legolink-0", nothing, behind_head.behind_dummies),
    Method("behind-head", nothing, BEHIND_HEAD),
    Method("last-16", selections.last(16)),
    Method("random-16", selections.scattered(16)),
)
OTHERS = (
    *(Method(f"legolink-{k}", legolink(k)) for k in (1, 4, 8, 32, 64)),
    *map(_cacheblend, (5, 30)),
    *(Method(f"guided-{r}", ByScores(Share(r))) for r in (5, 10, 20)),
    *(Method(f"guided-{r}+legolink-2", Both(ByScores(Share(r)), legolink(2))) for r in (5, 20)),
    *(Method(f"last-{k}", selections.last(k)) for k in (2,)),
    *(Method(f"random-{k}", selections.scattered(k)) for k in (2,)),
    *(Method(f"spread-{k}", spread(k)) for k in (4, 8, 16)),
    *(Method(f"behind-head+spread-{k}", spread(k), BEHIND_HEAD) for k in (4, 8, 16)),
    *(Method(f"behind-head+legolink-{k}", legolink(k), BEHIND_HEAD) for k in (16,)),
    Method("behind-chat-head", nothing, behind_head.behind_chat_head),
    *(
        Method(f"behind-chat-head+spread-{k}", spread(k), behind_head.behind_chat_head)
        for k in (8, 16)
    ),
    *(Method(f"behind-head+guided-{r}", ByScores(Share(r)), BEHIND_HEAD) for r in (5, 10)),
    *(
        Method(f"behind-head+ranked-{r}", ByScores(Share(r)), BEHIND_HEAD, ranked.scores)
        for r in (5, 10)
    ),
    *(
        Method(
            f"behind-head+guided-ranked-{r}",
            ByScores(Share(r)),
            BEHIND_HEAD,
            ranked.times_attention,
        )
        for r in (5, 10)
    ),
    *(_drifted(budget) for budget in (8, 16, Share(10))),
    *(_drifted(budget, where) for where in WHERE if where for budget in (16, Share(5), Share(10))),
    *(
        _drifted(budget, where, ranking=True)
        for where in WHERE
        if where
        for budget in (8, 16, Share(5), Share(10))
    ),
    Method("behind-chat-head+guided-10", ByScores(Share(10)), behind_head.behind_chat_head),
    Method("behind-sentence", nothing, behind_head.behind_sentence),
    Method("behind-paragraph", nothing, behind_head.behind_paragraph),
    Method("behind-sentence+guided-10", ByScores(Share(10)), behind_head.behind_sentence),
    Method("one-document", nothing, behind_head.as_one_document),
    Method("prefix", selections.prefix),
)
METHODS = {method.name: method for method in (*MAIN, *OTHERS)}

# Of documents behind a head, the prompt's own or another.
HEAD_METHODS = tuple(
    METHODS[name]
    for name in (
        "full",
        "naive",
        "legolink-16",
        "guided-10",
        "guided-drift-8",
        *(f"behind-head{way}" for way in ("", "+guided-10", "+guided-ranked-10")),
        *(f"behind-head+guided-ranked-drift-{budget}" for budget in ("8", "16", "10%")),
        *(f"behind-{head}" for head in ("chat-head", "paragraph", "sentence")),
        *(f"behind-{head}+guided-drift-16" for head in ("chat-head", "paragraph", "sentence")),
        *(f"behind-chat-head+guided-ranked-drift-{budget}" for budget in (8, 16)),
    )
)

# Of these, those whose answers are judged.
ANSWER_METHODS = tuple(
    METHODS[name]
    for name in (
        "full",
        "naive",
        "legolink-16",
        "behind-head",
        "behind-head+guided-ranked-10",
        "behind-head+guided-ranked-drift-16",
    )
)

# Of long documents.
WHOLE = (
    Method("whole", nothing, whole.alone),
    Method("whole+legolink-16", legolink(16), whole.alone),
    Method("whole-behind-head", nothing, whole.behind_head),
    *(
        Method(f"whole-behind-head+guided-{r}", ByScores(Share(r)), whole.behind_head)
        for r in (5, 10)
    ),
)
LONG_METHODS = (*(METHODS[name] for name in ("full", "naive", "legolink-16")), *WHOLE)
METHODS |= {method.name: method for method in WHOLE}

"""The sets of cases that fidelity and quality are measured on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.reuse import essays, facts, hotpotqa, long_documents
from benchmarks.reuse.prompt import Prompt
from legokv.text.tokenizer import Tokenizer

Prompts = Callable[[Tokenizer, int], list[Prompt]]


class UnknownSet(Exception):
    """A set that there is not; the message lists those there are."""


@dataclass(frozen=True)
class Case:
    """One prompt of a set. `key` is the same in every run."""

    set: str
    prompt: Prompt

    @property
    def key(self) -> str:
        return f"{self.set}/{self.prompt.name}"


FIDELITY: dict[str, Prompts] = {"hotpotqa": hotpotqa.prompts, "essays": essays.prompts}
QUALITY: dict[str, Prompts] = {
    "facts": facts.needles,
    "two-chunk": facts.two_chunks,
    "hotpotqa": hotpotqa.prompts,
}
LONG: dict[str, Prompts] = {
    "long documents, going on": long_documents.going_on,
    "long documents, asked": long_documents.asked,
}
# Essays take twice as long as the others and have more tokens a case.
_SHARE = {"essays": 0.25, "two-chunk": 0.5}


def cases(sets: dict[str, Prompts], tokenizer: Tokenizer, num_cases: int) -> list[Case]:
    """`num_cases` of the large sets, fewer of the small, mixed so that a part has some of each."""
    found: list[tuple[float, Case]] = []
    for name, prompts in sets.items():
        made = prompts(tokenizer, max(round(num_cases * _SHARE.get(name, 1.0)), 1))
        found += [(n / len(made), Case(name, prompt)) for n, prompt in enumerate(made)]
    return [case for _, case in sorted(found, key=lambda pair: pair[0])]


def sets_by_name(sets: dict[str, Prompts], names: Sequence[str]) -> dict[str, Prompts]:
    """Those of `sets` that are named; UnknownSet if there is none of a name."""
    for name in names:
        if name not in sets:
            raise UnknownSet(f"unknown set '{name}'; known are {'; '.join(sets)}")
    return {name: sets[name] for name in names}

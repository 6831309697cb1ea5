"""Which sizes a plan is built for: a profile each for any step, for decodes and for short links."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from legokv.errors import InvalidRequest
from legokv.model.config import ModelConfig
from legokv.step.graph import SYMBOLS, Binding, GraphShape

# TensorRT counts a tensor's elements in 31 bits in some of its layers.
MAX_ELEMENTS = 2**31 - 1
# The numbers of a plan's profiles. Plans of few tokens a step, and older ones, have no third.
PREFILL, DECODE, LINK = 0, 1, 2
# What a step of profile LINK holds; it is filled up to a multiple of the first.
LINK_TOKENS, MOST_LINK_TOKENS = 64, 256


@dataclass(frozen=True)
class SizeRange:
    """The smallest, usual and largest size of one symbol."""

    least: int
    usual: int
    most: int


@dataclass(frozen=True)
class Profile:
    """Ranges of all symbols. A step runs under a profile that holds its sizes."""

    name: str
    ranges: Mapping[str, SizeRange]

    def shapes(self, binding: Binding) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The binding's smallest, usual and largest shape."""
        least, usual, most = (
            {symbol: getattr(size, edge) for symbol, size in self.ranges.items()}
            for edge in ("least", "usual", "most")
        )
        return binding.sized(least), binding.sized(usual), binding.sized(most)

    def excess(self, sizes: Mapping[str, int]) -> str | None:
        """The first size the profile does not hold, in words; None if it holds all."""
        for symbol, size in sizes.items():
            held = self.ranges[symbol]
            if not held.least <= size <= held.most:
                return f"{symbol} = {size} is not within {held.least} to {held.most}"
        return None


@dataclass(frozen=True)
class PlanLimits:
    """The most one step of a plan can hold; memory for it is set aside when the plan is opened."""

    max_step_tokens: int = 8192
    max_sequences: int = 64
    max_import_pages: int = 64


def settled_limits(model: ModelConfig, graph: GraphShape, limits: PlanLimits) -> PlanLimits:
    """The limits a plan of `limits` has: no more sequences than tokens, as each has one at least.

    InvalidRequest, with the number and the most there can be, for a limit below 1 or so high that
    a tensor of the step would have more elements than TensorRT counts.
    """
    for name, value in asdict(limits).items():
        if value < 1:
            raise InvalidRequest(f"a plan's limits are 1 or more each, and {name} is {value}")
    heads = model.num_heads + 2 * model.num_kv_heads
    token = max(model.hidden_size, heads * model.head_size, 2 * model.intermediate_size)
    # A sequence has a row of logits and a table of 4 numbers for each of its pages.
    sequence = max(model.vocab_size, 4 * model.context_len)
    for name, elements in (
        ("max_step_tokens", token),
        ("max_sequences", sequence),
        ("max_import_pages", graph.page_elements),
    ):
        asked, most = getattr(limits, name), MAX_ELEMENTS // elements
        if asked > most:
            raise InvalidRequest(
                f"{name} is at most {most:,} for this model, not {asked:,}: TensorRT counts a "
                f"tensor's elements up to {MAX_ELEMENTS:,}, and one of its tensors has "
                f"{elements:,} for each"
            )
    return replace(limits, max_sequences=min(limits.max_sequences, limits.max_step_tokens))


def plan_profiles(model: ModelConfig, graph: GraphShape, limits: PlanLimits) -> tuple[Profile, ...]:
    """The profile of prefill steps, which holds any step, then that of decode steps, then, where a
    step may have as many tokens, that of short links: as PREFILL, DECODE and LINK number them.

    A table can have a page for each position, where chunks are one token long. InvalidRequest for
    limits that `settled_limits` refuses.
    """
    limits = settled_limits(model, graph, limits)
    sequences = limits.max_sequences
    usual_rows = max(1, model.context_len // (4 * graph.page_size))
    all_steps = {
        "P": SizeRange(1, usual_rows, model.context_len),
        "N": _up_to(MAX_ELEMENTS // graph.page_elements, usual=2048),
    }
    no_imports = {"M": SizeRange(0, 0, 0)}
    prefill = {
        "T": _up_to(limits.max_step_tokens, usual=2048),
        "B": _up_to(sequences, usual=1),
        "M": SizeRange(0, 1, limits.max_import_pages),
    }
    decode = {"T": _up_to(sequences, usual=8), "B": _up_to(sequences, usual=8)}
    # 8 seams of 16 tokens and a question of 32 are 160: filled up, 192.
    link = {
        "T": SizeRange(LINK_TOKENS, 3 * LINK_TOKENS, MOST_LINK_TOKENS),
        "B": _up_to(min(sequences, MOST_LINK_TOKENS), usual=1),
    }
    profiles = [("prefill", prefill), ("decode", decode | no_imports)]
    if limits.max_step_tokens >= MOST_LINK_TOKENS:
        profiles.append(("link", link | no_imports))
    return tuple(Profile(name, _ordered(all_steps | ranges)) for name, ranges in profiles)


def scoring_profile(prefill: Profile) -> Profile:
    """The one profile of the scoring pass: prefill steps of one sequence, tuned for a question."""
    tokens = prefill.ranges["T"]
    usual = replace(tokens, usual=min(LINK_TOKENS, tokens.most))
    return Profile("scoring", {**prefill.ranges, "T": usual, "B": SizeRange(1, 1, 1)})


def profile_number(profiles: Sequence[Profile], sizes: Mapping[str, int]) -> int:
    """Which profile a step of these sizes runs under: decode if it can, else link if it can.

    A step of few tokens is one of link, which fills it up. InvalidRequest, naming the size and the
    range, if none holds it.
    """
    excess = [profile.excess(sizes) for profile in profiles[:LINK]]
    if sizes["T"] == sizes["B"] and excess[DECODE] is None:
        return DECODE
    if excess[PREFILL] is not None:
        raise InvalidRequest(f"the plan can't run this step: {excess[PREFILL]}; build it with more")
    if profiles[LINK:] and profiles[LINK].excess({**sizes, "T": filled_up(sizes["T"])}) is None:
        return LINK
    return PREFILL


def filled_up(num_tokens: int) -> int:
    """How many tokens a step of profile LINK has that computes so many."""
    return -(-num_tokens // LINK_TOKENS) * LINK_TOKENS


def _up_to(most: int, *, usual: int) -> SizeRange:
    return SizeRange(1, min(usual, most), most)


def _ordered(ranges: dict[str, SizeRange]) -> dict[str, SizeRange]:
    return {symbol: ranges[symbol] for symbol in SYMBOLS}

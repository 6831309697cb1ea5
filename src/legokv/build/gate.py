"""The correctness gate: linked against full logits over a small text, when an engine is built."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from legokv.built.gate_facts import TOLERANCES, GateFacts
from legokv.built.settings import EngineSettings
from legokv.chunks.chunk import Chunk
from legokv.engine.engine import Engine
from legokv.engine.parts import open_parts
from legokv.errors import NotFinite
from legokv.link.link import Segment
from legokv.text.formats import PromptFormats
from legokv.text.prompt import head_ids

PASSAGES = (
    "The harbour of Vellin has three lighthouses. The oldest was built of grey stone by the "
    "fishermen's guild, and its keeper, Orrin Tal, has lived there for thirty years.\n",
    "Every morning at seven the ferry leaves for the island of Sarn with flour, letters and, in "
    "summer, visitors. It comes back at nine unless the wind is from the north.\n",
    "On Sarn there are two farms, a school with eleven children and a workshop where clocks are "
    "mended. The clockmaker's daughter rings the school's bell, which is older than the school.\n",
)
QUESTION = "Question: who keeps the oldest lighthouse?\nAnswer: The keeper is"
_ORDERS = ((0, 1, 2), (2, 0, 1))
_MAX_SEGMENT_TOKENS = 48
_POOL_PAGES = 64
_POOL_TOKENS = 2048

log = logging.getLogger(__name__)


def check_linking(folder: Path, page_size: int) -> GateFacts:
    """What linking does to the engine in `folder`, computed by torch on this machine's CPU."""
    pool_tokens = max(_POOL_TOKENS, _POOL_PAGES * page_size)
    settings = EngineSettings(runner="torch", pool_tokens=pool_tokens, host_bytes=0, disk_bytes=0)
    engine = Engine.open(folder, settings=settings)
    try:
        run = GateRun(engine)
        full = run.full()
        facts = run.facts(full)
    except NotFinite:
        return _without_numbers(engine)
    if engine.facts.weights == "model":
        return facts
    unrounded = Engine(open_parts(folder, settings, frozenset, unrounded=True))
    return replace(facts, kl_weights=_kl_weights(unrounded, full))


def _kl_weights(unrounded: Engine, full: Sequence[Tensor]) -> float | None:
    """What rounding the weights costs, in nats; None, which the log says, if the unrounded ones
    give NaN or infinity: that is no fault of the engine's that is built.
    """
    try:
        return _kl(GateRun(unrounded).full(), full)
    except NotFinite as error:
        log.warning(
            "what rounding the weights costs is not known, for the unrounded ones give what is "
            "not finite: %s",
            error,
        )
        return None


def _without_numbers(engine: Engine) -> GateFacts:
    """What is recorded of an engine that gave NaN or infinity: it has failed."""
    tolerance = TOLERANCES[engine.facts.dtypes.compute]
    return GateFacts(tolerance, None, None, None, None, engine.runner.description)


class GateRun:
    """One engine's logits after the gate's prompts, its passages' chunks compiled once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # Four segments, and what is left of the context, make any prompt here.
        most = min(_MAX_SEGMENT_TOKENS, engine.facts.model.context_len // 5)
        encode = engine.tokenizer.encode
        self._chunks = [engine.compile(encode(text)[:most]) for text in PASSAGES]
        self._question = encode(QUESTION)[-most:]
        form = PromptFormats(engine.tokenizer).of({})
        self._head = head_ids(engine.tokenizer, form)[-most:]

    def facts(self, full: Sequence[Tensor]) -> GateFacts:
        """All that is recorded, judged by the tolerance of the engine's type; `full`: as `full`."""
        whole = max(chunk.num_tokens for chunk in self._chunks)
        alone = [(number, k) for number in range(len(self._chunks)) for k in (0, 16)]
        one_full = [self._full([number]) for number, _ in alone]
        one_linked = [self._linked([number], k) for number, k in alone]
        one_full.append(full[0])
        one_linked.append(self._behind_a_head())
        if self._head:
            one_full.append(self._engine.prefill([self._own_prompt()]).logits)
            one_linked.append(self._behind_own_head())
        return GateFacts(
            tolerance=TOLERANCES[self._engine.facts.dtypes.compute],
            recomputed_difference=_difference(full, [self._linked(o, whole) for o in _ORDERS]),
            one_chunk_difference=_difference(one_full, one_linked),
            kl_link_0=_kl(full, [self._linked(order, 0) for order in _ORDERS]),
            kl_link_16=_kl(full, [self._linked(order, 16) for order in _ORDERS]),
            attention=self._engine.runner.description,
        )

    def full(self) -> list[Tensor]:
        """The logits of the passages in each order, computed without a cache."""
        return [self._full(order) for order in _ORDERS]

    def _linked(self, order: Sequence[int], link_tokens: int) -> Tensor:
        segments: list[Segment] = [*self._placed(order), self._question]
        return self._engine.prefill(segments, link_tokens=link_tokens).logits

    def _behind_a_head(self) -> Tensor:
        """The passages in their order, the last two as one document behind the first."""
        chunks = self._chunks[:1]
        for chunk in self._chunks[1:]:
            chunks.append(self._engine.chunk(chunk.token_ids, behind=chunks[-1]))
        return self._engine.prefill([*chunks, self._question]).logits

    def _own_prompt(self) -> list[int]:
        """The first passage behind the head of the engine's own chat template."""
        return [*self._head, *self._chunks[0].token_ids, *self._question]

    def _behind_own_head(self) -> Tensor:
        """The same, the passage compiled behind the head, whose KV is kept apart."""
        head = self._engine.compile(self._head)
        passage = self._engine.compile(self._chunks[0].token_ids, behind=head)
        return self._engine.prefill([head, passage, self._question]).logits

    def _full(self, order: Sequence[int]) -> Tensor:
        """The logits of the same tokens as one fresh segment: no chunk, no base but 0."""
        ids = chain.from_iterable(chunk.token_ids for chunk in self._placed(order))
        return self._engine.prefill([[*ids, *self._question]]).logits

    def _placed(self, order: Sequence[int]) -> list[Chunk]:
        return [self._chunks[number] for number in order]


def _difference(full: Sequence[Tensor], linked: Sequence[Tensor]) -> float | None:
    """The largest difference in standard deviations of its prompt's full logits."""
    expected, actual = (torch.stack(list(logits)) for logits in (full, linked))
    return _finite(((actual - expected).abs().amax(-1) / expected.std(-1)).max())


def _kl(full: Sequence[Tensor], linked: Sequence[Tensor]) -> float | None:
    """The mean of KL(full, linked) in nats."""
    p, q = (torch.stack(list(logits)).double().log_softmax(-1) for logits in (full, linked))
    return _finite((p.exp() * (p - q)).sum(-1).mean())


def _finite(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None

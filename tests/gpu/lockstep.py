"""Runners driven through the same steps of a real request, their logits compared at every one."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from legokv.chunks.chunk import Chunk
from legokv.chunks.pool import PagePool
from legokv.link.link import bind, link
from legokv.link.policy import Policy
from legokv.runners import Runner
from legokv.step.batch import Piece, step_batch
from legokv.step.sequence import TokenSequence, chunk_sequence, linked_sequence

ANSWER_TOKENS = 8


class Lockstep:
    """`runners` do every step; the first one's logits are the reference, and choose the tokens.

    `tolerance` is a share of the largest logit. Pages are taken and never given back.
    """

    def __init__(self, runners: Sequence[Runner], tolerance: float) -> None:
        self._runners = runners
        self._tolerance = tolerance
        self._page_size = runners[0].page_size
        self._free = PagePool(runners[0].num_pages, self._page_size)
        self.num_steps = self.num_looks = 0

    def run(self, pieces: list[Piece]) -> Tensor:
        """The reference's logits of one step, after the others were found to give the same."""
        batch = step_batch(pieces)
        meant, *others = (runner.run(batch).cpu() for runner in self._runners)
        allowed = self._tolerance * float(meant.abs().max())
        for logits in others:
            torch.testing.assert_close(logits, meant, rtol=0, atol=allowed)
        self.num_steps += 1
        return meant

    def compile(self, chunk: Chunk, most_tokens: int) -> list[int]:
        """The chunk's pages, computed in pieces of at most `most_tokens`."""
        pages = self._free.take(self._free.pages_for(chunk.num_tokens))
        sequence = chunk_sequence(chunk.token_ids, pages, self._page_size)
        while sequence.num_left:
            num_tokens = min(most_tokens, sequence.num_left)
            self.run([sequence.next(num_tokens)])
            sequence.advance(num_tokens, self.num_steps)
        return pages

    def move_through_the_host(self, pages: Sequence[int], num_tokens: int) -> list[int]:
        """Other pages with the same KV: exported by each runner and imported into the next."""
        stored = [runner.export_pages(pages, num_tokens) for runner in self._runners]
        there = self._free.take(len(pages))
        for number, runner in enumerate(self._runners):
            runner.import_pages(there, stored[number - 1])
        return there

    def ask(
        self, segments: list[Chunk | list[int]], pages: dict[str, list[int]], policy: Policy
    ) -> "Request":
        """A request over chunks in `pages`; those it recomputes in part are copied first."""
        made = link(segments, policy, self._page_size, reserve_tokens=ANSWER_TOKENS)
        private = self._free.take(made.num_private_pages)
        bound = bind(made, [pages[c.key] for c in made.chunks], private, self._page_size)
        for runner in self._runners:
            runner.copy_pages(bound.copy_sources, bound.copy_targets)
        size, tail = self._page_size, private[made.tail_private :]
        slots = [page * size + slot for page in tail for slot in range(size)]
        return Request(
            sequence=linked_sequence(made, bound),
            num_tokens=made.prompt_tokens,
            slots_left=slots[made.prompt_tokens - made.tail_position :],
        )

    def look(self, request: "Request", num_rows: int) -> int:
        """How many runners say what a request's last rows attend to, which is the same for all."""
        batch = step_batch([request.sequence.next(request.sequence.num_left)])
        able = [runner for runner in self._runners if runner.no_attention is None]
        meant, *others = (runner.attention_mass(batch, num_rows) for runner in able)
        assert float(meant.sum()) == pytest.approx(1, abs=0.02)
        for mass in others:
            allowed = self._tolerance * float(meant.max())
            torch.testing.assert_close(mass, meant, rtol=0, atol=allowed)
        return len(able)

    def answer(self, requests: list["Request"]) -> None:
        """All prompts in one step, then greedy tokens of all requests together."""
        for _ in range(ANSWER_TOKENS):
            logits = self.run([r.sequence.next(r.sequence.num_left) for r in requests])
            for request, row in zip(requests, logits, strict=True):
                request.follow_with(int(row.argmax()))


@dataclass
class Request:
    """A sequence, and the slots that the tokens after its `num_tokens` go to."""

    sequence: TokenSequence
    num_tokens: int
    slots_left: list[int]

    def follow_with(self, token_id: int) -> None:
        self.sequence.follow_with(token_id, self.num_tokens, self.slots_left.pop(0))
        self.num_tokens += 1


def whole_conversation(lockstep: Lockstep, vocab_size: int, policy: Policy, seed: int) -> None:
    """Compile three chunks, move one through the host, answer two requests over them at once.

    What the question of the first attends to is looked at before, as mode `guided` does.
    """
    generator = torch.Generator().manual_seed(seed)

    def ids(length: int) -> list[int]:
        return torch.randint(vocab_size, (length,), generator=generator).tolist()

    chunks = [Chunk(f"chunk {n}", "tests", tuple(ids(n))) for n in (33, 48, 21)]
    pages = {chunk.key: lockstep.compile(chunk, most_tokens=32) for chunk in chunks}
    a, b, c = chunks
    pages[b.key] = lockstep.move_through_the_host(pages[b.key], b.num_tokens)
    first = lockstep.ask([b, a, c, ids(7)], pages, policy)
    second = lockstep.ask([a, ids(3), b, b, ids(1)], pages, policy)
    lockstep.num_looks = lockstep.look(first, num_rows=7)
    lockstep.answer([first, second])

"""A row's logits and KV have the same bits alone and in any company, in every native form."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from legokv.chunks.chunk import Chunk
from legokv.kernels.build_cpu import build_native_library
from legokv.kernels.cpu import NativeCalls
from legokv.kernels.native_library import InstructionSet, NativeLibrary
from legokv.link.link import bind, link
from legokv.link.policy import legolink
from legokv.model.config import ModelConfig, RopeConfig
from legokv.model.decoder import Decoder
from legokv.runners.attention_forms import NativeForm
from legokv.runners.eager import EagerRunner
from legokv.step.batch import step_batch
from legokv.step.sequence import TokenSequence, chunk_sequence, linked_sequence, page_slots

PAGE_SIZE, NUM_PAGES, NUM_BATCHES, LINK_TOKENS = 16, 400, 50, 16
NUM_DECODED = 6
# Sums of 768 products, and neither a multiple of a tile's rows nor of a panel's columns.
CONFIG = ModelConfig(
    architecture="llama",
    vocab_size=500,
    hidden_size=320,
    intermediate_size=768,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_size=64,
    norm_eps=1e-5,
    max_positions=4096,
    rope=RopeConfig(10000.0),
    qkv_bias=True,
    out_bias=False,
    mlp_bias=False,
    qk_norm=False,
    tied_embeddings=True,
    bos_token_id=None,
    eos_token_ids=(),
)
# Chunks by their lengths: one in parts for itself, one of a part and little, one of few pages.
CHUNK_TOKENS = (700, 530, 70)
# Prompts: numbers of chunks, and fresh tokens by how many there are.
PROMPTS = (
    ("c0", "c1", 9),
    ("c1", "c0", 40),
    (3, "c2", "c1", "c0", 5),
    ("c2", 21, "c2", 1),
    (600,),
    ("c0", 1),
)
FORMS = [
    (each, dtype)
    for dtype in (torch.bfloat16, torch.float32)
    for each in InstructionSet
    if each and (not each.bfloat16_only or dtype == torch.bfloat16)
]


@dataclass
class Life:
    """A chunk's or request's tokens to compute one after another, once `after` are computed.

    `copies` are pages (from, to) to copy before; `logits` those of each of its ends.
    """

    sequence: TokenSequence
    pages: list[int]
    decoded: list[tuple[int, int, int]]
    after: tuple["Life", ...] = ()
    copies: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    begun: bool = False
    logits: list[Tensor] | None = None

    @property
    def over(self) -> bool:
        return self.sequence.num_left == 0

    def waits(self) -> bool:
        return not all(life.over for life in self.after)


@pytest.fixture(scope="module")
def calls() -> NativeCalls:
    return NativeCalls(NativeLibrary(build_native_library(print)))


def random_weights(dtype: torch.dtype) -> dict[str, Tensor]:
    dice = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = {name: each.shape for name, each in Decoder(CONFIG).state_dict().items()}
    return {
        name: (torch.randn(shape, generator=dice) * shape[-1] ** -0.5).to(dtype)
        for name, shape in shapes.items()
    }


def make_lives(seed: int) -> list[Life]:
    """All chunks, then all requests, in pages that the seed shuffles."""
    dice = np.random.default_rng(0)
    free = iter(np.random.default_rng(seed).permutation(NUM_PAGES).tolist())

    def pages(num_tokens: int) -> list[int]:
        return [next(free) for _ in range(-(-num_tokens // PAGE_SIZE))]

    def ids(num_tokens: int) -> tuple[int, ...]:
        return tuple(dice.integers(CONFIG.vocab_size, size=num_tokens).tolist())

    chunks, lives = [], []
    for number, length in enumerate(CHUNK_TOKENS):
        chunks.append(Chunk(f"c{number}", "", ids(length)))
        taken = pages(length)
        sequence = chunk_sequence(chunks[-1].token_ids, taken, PAGE_SIZE)
        lives.append(Life(sequence, taken, []))
    stored = {chunk.key: life for chunk, life in zip(chunks, lives, strict=True)}
    for prompt in PROMPTS:
        segments = [ids(each) if isinstance(each, int) else chunks[int(each[1])] for each in prompt]
        made = link(segments, legolink(LINK_TOKENS), PAGE_SIZE, NUM_DECODED)
        private = pages(made.num_private_pages * PAGE_SIZE)
        used = [stored[chunk.key] for chunk in made.chunks]
        bound = bind(made, [life.pages for life in used], private, PAGE_SIZE)
        tail = private[made.tail_private :]
        slots = page_slots(tail, len(tail) * PAGE_SIZE, PAGE_SIZE)
        decoded = [
            (token, position, int(slots[position - made.tail_position]))
            for position, token in enumerate(ids(NUM_DECODED), made.prompt_tokens)
        ]
        copies = (bound.copy_sources, bound.copy_targets)
        lives.append(Life(linked_sequence(made, bound), private, decoded, tuple(used), copies))
    return lives


def run(runner: EagerRunner, turns: list[tuple[Life, int]]) -> None:
    """A step of some tokens of each life."""
    for life, _ in turns:
        if not life.begun:
            runner.copy_pages(*life.copies)
            life.begun, life.logits = True, []
    logits = runner.run(step_batch([life.sequence.next(count) for life, count in turns]))
    for (life, count), row in zip(turns, logits, strict=True):
        life.sequence.advance(count, 0)
        if life.over:
            assert life.logits is not None
            life.logits.append(row)
            if life.decoded:
                life.sequence.follow_with(*life.decoded.pop(0))


def alone(runner: EagerRunner) -> list[Life]:
    """Each life by itself, every sequence in one step."""
    forget(runner)
    lives = make_lives(seed=0)
    for life in lives:
        while not life.over:
            run(runner, [(life, life.sequence.num_left)])
    return lives


def forget(runner: EagerRunner) -> None:
    for pool in runner.pools:
        pool.zero_()


def random_turns(lives: list[Life], dice: np.random.Generator) -> list[tuple[Life, int]]:
    """Some of those that can go on, in any order, each with some of its tokens."""
    ready = [life for life in lives if not life.over and not life.waits()]
    order = dice.permutation(len(ready))[: dice.integers(1, len(ready) + 1)]
    return [(ready[n], min(ready[n].sequence.num_left, piece_length(dice))) for n in order]


def piece_length(dice: np.random.Generator) -> int:
    return int(dice.integers(1, int(dice.choice([4, 20, 70, 150]))))


def companies(runner: EagerRunner) -> Iterator[list[Life]]:
    """All lives in steps that they share, again and again until there were enough batches."""
    seed, num_batches = 0, 0
    while num_batches < NUM_BATCHES:
        seed += 1
        forget(runner)
        dice, lives = np.random.default_rng(seed), make_lives(seed)
        while not all(life.over for life in lives):
            run(runner, random_turns(lives, dice))
            num_batches += 1
        yield lives


def kept(runner: EagerRunner, lives: list[Life]) -> list[Tensor]:
    """The KV that each life wrote."""
    return [runner.export_pages(life.pages, len(life.pages) * PAGE_SIZE) for life in lives]


@pytest.mark.parametrize(("instruction_set", "dtype"), FORMS)
def test_logits_and_kv_have_the_same_bits_alone_and_in_50_random_batches(
    calls: NativeCalls,
    instruction_set: InstructionSet,
    dtype: torch.dtype,
    torch_threads: Callable[[int], None],
) -> None:
    sets = calls.instruction_sets()
    if instruction_set not in sets:
        pytest.skip(f"this processor or compiler has no {instruction_set.name}")
    if instruction_set == InstructionSet.SOFTWARE_TILES and InstructionSet.AMX in sets:
        pytest.skip("AMX does the same, a hundred times as fast")
    torch_threads(2)
    form = NativeForm(calls, CONFIG, dtype, instruction_set)
    runner = EagerRunner(
        CONFIG, random_weights(dtype), form, num_pages=NUM_PAGES, page_size=PAGE_SIZE
    )
    expected = alone(runner)
    expected_kv = kept(runner, expected)
    for lives in companies(runner):
        for number, (life, one) in enumerate(zip(lives, expected, strict=True)):
            assert life.logits is not None
            assert one.logits is not None
            for at, (found, due) in enumerate(zip(life.logits, one.logits, strict=True)):
                assert torch.equal(found, due), f"logits {at} of life {number}"
        for number, (found, due) in enumerate(zip(kept(runner, lives), expected_kv, strict=True)):
            assert torch.equal(found, due), f"KV of life {number}"

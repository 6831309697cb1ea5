"""Runner `cuda` over the kernels' host form: askers over the same documents, in orders of their
own, get the eager runner's tokens while a document is read once for all of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from paths import ROOT
from torch import Tensor

from legokv.built.folder import read_engine_folder
from legokv.checkpoint import load_weights
from legokv.chunks.chunk import Chunk
from legokv.kernels.build_gpu import PluginBuild, build_host_kernels
from legokv.kernels.gpu import Launchers, Room, SharedTables
from legokv.link.link import BoundLink, bind, link
from legokv.link.policy import legolink
from legokv.runners.attention_forms import CPU, KernelForm, TorchForm
from legokv.runners.eager import EagerRunner
from legokv.runners.key_mass import KeyMass
from legokv.step.batch import step_batch
from legokv.step.sequence import TokenSequence, linked_sequence

PAGE_SIZE, NUM_PAGES, ANSWER_TOKENS = 16, 160, 5
CHUNKS = [Chunk(str(n), "", tuple(range(n, n + length))) for n, length in enumerate((70, 41, 64))]
ORDERS = ((0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1), (1, 0))


class Counting(Launchers):
    """Keeps how many sequences' rows each step's shared tiles have, 0 where it has none."""

    def __init__(self, library: Path) -> None:
        super().__init__(library)
        self.shared: list[int] = []

    def list_shared(
        self, index: Mapping[str, Tensor], num_heads: int, pool: Tensor, room: Room | None = None
    ) -> tuple[Tensor, SharedTables] | None:
        found = super().list_shared(index, num_heads, pool, room)
        self.shared.append(0 if found is None else len(set(found[1].members[:, 0].tolist())))
        return found


@dataclass
class Asker:
    sequence: TokenSequence
    num_tokens: int
    slots: list[int]


def asker(
    order: tuple[int, ...], stored: list[list[int]], free: list[int]
) -> tuple[Asker, BoundLink]:
    """A prompt over the chunks in that order and a question, and where its answer goes."""
    question = [7 + len(order) + order[0], 3, 11]
    made = link(
        [*(CHUNKS[n] for n in order), question],
        legolink(8),
        PAGE_SIZE,
        reserve_tokens=ANSWER_TOKENS,
    )
    private = [free.pop() for _ in range(made.num_private_pages)]
    bound = bind(made, [stored[int(c.key)] for c in made.chunks], private, PAGE_SIZE)
    slots = [
        page * PAGE_SIZE + s for page in private[made.tail_private :] for s in range(PAGE_SIZE)
    ]
    left = slots[made.prompt_tokens - made.tail_position :]
    return Asker(linked_sequence(made, bound), made.prompt_tokens, left), bound


def answers(runner: EagerRunner) -> tuple[Tensor, list[Tensor]]:
    """Greedy tokens of all askers [B, n], and each step's logits."""
    generator = torch.Generator().manual_seed(5)
    free = np.random.default_rng(2).permutation(NUM_PAGES).tolist()
    stored = []
    for chunk in CHUNKS:
        stored.append([free.pop() for _ in range(-(-len(chunk.token_ids) // PAGE_SIZE))])
        layers, heads, size = len(runner.pools), *runner.pools[0].shape[3:]
        kv = torch.randn((layers, 2, len(chunk.token_ids), heads, size), generator=generator).to(
            runner.pools[0].dtype
        )
        runner.import_pages(stored[-1], kv)
    askers = []
    for order in ORDERS:
        made, bound = asker(order, stored, free)
        runner.copy_pages(bound.copy_sources, bound.copy_targets)
        askers.append(made)
    # Prompts one by one, so that decodes and a link stand in one step.
    logits, tokens = [], []
    for arrived in (1, 3, *[len(askers)] * ANSWER_TOKENS):
        asking = askers[:arrived]
        row = runner.run(step_batch([a.sequence.next(a.sequence.num_left) for a in asking]))
        logits.append(row)
        for each, best in zip(asking, row.argmax(-1).tolist(), strict=True):
            each.sequence.follow_with(best, each.num_tokens, each.slots.pop(0))
            each.num_tokens += 1
        tokens.append(row.argmax(-1))
    return torch.cat(tokens), logits


def test_askers_over_the_same_documents_get_the_eager_runner_s_tokens(
    tiny_engine_folder: Callable[[str], Path],
) -> None:
    folder = tiny_engine_folder("llama-wide")
    model = read_engine_folder(folder).model
    library = build_host_kernels(PluginBuild(ROOT / "out"), print) / "liblegokv_host_kernels.so"
    launchers = Counting(library)
    weights = load_weights(folder, model, torch.float16)
    sizes = {"num_pages": NUM_PAGES, "page_size": PAGE_SIZE}
    plain = EagerRunner(model, weights, TorchForm(model), **sizes)
    kernel = EagerRunner(model, weights, KernelForm(launchers, model, CPU), **sizes)
    meant, logits = answers(plain)
    found, others = answers(kernel)
    for ours, theirs in zip(others, logits, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-2 * float(theirs.abs().max()))
    assert torch.equal(found, meant)
    # One alone is not asked for; then one decodes beside two links, two or three beside others.
    assert launchers.shared == [0, 3, 5, 5, 5, 5]


def test_a_step_that_is_asked_what_it_attends_to_shares_nothing(
    tiny_engine_folder: Callable[[str], Path],
) -> None:
    """A mass is by the rows of each sequence's own table."""
    model = read_engine_folder(tiny_engine_folder("llama-wide")).model
    library = build_host_kernels(PluginBuild(ROOT / "out"), print) / "liblegokv_host_kernels.so"
    launchers, free = Counting(library), list(range(NUM_PAGES))
    stored = [[free.pop() for _ in range(5)] for _ in CHUNKS]
    sequences = [asker(order, stored, free)[0].sequence for order in ORDERS[:2]]
    for each in sequences:
        each.next(each.num_left - 1)
        each.advance(each.num_left - 1, 0)
    batch = step_batch([each.next(1) for each in sequences])
    form = KernelForm(launchers, model, CPU)
    pools = [torch.zeros(NUM_PAGES, 2, PAGE_SIZE, model.num_kv_heads, model.head_size).bfloat16()]
    mass = KeyMass(batch, 1, range(1), PAGE_SIZE, CPU)
    for asked, lists in ((mass, []), (None, [2])):
        with form.step(batch, pools, asked):
            assert launchers.shared == lists

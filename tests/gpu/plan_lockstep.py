"""A plan's runner in lockstep with the CPU's, over the weights of its own engine folder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from lockstep import Lockstep, whole_conversation

from legokv.built.folder import read_engine_folder
from legokv.checkpoint import load_weights
from legokv.link.policy import legolink
from legokv.model.config import ModelConfig
from legokv.runners import Runner
from legokv.runners.attention_forms import TorchForm
from legokv.runners.eager import EagerRunner
from legokv.step.batch import Piece

NUM_PAGES = 96
# Tokens of the largest step, and its sequences.
STEP_TOKENS, NUM_SEQUENCES = 80, 2
# Shares of the largest logit: sums are taken in another order, and rounded to the type in between.
TOLERANCE = {"float32": 2e-3, "float16": 1e-2, "bfloat16": 6e-2}


def hold_to_the_cpu(folder: Path, runner: Runner, dtype: str, seed: int) -> int:
    """Chunks compiled, moved through the host, linked, answered and imported by both; the number
    of steps."""
    facts = read_engine_folder(folder)
    weights = load_weights(folder, facts.model, getattr(torch, dtype))
    form = TorchForm(facts.model)
    cpu = EagerRunner(facts.model, weights, form, num_pages=NUM_PAGES, page_size=facts.page_size)
    runners = (cpu, runner)
    lockstep = Lockstep(runners, TOLERANCE[dtype])
    whole_conversation(lockstep, facts.model.vocab_size, legolink(16), seed)
    assert lockstep.num_looks == sum(each.no_attention is None for each in runners)
    lockstep.run([read_what_arrives(runners, facts.model, seed)])
    return lockstep.num_steps


def read_what_arrives(runners: Sequence[Runner], model: ModelConfig, seed: int) -> Piece:
    """Two pages for the runners to import, and a token after them that reads them at once."""
    size = runners[0].page_size
    num_tokens = size + 4
    shape = (model.num_layers, 2, num_tokens, model.num_kv_heads, model.head_size)
    kv = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    full, started = NUM_PAGES - 2, NUM_PAGES - 1
    for runner in runners:
        runner.import_pages([full, started], kv)
    position = np.array([num_tokens], np.int32)
    slot = np.array([started * size + num_tokens - size], np.int32)
    rows = [(full, 0, 0, size), (started, 0, size, num_tokens + 1 - size)]
    return Piece(position, position, position, slot, np.array(rows, np.int32))

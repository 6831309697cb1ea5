"""SmolLM2's steps on the GPU against the CPU, where its engine folder is."""

import pytest
import torch
from device_runner import cpu_runner, device_runner
from gpu_kernels import Kernels
from lockstep import Lockstep, whole_conversation
from paths import ROOT

from legokv.built.folder import read_engine_folder
from legokv.checkpoint import load_weights
from legokv.link.policy import legolink

ENGINE = ROOT / "out" / "engines" / "llama"
# Shares of the largest logit, after 30 layers.
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 6e-2}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_smollm2_gives_the_cpu_s_logits(
    kernels: Kernels, gpu: torch.device, seed: int, dtype: torch.dtype
) -> None:
    if not ENGINE.is_dir():
        pytest.skip(f"{ENGINE} is not there: python build/build_engine.py --model llama")
    facts = read_engine_folder(ENGINE)
    weights = load_weights(ENGINE, facts.model, dtype)
    runners = (
        cpu_runner(facts.model, weights, 96, facts.page_size),
        device_runner(kernels, facts.model, weights, 96, facts.page_size),
    )
    lockstep = Lockstep(runners, TOLERANCE[dtype])
    whole_conversation(lockstep, facts.model.vocab_size, legolink(16), seed)

"""Logits of every architecture are those of transformers' own model, at every position."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from plain_attention import plain_causal_attention
from tiny_checkpoints import VARIANTS
from torch import Tensor
from transformers import AutoModelForCausalLM

from legokv import Engine, EngineSettings
from legokv.checkpoint import load_weights, read_model_config
from legokv.model.decoder import decoder_from_weights

# float32 sums in another order, over three layers; the logits are of size 10.
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
IDS = torch.randint(3, 384, (300,), generator=torch.Generator().manual_seed(7))


def transformers_logits(folder: Path, ids: Tensor) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(ids[None]).logits[0]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_decoder_gives_transformers_logits_at_every_position(
    name: str, tiny_checkpoint: Callable[[str], Path]
) -> None:
    folder = tiny_checkpoint(name)
    config = read_model_config(folder)
    decoder = decoder_from_weights(config, load_weights(folder, config, torch.float32))
    pools = [torch.empty(0)] * config.num_layers
    logits, _ = decoder(IDS, torch.arange(len(IDS)), pools, plain_causal_attention(config))
    expected = transformers_logits(folder, IDS)
    assert expected.std() > 1, "the comparison would be empty if all logits were alike"
    torch.testing.assert_close(logits, expected, **CLOSE)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_engine_gives_transformers_logits_of_the_next_token(
    name: str,
    tiny_checkpoint: Callable[[str], Path],
    tiny_engine_folder: Callable[[str], Path],
) -> None:
    engine = Engine.open(tiny_engine_folder(name), settings=EngineSettings(pool_tokens=1024))
    logits = engine.prefill([IDS.tolist()]).logits
    torch.testing.assert_close(logits, transformers_logits(tiny_checkpoint(name), IDS)[-1], **CLOSE)

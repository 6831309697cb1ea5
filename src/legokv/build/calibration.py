"""What the inputs of FP8 products are divided by: from a run of the model over sample texts, kept
in the engine folder, so that a rebuild repeats it.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from legokv.built.folder import FACTS_FILE
from legokv.built.seal import CALIBRATION_FILE
from legokv.built.typed_json import typed
from legokv.checkpoint import load_weights
from legokv.checkpoint.fingerprint import calibrated_fingerprint
from legokv.checkpoint.layout import decoder_tensors
from legokv.errors import InvalidRequest, UnsupportedModel
from legokv.model.config import ModelConfig
from legokv.model.decoder import Attention, Decoder, Linear, decoder_from_weights
from legokv.model.rope import layer_frequencies, layer_scale
from legokv.ops.quantised_weight import FP8_LARGEST_SCALE, FP8_MOST
from legokv.ops.rotary import cos_sin, rotate
from legokv.text.formats import PromptFormats
from legokv.text.json_file import json_object
from legokv.text.prompt import head_ids
from legokv.text.tokenizer import Tokenizer

MOST_TOKENS, MOST_TEXT_TOKENS = 2048, 256
"""Of all texts together, and of one: a model of 8 billion numbers takes a CPU minutes for them."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Calibration:
    """`scales` by product ("layers.0.qkv"), each a bfloat16 above 0.

    model: the fingerprint of what was run; source: what over, in words.
    """

    model: str
    source: str
    scales: Mapping[str, float]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False) + "\n"


def kept_calibration(
    folders: Sequence[Path], config: ModelConfig, model: str
) -> Calibration | None:
    """That of the model of this fingerprint which the first of `folders` keeps, if one does.

    One that is not of its engine's fingerprint was changed since: that engine is refused, and what
    is built again has none of it.
    """
    products = {
        tensor.name.removesuffix(".weight")
        for tensor in decoder_tensors(config)
        if tensor.is_product
    }
    for folder in folders:
        try:
            text = (folder / CALIBRATION_FILE).read_text(encoding="utf-8")
            calibration: Calibration = typed(Calibration, json.loads(text), "")
            engine = json_object(folder / FACTS_FILE)
        except (OSError, ValueError, TypeError, RecursionError, UnsupportedModel):
            # None is kept there, or one that nobody can read: it is measured again.
            continue
        is_sound = all(0 < scale < FP8_LARGEST_SCALE for scale in calibration.scales.values())
        is_unchanged = engine.get("fingerprint") == calibrated_fingerprint(model, text)
        if is_unchanged and is_sound and calibration.scales.keys() == products:
            return calibration
    return None


def calibrate(
    checkpoint: Path, config: ModelConfig, samples: Sequence[str], model: str, say: Say
) -> Calibration:
    """The scales that make the largest input of each product, as `samples` have it, 448.

    Each text is run alone behind the head of the model's chat template, in bfloat16 on the CPU.
    InvalidRequest without texts; UnsupportedModel where an input is no number.
    """
    if not samples:
        raise InvalidRequest("--quantize fp8 needs sample texts to calibrate with: there are none")
    started = time.monotonic()
    prompts = list(_prompts(Tokenizer.open(checkpoint), samples, config.context_len))
    num_tokens = sum(map(len, prompts))
    source = f"{len(prompts)} texts of {num_tokens:,} tokens"
    say(f"Calibrating FP8 over {source}")
    decoder = decoder_from_weights(config, load_weights(checkpoint, config, torch.bfloat16))
    with _input_maxima(decoder) as maxima:
        for ids in prompts:
            run_text(decoder, ids, [len(ids) - 1])
    say(f"  {len(maxima)} products' inputs in {time.monotonic() - started:.1f} s")
    return Calibration(model, source, {name: _scale(name, most) for name, most in maxima.items()})


@torch.inference_mode()
def run_text(decoder: Decoder, ids: Sequence[int], rows: Sequence[int]) -> Tensor:
    """Logits float32 [rows, V] behind the tokens at `rows` of a text that is computed alone."""
    attention = _causal(decoder.config, len(ids))
    nothing = [torch.empty(0)] * decoder.config.num_layers
    logits, _ = decoder.forward(torch.tensor(ids), torch.tensor(rows), nothing, attention)
    return logits


def products_of(decoder: Decoder) -> dict[str, nn.Module]:
    """The layers' products by name: what is quantised, so without a head."""
    return {
        name: module
        for name, module in decoder.named_modules()
        if isinstance(module, Linear) and name.startswith("layers.")
    }


def _prompts(tokenizer: Tokenizer, samples: Sequence[str], context_len: int) -> Iterator[list[int]]:
    """The texts' beginnings behind the head, until there are enough tokens."""
    head, left = head_ids(tokenizer, PromptFormats(tokenizer).of({})), MOST_TOKENS
    for text in samples:
        most = min(MOST_TEXT_TOKENS, context_len, left)
        ids = [*chain(head, tokenizer.encode(text))][:most]
        left -= len(ids)
        if ids:
            yield ids


def _causal(config: ModelConfig, num_tokens: int) -> Attention:
    positions = torch.arange(num_tokens)
    angles = {
        kind: cos_sin(positions, torch.tensor(layer_frequencies(kind, config)))
        for kind in set(config.layers)
    }

    def attention(
        layer: int, q: Tensor, k: Tensor, v: Tensor, pool: Tensor
    ) -> tuple[Tensor, Tensor]:
        kind = config.layers[layer]
        cos, sin = (angle[:, None] for angle in angles[kind])
        q, k = (rotate(x, cos, sin).to(v.dtype) for x in (q, k))
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        scale = layer_scale(kind, config)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
        return out[0].transpose(0, 1), pool

    return attention


@contextmanager
def _input_maxima(decoder: Decoder) -> Iterator[dict[str, float]]:
    """The largest number, without its sign, of each product's inputs while this is open."""
    maxima: dict[str, float] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        maxima[name] = 0.0

        def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            # Not max(): it would pass by what is no number.
            most = torch.tensor(maxima[name], dtype=torch.float64)
            maxima[name] = float(torch.maximum(most, inputs[0].abs().amax().double()))

        return look

    hooks = [m.register_forward_pre_hook(watch(n)) for n, m in products_of(decoder).items()]
    try:
        yield maxima
    finally:
        for hook in hooks:
            hook.remove()


def _scale(name: str, most: float) -> float:
    scale = float(torch.tensor(most / FP8_MOST).bfloat16())
    if not 0 < scale < FP8_LARGEST_SCALE:
        raise UnsupportedModel(
            f"the inputs of {name} are at most {most} over the sample texts, which gives no scale "
            "for FP8: choose --quantize int4, or none"
        )
    return scale

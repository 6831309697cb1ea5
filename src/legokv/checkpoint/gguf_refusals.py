"""What of a GGUF file transformers' conversion would drop or make up: each is one sentence.

A setting or tensor that nobody here knows is refused, too: it may be one that changes the model.
"""

from typing import Any

from legokv.checkpoint.config_values import MAX_INT
from legokv.checkpoint.gguf_header import GgufHeader
from legokv.errors import UnsupportedModel

ARCHITECTURES = ("llama", "qwen2", "qwen3")
CONTROL, USER_DEFINED = 3, 4
_ADVICE = "take the checkpoint's safetensors folder instead"
# The byte-level splits transformers gives back as the file's author meant them.
_SPLITS = ("default", "gpt-2", "smollm", "qwen2")
# Of the model: what the conversion takes and must find, and what it takes or does without.
_NEEDED = (
    *("context_length", "block_count", "feed_forward_length", "embedding_length"),
    *("attention.head_count", "attention.layer_norm_rms_epsilon"),
)
_FLOATS = ("attention.layer_norm_rms_epsilon", "rope.freq_base")
_TAKEN = (*_NEEDED, "attention.head_count_kv", "rope.freq_base", "vocab_size")
# Of the model: looked at below, or without a meaning for what is computed.
_JUDGED = (
    *("rope.dimension_count", "attention.key_length", "attention.value_length"),
    *("expert_count", "expert_used_count", "attention.sliding_window", "attention.causal"),
    *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.finetuned", "rope.scale_linear"),
    *("rope.scaling.original_context_length", "rope.scaling.attn_factor"),
    *("rope.scaling.yarn_log_multiplier", "tensor_data_layout"),
)
_TOKENIZER = (
    *("model", "pre", "tokens", "scores", "token_type", "merges", "token_type_count"),
    *("add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix"),
    *("remove_extra_whitespaces", "precompiled_charsmap"),
)
# Qwen3's class takes this head size where the conversion, which knows no key length, says none.
_QWEN3_HEAD_SIZE = 128
_LAYER = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm")
_FEED_FORWARD = ("ffn_gate", "ffn_up", "ffn_down")
_EXTRA = {
    "llama": (),
    "qwen2": ("attn_q.bias", "attn_k.bias", "attn_v.bias"),
    "qwen3": ("attn_q_norm.weight", "attn_k_norm.weight"),
}


def refuse_lost(header: GgufHeader, name: str) -> None:
    """UnsupportedModel, naming the file `name`, for the first thing its conversion would lose."""
    architecture = header.settings.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise UnsupportedModel(
            f"{name} holds a {str(architecture)[:80]} model: it is none of "
            f"{', '.join(ARCHITECTURES)}"
        )
    prefix = f"{architecture}."
    model = {
        key.removeprefix(prefix): value
        for key, value in header.settings.items()
        if key.startswith(prefix)
    }
    tokenizer = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in header.settings.items()
        if key.startswith("tokenizer.ggml.")
    }
    try:
        _refuse_parts(header.settings)
        _refuse_model(model, str(architecture), header)
        _refuse_tokenizer(tokenizer)
        _refuse_tensors(header, str(architecture), model["block_count"])
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{name}{error}") from None


def _refuse_parts(settings: dict[str, Any]) -> None:
    parts = settings.get("split.count", 0)
    if parts not in (0, 1):
        raise UnsupportedModel(
            f" is one of {str(parts)[:20]} parts: the rest of the model is in other files; join "
            f"them with llama-gguf-split --merge, or {_ADVICE}"
        )
    kind = settings.get("general.type", "model")
    if kind != "model":
        raise UnsupportedModel(f" holds a {str(kind)[:80]}, not a model")


def _refuse_model(model: dict[str, Any], architecture: str, header: GgufHeader) -> None:
    experts = model.get("expert_count")
    if experts:
        raise UnsupportedModel(f" is a mixture of {experts} experts: not supported")
    needed = (*_NEEDED, *(() if architecture == "llama" else ("attention.head_count_kv",)))
    missing = [key for key in needed if key not in model]
    if missing:
        raise UnsupportedModel(f" says nothing of {architecture}.{missing[0]}: it is incomplete")
    for key in {*_TAKEN, "attention.sliding_window"} & set(model):
        value, kind = model[key], float if key in _FLOATS else int
        if type(value) is not kind or not 0 < value < MAX_INT:
            raise UnsupportedModel(
                f": {architecture}.{key} must be a positive number, it is {str(value)[:80]}"
            )
    _refuse_rotary_scaling(model, header)
    _refuse_narrow_window(model)
    _refuse_head_sizes(model, architecture)
    if model.get("attention.causal", True) is not True:
        raise _lost(f"attention that is not causal ({architecture}.attention.causal)")
    unknown = sorted(set(model) - {*_TAKEN, *_JUDGED})
    if unknown:
        raise _lost(f"the setting {architecture}.{unknown[0][:80]}")


def _refuse_rotary_scaling(model: dict[str, Any], header: GgufHeader) -> None:
    tables = [name for name in header.tensors if name.startswith("rope_")]
    factor = model.get("rope.scaling.factor", model.get("rope.scale_linear", 1.0))
    # llama.cpp takes a factor without a type for a linear one.
    scaling = model.get("rope.scaling.type", "none" if factor == 1.0 else f"linear, {factor}")
    if tables or scaling != "none":
        raise _lost(f"its rotary scaling ({tables[0] if tables else scaling})")


def _refuse_narrow_window(model: dict[str, Any]) -> None:
    window, context = model.get("attention.sliding_window"), model["context_length"]
    if window is not None and window < context:
        raise UnsupportedModel(
            f": sliding window of {window} tokens is narrower than the context of {context}: a "
            "linked chunk must see every earlier chunk"
        )


def _refuse_head_sizes(model: dict[str, Any], architecture: str) -> None:
    share = model["embedding_length"] / model["attention.head_count"]
    size = model.get("attention.key_length", share)
    rotary = model.get("rope.dimension_count", size)
    class_size = {"llama": rotary, "qwen2": share, "qwen3": _QWEN3_HEAD_SIZE}[architecture]
    values = model.get("attention.value_length", size)
    if not size == rotary == values == class_size:
        raise _lost(
            f"heads of {size} (keys), {values} (values) and {rotary} (rotated), for which the "
            f"conversion takes {class_size},"
        )


def _refuse_tokenizer(tokenizer: dict[str, Any]) -> None:
    kind, split = tokenizer.get("model"), tokenizer.get("pre")
    if kind not in ("gpt2", "llama"):
        raise _lost(f"a tokenizer of the kind {str(kind)[:80]}")
    if kind == "gpt2" and split not in (None, *_SPLITS):
        raise UnsupportedModel(
            f": the conversion does not know the tokenizer's '{str(split)[:80]}' way to split "
            f"words; {_ADVICE}"
        )
    # A SentencePiece model has the blank in front, a byte-level one has not.
    usual: dict[str, tuple[object, ...]] = {
        "add_space_prefix": (kind == "llama",),
        "remove_extra_whitespaces": (False,),
        "precompiled_charsmap": ([],),
        "add_sep_token": (False,),
    }
    for key, values in usual.items():
        if key in tokenizer and tokenizer[key] not in values:
            raise _lost(f"the setting tokenizer.ggml.{key}")
    # Ids of tokens by their use are no settings: ends are kept, others are text to a decoder.
    unknown = sorted(key for key in set(tokenizer) - {*_TOKENIZER} if not key.endswith("token_id"))
    if unknown:
        raise _lost(f"the setting tokenizer.ggml.{unknown[0][:80]}")
    tokens = tokenizer.get("tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(t, str) for t in tokens):
        raise UnsupportedModel(" has no list of tokens: it is incomplete")
    if len(set(tokens)) < len(tokens):
        raise _lost(f"{len(tokens) - len(set(tokens))} tokens that are spelled as others are")
    _check_ids(tokenizer, len(tokens))


def _check_ids(tokenizer: dict[str, Any], num_tokens: int) -> None:
    for key, value in tokenizer.items():
        if key.endswith("token_id") and not (type(value) is int and 0 <= value < num_tokens):
            raise UnsupportedModel(
                f": tokenizer.ggml.{key[:80]} is {str(value)[:80]}, there are {num_tokens} tokens"
            )


def _refuse_tensors(header: GgufHeader, architecture: str, num_layers: int) -> None:
    if num_layers > len(header.tensors):
        raise UnsupportedModel(
            f" says {num_layers} layers and has {len(header.tensors)} tensors: it is incomplete"
        )
    own = (*(f"{part}.weight" for part in (*_LAYER, *_FEED_FORWARD)), *_EXTRA[architecture])
    layers = {f"blk.{layer}.{part}" for layer in range(num_layers) for part in own}
    needed = {"token_embd.weight", "output_norm.weight", *layers}
    missing = sorted(needed - set(header.tensors))
    if missing:
        raise UnsupportedModel(
            f" has no {missing[0]} ({len(missing)} of {len(needed)} tensors are missing): fetch it "
            "again, for what is missing is never made up"
        )
    extra = sorted(set(header.tensors) - needed - {"output.weight"})
    if extra:
        raise _lost(f"the tensor {extra[0][:80]} (with {len(extra) - 1} more)")


def _lost(what: str) -> UnsupportedModel:
    return UnsupportedModel(f": {what} is lost in the conversion; {_ADVICE}")

"""The architectures that are compiled, and what a config.json may not ask for: each refusal is one
function and one sentence.
"""

from dataclasses import dataclass
from typing import Literal

from legokv.checkpoint.config_values import flag, nested_object, optional_int, positive_int
from legokv.errors import UnsupportedModel
from legokv.text.json_file import JsonObject

_EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "num_experts_per_tok")
# Those whose tensors say all: numbers, their scales, and their inputs' where these are fixed.
_PACKED = ("compressed-tensors", "pack-quantized")
_FEW_BITS = (("fp8", None), ("compressed-tensors", "float-quantized"), _PACKED)
_FEW_BITS_OTHER = ("weight_block_size", "kv_cache_scheme", "sparsity_config", "transform_config")
_LATENT_KEYS = ("kv_lora_rank", "q_lora_rank")


@dataclass(frozen=True)
class Architecture:
    """One Hugging Face model class.

    `biases` says which projections have one: none, the fused QKV only, or what config.json's
    `attention_bias` and `mlp_bias` say. The other fields are what transformers assumes where
    config.json has no such key.
    """

    name: str
    model_type: str
    biases: Literal["none", "qkv", "config"]
    qk_norm: bool = False
    default_head_size: int | None = None
    default_window: int | None = None
    kv_heads_optional: bool = False


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("LlamaForCausalLM", "llama", biases="config", kv_heads_optional=True),
        Architecture("MistralForCausalLM", "mistral", biases="none", default_window=4096),
        Architecture("Qwen2ForCausalLM", "qwen2", biases="qkv"),
        Architecture(
            "Qwen3ForCausalLM", "qwen3", biases="config", qk_norm=True, default_head_size=128
        ),
    )
}


def known_architecture(config: JsonObject) -> Architecture:
    """The architecture config.json names; UnsupportedModel for experts, MLA and unknown ones."""
    name = _architecture_name(config)
    experts = [key for key in _EXPERT_KEYS if config.get(key)]
    if experts:
        raise UnsupportedModel(
            f"{name} is a mixture of experts ({experts[0]} = {str(config[experts[0]])[:80]}): "
            "only dense feed-forward layers are supported"
        )
    latent = [key for key in _LATENT_KEYS if config.get(key)]
    if latent:
        raise UnsupportedModel(
            f"{name} uses multi-head latent attention ({latent[0]} = "
            f"{str(config[latent[0]])[:80]}): its cache has no per-head keys to link"
        )
    if name not in ARCHITECTURES:
        raise UnsupportedModel(
            f"architecture {name} is not supported: it is none of {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]


def refuse_unsupported(config: JsonObject) -> None:
    """UnsupportedModel if anything in config.json would make the compiled model wrong."""
    _refuse_quantised(config)
    _refuse_activation(config)


def refuse_uneven_heads(num_heads: int, num_kv_heads: int, head_size: int) -> None:
    if num_heads % num_kv_heads:
        raise UnsupportedModel(
            f"{num_heads} query heads do not divide into {num_kv_heads} key-value heads"
        )
    if head_size % 2:
        raise UnsupportedModel(f"head size {head_size} is odd: rotary embedding needs pairs")


def _architecture_name(config: JsonObject) -> str:
    named = config.get("architectures")
    if isinstance(named, list) and named:
        return str(named[0])[:80]
    model_type = config.get("model_type")
    for architecture in ARCHITECTURES.values():
        if architecture.model_type == model_type:
            return architecture.name
    return f"of model_type {str(model_type)[:80]!r}"


def _refuse_quantised(config: JsonObject) -> None:
    quantisation = nested_object(config, "quantization_config")
    if not quantisation:
        return
    method, form = quantisation.get("quant_method", "unnamed"), quantisation.get("format")
    named = f"{str(method)[:80]}{f', {str(form)[:80]}' if form is not None else ''}"
    if (method, form) not in _FEW_BITS:
        raise UnsupportedModel(
            f"the checkpoint is quantised ({named}): only float32, float16, bfloat16, FP8 "
            "and packed INT4 weights are supported; take the unquantised checkpoint, or a GGUF file"
        )
    if (method, form) == _PACKED:
        _refuse_other_packing(quantisation)
    says = {key: quantisation[key] for key in _FEW_BITS_OTHER if quantisation.get(key)}
    if (
        isinstance(sparsity := says.get("sparsity_config"), dict)
        and sparsity.get("format") == "dense"
    ):
        # Every number is there, in its place.
        del says["sparsity_config"]
    other = next(iter(says), None)
    if other is not None:
        raise UnsupportedModel(
            f"the checkpoint is quantised ({named}) with {other} "
            f"{str(quantisation[other])[:80]}: only FP8 weights with one scale, or one an output, "
            "and packed INT4 weights are supported, and nothing else in few bits; take the "
            "unquantised checkpoint"
        )


def _refuse_other_packing(quantisation: JsonObject) -> None:
    """UnsupportedModel for packed numbers that are not of 4 bits around 0."""
    for name in nested_object(quantisation, "config_groups"):
        group = nested_object(nested_object(quantisation, "config_groups"), name)
        weights = nested_object(group, "weights")
        kind = {key: weights.get(key) for key in ("num_bits", "type", "symmetric")}
        of_int4 = kind == {"num_bits": 4, "type": "int", "symmetric": True}
        if not of_int4 or group.get("input_activations"):
            raise UnsupportedModel(
                f"the checkpoint packs weights as {str(kind)[:80]}: only symmetric INT4 weights "
                "alone are supported; take the unquantised checkpoint, or a GGUF file"
            )


def _refuse_activation(config: JsonObject) -> None:
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedModel(
            f"activation '{str(activation)[:80]}' is not supported: only silu is"
        )


def refuse_narrow_window(config: JsonObject, architecture: Architecture, context: int) -> None:
    """UnsupportedModel if a layer sees less than the context, extended as rotary scaling has it."""
    window = _window(config, architecture)
    if window is not None and window < context:
        raise UnsupportedModel(
            f"sliding window of {window} tokens is narrower than the context of {context}: "
            "a linked chunk must see every earlier chunk"
        )


def _window(config: JsonObject, architecture: Architecture) -> int | None:
    """The narrowest window of any layer, in tokens; None where all layers see everything."""
    if architecture.model_type == "mistral":
        if "sliding_window" not in config:
            return architecture.default_window
        return optional_int(config, "sliding_window")
    return positive_int(config, "sliding_window") if _any_layer_slides(config) else None


def _any_layer_slides(config: JsonObject) -> bool:
    layer_types = config.get("layer_types")
    if not isinstance(layer_types, list):
        first = config.get("max_window_layers", 28)
        # 0 is a layer, too: the first that slides.
        if first != 0:
            first = positive_int({"max_window_layers": first}, "max_window_layers")
        return flag(config, "use_sliding_window") and first < positive_int(
            config, "num_hidden_layers"
        )
    kinds = sorted({str(kind) for kind in layer_types} - {"full_attention", "sliding_attention"})
    if kinds:
        raise UnsupportedModel(f"layers of type {kinds[0][:80]} are not supported")
    return "sliding_attention" in layer_types

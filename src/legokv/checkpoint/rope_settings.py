"""The rotary embedding of a config.json, in any of the spellings transformers has used."""

from legokv.checkpoint.config_values import (
    flag,
    nested_object,
    number,
    optional_int,
    optional_number,
)
from legokv.errors import UnsupportedModel
from legokv.model.config import RopeConfig
from legokv.text.json_file import JsonObject

_SUPPORTED = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": (),
}
_REFUSED = {
    "dynamic": "dynamic NTK changes its frequencies with the sequence length",
    "longrope": "longrope changes its frequencies past the original context",
    "su": "longrope changes its frequencies past the original context",
    "mrope": "M-RoPE has several positions per token",
    "proportional": "partial rotary embedding leaves some of a head unrotated",
}
_PROMISE = "a stored key must have one angle per position wherever its chunk is linked"


def read_rope(config: JsonObject) -> RopeConfig:
    """The rotary settings; UnsupportedModel for a variant whose frequencies are not fixed.

    Reads `rope_parameters`, or the older `rope_theta` with `rope_scaling` in which the variant
    is called `rope_type` or `type`.
    """
    settings = nested_object(config, "rope_scaling") or nested_object(config, "rope_parameters")
    _refuse_partial_rotary(config, settings)
    variant = _variant(settings)
    missing = [key for key in _SUPPORTED[variant] if settings.get(key) is None]
    if missing:
        raise UnsupportedModel(f"rotary variant '{variant}' needs {missing[0]} in config.json")
    return _rope_config(variant, config, settings)


def _variant(settings: JsonObject) -> str:
    variant = str(settings.get("rope_type") or settings.get("type") or "default")
    if "mrope_section" in settings:
        variant = "mrope"
    if variant in _SUPPORTED:
        return variant
    reason = _REFUSED.get(variant, "it is not one of default, linear, llama3, yarn")
    raise UnsupportedModel(
        f"rotary variant '{variant[:80]}' is not supported: {reason}; {_PROMISE}"
    )


def _refuse_partial_rotary(config: JsonObject, settings: JsonObject) -> None:
    per_layer = [key for key, value in settings.items() if isinstance(value, dict)]
    if per_layer:
        raise UnsupportedModel(
            f"rotary settings per layer type ({', '.join(per_layer)}) are not supported: "
            "all layers must rotate alike"
        )
    for place in (settings, config):
        share = number(place, "partial_rotary_factor", 1.0)
        if share != 1.0:
            raise UnsupportedModel(
                f"partial rotary embedding ({share} of each head) is not supported: "
                "the attention kernels rotate whole heads"
            )


def _rope_config(variant: str, config: JsonObject, settings: JsonObject) -> RopeConfig:
    theta = number(settings, "rope_theta", number(config, "rope_theta", 10000.0))
    if variant == "default":
        return RopeConfig(theta=theta)
    if variant == "linear":
        return RopeConfig(theta=theta, variant=variant, factor=optional_number(settings, "factor"))
    original = (
        optional_int(config, "original_max_position_embeddings")
        or optional_int(settings, "original_max_position_embeddings")
        or optional_int(config, "max_position_embeddings")
    )
    return RopeConfig(
        theta=theta,
        variant=variant,
        factor=optional_number(settings, "factor"),
        low_freq_factor=optional_number(settings, "low_freq_factor"),
        high_freq_factor=optional_number(settings, "high_freq_factor"),
        original_max_position_embeddings=original,
        attention_factor=optional_number(settings, "attention_factor"),
        beta_fast=optional_number(settings, "beta_fast"),
        beta_slow=optional_number(settings, "beta_slow"),
        mscale=optional_number(settings, "mscale"),
        mscale_all_dim=optional_number(settings, "mscale_all_dim"),
        truncate=flag(settings, "truncate") if "truncate" in settings else None,
    )

"""The three ops as ONNX nodes, described by the torch ops they stand for.

A node's domain and its attributes plugin_version and plugin_namespace are how TensorRT's parser
finds the plugin of that name.
"""

from collections.abc import Callable, Sequence
from typing import Any

import onnx
import torch
from onnx.defs import OpSchema
from onnxscript import values

import legokv.ops.kv_import
import legokv.ops.legolink_attention
import legokv.ops.scored_attention  # noqa: F401 - registers the op

DOMAIN = "legokv"
OPSET_VERSION = 1
PLUGIN_ATTRIBUTES = {"plugin_version": "1", "plugin_namespace": DOMAIN}

TORCH_OPS = {
    "KvImport": torch.ops.legokv.kv_import.default,
    "LegoLinkAttention": torch.ops.legokv.legolink_attention.default,
    "ScoredAttention": torch.ops.legokv.scored_attention.default,
}
OUTPUTS = {
    "KvImport": ("pool_out",),
    "LegoLinkAttention": ("out", "pool_out"),
    "ScoredAttention": ("out", "pool_out", "mass"),
}

_CACHE_TYPES = ("tensor(float)", "tensor(float16)", "tensor(bfloat16)")
_INDEX, _FLOAT = "tensor(int32)", "tensor(float)"
# What is neither an index nor of the pool's own type T.
_OTHER_TYPES = {"inv_freq": _FLOAT, "mass": _FLOAT, "block": "U"}
_CACHED = frozenset({"q", "k", "v", "pool", "out", "pool_out"})


def plugin_schemas() -> tuple[OpSchema, ...]:
    """The ops' ONNX schemas, registered so that exporter, checker and evaluator know them."""
    return tuple(_registered(name) for name in TORCH_OPS)


def translation_table() -> dict[Any, Callable[..., Any]]:
    """For torch's exporter: what each torch op becomes."""
    schemas = plugin_schemas()
    opset = values.Opset(DOMAIN, OPSET_VERSION)

    def kv_import(pool: Any, block: Any, pages: Any) -> Any:
        return opset.KvImport(pool, block, pages, **PLUGIN_ATTRIBUTES)

    def attention(node: Callable[..., Any]) -> Callable[..., Any]:
        def made_of(*inputs: Any, scale: float | None = None) -> Any:
            *tensors, last = inputs if scale is None else (*inputs, scale)
            return node(*tensors, scale=last, **PLUGIN_ATTRIBUTES)

        return made_of

    made: dict[str, Callable[..., Any]] = {
        "KvImport": kv_import,
        "LegoLinkAttention": attention(opset.LegoLinkAttention),
        "ScoredAttention": attention(opset.ScoredAttention),
    }
    return {TORCH_OPS[schema.name]: made[schema.name] for schema in schemas}


def _registered(name: str) -> OpSchema:
    if onnx.defs.has(name, OPSET_VERSION, DOMAIN):
        return onnx.defs.get_schema(name, OPSET_VERSION, DOMAIN)
    schema = _schema(name)
    onnx.defs.register_schema(schema)
    return schema


def _schema(name: str) -> OpSchema:
    arguments = TORCH_OPS[name]._schema.arguments
    tensors = [a.name for a in arguments if isinstance(a.type, torch.TensorType)]
    numbers = [a.name for a in arguments if a.name not in tensors]
    text = OpSchema.AttrType.STRING
    return OpSchema(
        name,
        DOMAIN,
        OPSET_VERSION,
        inputs=[OpSchema.FormalParameter(tensor, _type_of(tensor)) for tensor in tensors],
        outputs=[OpSchema.FormalParameter(output, _type_of(output)) for output in OUTPUTS[name]],
        type_constraints=_constraints(tensors),
        attributes=[
            *(OpSchema.Attribute(number, OpSchema.AttrType.FLOAT) for number in numbers),
            *(OpSchema.Attribute(attribute, text) for attribute in PLUGIN_ATTRIBUTES),
        ],
    )


def _type_of(tensor: str) -> str:
    return "T" if tensor in _CACHED else _OTHER_TYPES.get(tensor, _INDEX)


def _constraints(tensors: Sequence[str]) -> list[tuple[str, Sequence[str], str]]:
    constraints: list[tuple[str, Sequence[str], str]] = [("T", _CACHE_TYPES, "the pool's type")]
    if "block" in tensors:
        constraints.append(("U", _CACHE_TYPES, "the type pages were stored in"))
    return constraints

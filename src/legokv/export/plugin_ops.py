"""The ops as ONNX nodes, described by the torch ops they stand for.

A node's domain and its attributes plugin_version and plugin_namespace are how TensorRT's parser
finds the plugin of that name.
"""

from collections.abc import Callable, Sequence
from typing import Any

import onnx
import torch
from onnx.defs import OpSchema
from onnxscript import ir, values

import legokv.ops.kv_import
import legokv.ops.legolink_attention
import legokv.ops.scored_attention  # noqa: F401 - registers the ops

DOMAIN = "legokv"
OPSET_VERSION = 1
PLUGIN_ATTRIBUTES = {"plugin_version": "1", "plugin_namespace": DOMAIN}

TORCH_OPS = {
    "KvImport": torch.ops.legokv.kv_import.default,
    "LegoLinkAttention": torch.ops.legokv.legolink_attention.default,
    "PackedLegoLinkAttention": torch.ops.legokv.packed_legolink_attention.default,
    "ScoredAttention": torch.ops.legokv.scored_attention.default,
    "PackedScoredAttention": torch.ops.legokv.packed_scored_attention.default,
}
OUTPUTS = {
    "KvImport": ("pool_out",),
    "LegoLinkAttention": ("out", "pool_out"),
    "PackedLegoLinkAttention": ("out", "pool_out"),
    "ScoredAttention": ("out", "pool_out", "mass"),
    "PackedScoredAttention": ("out", "pool_out", "mass"),
}
PACKED = {
    "LegoLinkAttention": "PackedLegoLinkAttention",
    "ScoredAttention": "PackedScoredAttention",
}
"""By the name of an op that takes q, k and v the one that takes the product they are parts of."""

_CACHE_TYPES = ("tensor(float)", "tensor(float16)", "tensor(bfloat16)")
_ATTRIBUTE_TYPES = {"float": OpSchema.AttrType.FLOAT, "int": OpSchema.AttrType.INT}
_INDEX, _FLOAT = "tensor(int32)", "tensor(float)"
# What is neither an index nor of the pool's own type T.
_OTHER_TYPES = {"inv_freq": _FLOAT, "mass": _FLOAT, "block": "U"}
_CACHED = frozenset({"q", "k", "v", "qkv", "pool", "out", "pool_out"})


def plugin_schemas() -> tuple[OpSchema, ...]:
    """The ops' ONNX schemas, registered so that exporter, checker and evaluator know them."""
    return tuple(_registered(name) for name in TORCH_OPS)


def translation_table() -> dict[Any, Callable[..., Any]]:
    """For torch's exporter: what each torch op of the model becomes."""
    plugin_schemas()
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
    return {TORCH_OPS[name]: node for name, node in made.items()}


def take_whole_products(model: Any) -> None:
    """Have attention take the product whole of which its q, k and v are the parts, one behind the
    other, as strides tell the kernels: TensorRT would copy each part in front of a plugin.

    Where something stands between product and attention, as norms do, there are three inputs.
    """
    for node in model.graph:
        split = node.inputs[0].producer() if node.op_type in PACKED else None
        if split is None or split.op_type != "Split" or split.attributes["axis"].as_int() != 1:
            continue
        if tuple(node.inputs[:3]) == tuple(split.outputs):
            _take_whole(node, split)
    ir.passes.common.RemoveUnusedNodesPass()(model)


def _take_whole(node: Any, split: Any) -> None:
    inputs = (split.inputs[0], *node.inputs[3:])
    for place, value in enumerate(inputs):
        node.replace_input_with(place, value)
    node.resize_inputs(len(inputs))
    node.op_type = PACKED[node.op_type]
    node.attributes["num_heads"] = ir.AttrInt64("num_heads", split.outputs[0].shape[1])


def _registered(name: str) -> OpSchema:
    if onnx.defs.has(name, OPSET_VERSION, DOMAIN):
        return onnx.defs.get_schema(name, OPSET_VERSION, DOMAIN)
    schema = _schema(name)
    onnx.defs.register_schema(schema)
    return schema


def _schema(name: str) -> OpSchema:
    arguments = TORCH_OPS[name]._schema.arguments
    tensors = [a.name for a in arguments if isinstance(a.type, torch.TensorType)]
    numbers = [a for a in arguments if a.name not in tensors]
    text = OpSchema.AttrType.STRING
    return OpSchema(
        name,
        DOMAIN,
        OPSET_VERSION,
        inputs=[OpSchema.FormalParameter(tensor, _type_of(tensor)) for tensor in tensors],
        outputs=[OpSchema.FormalParameter(output, _type_of(output)) for output in OUTPUTS[name]],
        type_constraints=_constraints(tensors),
        attributes=[
            *(
                OpSchema.Attribute(number.name, _ATTRIBUTE_TYPES[str(number.type)])
                for number in numbers
            ),
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

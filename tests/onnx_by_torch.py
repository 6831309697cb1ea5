"""Executes an ONNX file on the CPU with torch, node after node, in the types that the file says.

Written from ONNX's definitions of the few ops a decoder becomes. As for TensorRT's strongly typed
networks, nothing is cast but by a Cast: two operands of different types are an error.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from onnx_reference import Execution
from torch import Tensor

from legokv.export.plugin_ops import DOMAIN, PLUGIN_ATTRIBUTES, TORCH_OPS

DTYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
}
Attributes = dict[str, Any]
Op = Callable[..., Any]


def torch_execution(model: Path) -> Execution:
    """Of a file in any of the three types; every node must be one of `OPS` or ours."""
    graph = onnx.load(model).graph
    constants = {tensor.name: constant(tensor) for tensor in graph.initializer}

    def execute(names: Sequence[str], inputs: Mapping[str, Tensor]) -> list[Tensor]:
        values = {**constants, **inputs}
        for node in graph.node:
            made = run_node(node, [values[name] for name in node.input])
            values.update(zip(node.output, made, strict=True))
        return [values[name] for name in names]

    return execute


def constant(tensor: TensorProto) -> Tensor:
    array = np.array(numpy_helper.to_array(tensor))
    if tensor.data_type == TensorProto.BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    if tensor.data_type == TensorProto.FLOAT8E4M3FN:
        return torch.from_numpy(array.view(np.uint8)).view(torch.float8_e4m3fn)
    if tensor.data_type == TensorProto.INT4:
        return torch.from_numpy(array.astype(np.int8))
    return torch.from_numpy(array)


def run_node(node: onnx.NodeProto, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.domain == DOMAIN:
        return run_plugin(node.op_type, attributes, inputs)
    made = OPS[node.op_type](attributes, *inputs)
    return made if isinstance(made, tuple) else (made,)


def run_plugin(name: str, attributes: Attributes, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """One of this project's ops, by its torch body."""
    for attribute, text in PLUGIN_ATTRIBUTES.items():
        assert attributes.pop(attribute) == text.encode()
    made = TORCH_OPS[name](*inputs, **attributes)
    return made if isinstance(made, tuple) else (made,)


def same_type(op: Op) -> Op:
    def checked(attributes: Attributes, a: Tensor, b: Tensor) -> Tensor:
        assert a.dtype == b.dtype, f"{a.dtype} and {b.dtype}"
        return op(a, b)

    return checked


def gather(attributes: Attributes, data: Tensor, indices: Tensor) -> Tensor:
    axis = attributes.get("axis", 0)
    shape = (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])
    return data.index_select(axis, indices.flatten()).view(shape)


def quantise(attributes: Attributes, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """To E4M3, which has no number past 448."""
    assert zero.dtype == torch.float8_e4m3fn
    assert x.dtype == scale.dtype
    return (x.float() / scale.float()).clamp(-448, 448).to(zero.dtype)


def dequantise(attributes: Attributes, numbers: Tensor, scale: Tensor) -> Tensor:
    """In the scale's type: one scale for all, one along an axis, or one for each block along it."""
    if scale.ndim:
        axis, block = attributes["axis"], attributes.get("block_size", 0)
        scale = scale.repeat_interleave(block, axis) if block else scale.unsqueeze(1 - axis)
    return (numbers.float() * scale.float()).to(scale.dtype)


def gemm(attributes: Attributes, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    assert attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0
    left, right = (x.T if attributes.get(name) else x for x, name in ((a, "transA"), (b, "transB")))
    return left @ right if c is None else torch.addmm(c, left, right)


def reduce_mean(attributes: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    return x.mean(axes.tolist(), keepdim=bool(attributes.get("keepdims", 1)))


def reshape(attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    """A 0 keeps the size that was there, a -1 takes what is left."""
    assert not attributes.get("allowzero") or 0 not in shape.tolist()
    return x.reshape([size or x.shape[at] for at, size in enumerate(shape.tolist())])


def split(attributes: Attributes, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = attributes.get("axis", 0)
    if sizes is not None:
        return x.split(sizes.tolist(), axis)
    return x.chunk(attributes["num_outputs"], axis)


OPS: dict[str, Op] = {
    "Add": same_type(torch.add),
    "DequantizeLinear": dequantise,
    "QuantizeLinear": quantise,
    "Cast": lambda attributes, x: x.to(DTYPES[attributes["to"]]),
    "Gather": gather,
    "Gemm": gemm,
    "MatMul": same_type(torch.matmul),
    "Mul": same_type(torch.mul),
    "Pow": lambda _, x, exponent: x.pow(exponent),
    "ReduceMean": reduce_mean,
    "Reciprocal": lambda _, x: x.reciprocal(),
    "Reshape": reshape,
    "Sigmoid": lambda _, x: x.sigmoid(),
    "Split": split,
    "Sqrt": lambda _, x: x.sqrt(),
    "Transpose": lambda attributes, x: x.permute(attributes["perm"]),
}

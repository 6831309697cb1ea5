"""What TensorRT-RTX makes, without a GPU, of products with FP8 and INT4 weights as Q/DQ nodes."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from legokv.plan.builders import strongly_typed_builder

trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
NUM_IN, NUM_OUT = 256, 128
FP8 = ml_dtypes.float8_e4m3fn
Arrays = dict[str, np.ndarray]


def model_of(nodes: list[onnx.NodeProto], arrays: Arrays) -> bytes:
    shapes = (("x", NUM_IN), ("y", NUM_OUT))
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.BFLOAT16, ["T", size])
        for name, size in shapes
    )
    constants = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "product", [x], [y], constants)
    opset = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


def fp8_product(scale_shape: tuple[int, ...]) -> bytes:
    """x and the weight in FP8: one scale for x, one for the weight or one an output."""
    arrays = {
        "x_scale": np.array(0.02, ml_dtypes.bfloat16),
        "x_zero": np.array(0, FP8),
        "weight": np.random.default_rng(0).normal(size=(NUM_IN, NUM_OUT)).astype(FP8),
        "scale": np.full(scale_shape, 0.01, ml_dtypes.bfloat16),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x8"]),
        helper.make_node("DequantizeLinear", ["x8", "x_scale"], ["x_near"]),
        helper.make_node("DequantizeLinear", ["weight", "scale"], ["w"], axis=1),
        helper.make_node("MatMul", ["x_near", "w"], ["y"]),
    ]
    return model_of(nodes, arrays)


def int4_product(block: int, axis: int) -> bytes:
    """The weight alone in INT4, with a scale for each block along `axis`: 0 inputs, 1 outputs."""
    weight = np.random.default_rng(0).integers(-7, 8, size=(NUM_IN, NUM_OUT))
    scales = [NUM_IN, NUM_OUT]
    scales[axis] //= block
    arrays = {
        "weight": weight.astype(ml_dtypes.int4),
        "scale": np.full(scales, 0.01, ml_dtypes.bfloat16),
    }
    blocks = {"axis": axis, "block_size": block}
    nodes = [
        helper.make_node("DequantizeLinear", ["weight", "scale"], ["w"], **blocks),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    return model_of(nodes, arrays)


def layers_built(model: bytes) -> list[str]:
    """The builder's own lines, one a layer of the plan that it made of the model."""
    objects = strongly_typed_builder(trt)
    parser = trt.OnnxParser(objects.network, objects.logger)
    assert parser.parse(model), parser.get_error(0).desc()
    objects.config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = objects.builder.create_optimization_profile()
    profile.set_shape("x", *((tokens, NUM_IN) for tokens in (1, 64, 256)))
    objects.config.add_optimization_profile(profile)
    assert objects.serialize() is not None
    assert objects.lists is not None
    return [line for said in objects.lists for line in said.splitlines()]


@pytest.mark.parametrize("scale_shape", [(), (NUM_OUT,)], ids=["one scale", "one an output"])
def test_an_fp8_product_is_computed_in_fp8(scale_shape: tuple[int, ...]) -> None:
    products = [line for line in layers_built(fp8_product(scale_shape)) if "gemm" in line]
    assert products
    assert all(line.count("Datatype: FP8") == 2 for line in products)


@pytest.mark.parametrize("block", [128, 64, 32, 16])
def test_int4_blocks_along_the_inputs_are_expanded_in_the_products_own_kernel(block: int) -> None:
    lines = [line for line in layers_built(int4_product(block, axis=0)) if "Int4" in line]
    assert [line.count("runtime_fusion") for line in lines] == [1]


def test_int4_blocks_along_the_outputs_are_expanded_to_bfloat16_before_the_product() -> None:
    lines = layers_built(int4_product(128, axis=1))
    assert [line for line in lines if "gemm" in line and "Int4" not in line]
    assert not [line for line in lines if "runtime_fusion" in line]

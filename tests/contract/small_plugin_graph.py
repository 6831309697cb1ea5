"""A graph of one node of each plugin, as ONNX; and, run as a script, its TensorRT-RTX plan.

    python small_plugin_graph.py LIBRARY DTYPE PLAN    prints what the parser made of it, as JSON

The plan is built in a process of its own: the parser needs LD_LIBRARY_PATH at its start.
"""

import json
import sys
from pathlib import Path

import onnx
from onnx import TensorProto, helper

DTYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}
HEADS, KV_HEADS, HEAD_SIZE, PAGE_SIZE = 4, 2, 64, 16
PLUGIN = {"domain": "legokv", "plugin_version": "1", "plugin_namespace": "legokv"}
POOL = ["N", 2, PAGE_SIZE, KV_HEADS, HEAD_SIZE]
# Sizes of the symbols: smallest, usual, largest.
SIZES = {
    "T": (1, 64, 512),
    "B": (1, 2, 8),
    "B1": (2, 3, 9),
    "P": (1, 8, 64),
    "N": (16, 64, 256),
    "M": (0, 1, 32),
}


def input_shapes(dtype: int) -> dict[str, tuple[int, list[str | int]]]:
    """Type and shape of every input by name."""
    number, index = dtype, TensorProto.INT32
    return {
        "q": (number, ["T", HEADS, HEAD_SIZE]),
        "k": (number, ["T", KV_HEADS, HEAD_SIZE]),
        "v": (number, ["T", KV_HEADS, HEAD_SIZE]),
        "positions": (index, ["T"]),
        "key_positions": (index, ["T"]),
        "slots": (index, ["T"]),
        "query_start": (index, ["B1"]),
        "pages": (index, ["B", "P", 4]),
        "inv_freq": (TensorProto.FLOAT, [HEAD_SIZE // 2]),
        "qkv": (number, ["T", HEADS + 2 * KV_HEADS, HEAD_SIZE]),
        "pool": (number, POOL),
        "scoring": (index, ["B"]),
        "block": (TensorProto.FLOAT, ["M", *POOL[1:]]),
        "import_pages": (index, ["M"]),
    }


def small_graph(dtype: int) -> onnx.ModelProto:
    """import → attention → attention that scores, then both packed, all writing the one pool."""
    imported = helper.make_node(
        "KvImport", ["pool", "block", "import_pages"], ["imported"], **PLUGIN
    )
    tables = ["positions", "key_positions", "slots", "query_start", "pages", "inv_freq"]
    attention = helper.make_node(
        "LegoLinkAttention",
        ["q", "k", "v", "imported", *tables],
        ["attended", "attended_pool"],
        scale=0.125,
        **PLUGIN,
    )
    scored = helper.make_node(
        "ScoredAttention",
        ["attended", "k", "v", "attended_pool", *tables, "scoring"],
        ["out", "scored_pool", "mass"],
        scale=0.125,
        **PLUGIN,
    )
    packed = helper.make_node(
        "PackedLegoLinkAttention",
        ["qkv", "scored_pool", *tables],
        ["packed_attended", "packed_pool"],
        scale=0.125,
        num_heads=HEADS,
        **PLUGIN,
    )
    packed_scored = helper.make_node(
        "PackedScoredAttention",
        ["qkv", "packed_pool", *tables, "scoring"],
        ["packed_out", "pool_out", "packed_mass"],
        num_heads=HEADS,
        scale=0.125,
        **PLUGIN,
    )
    inputs = [helper.make_tensor_value_info(name, *of) for name, of in input_shapes(dtype).items()]
    outputs = [
        *(
            helper.make_tensor_value_info(name, dtype, ["T", HEADS, HEAD_SIZE])
            for name in ("out", "packed_attended", "packed_out")
        ),
        helper.make_tensor_value_info("pool_out", dtype, POOL),
        *(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", "P", PAGE_SIZE])
            for name in ("mass", "packed_mass")
        ),
    ]
    nodes = [imported, attention, scored, packed, packed_scored]
    graph = helper.make_graph(nodes, "small", inputs, outputs)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("legokv", 1)]
    return helper.make_model(graph, opset_imports=opsets)


def build(library: Path, dtype: int, plan: Path) -> dict[str, object]:
    """Build the plan; what the network looks like."""
    import tensorrt_rtx_bindings as trt

    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    registry = builder.get_plugin_registry()
    assert registry.load_library(str(library)) is not None
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(small_graph(dtype).SerializeToString()):
        raise SystemExit("\n".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    config = builder.create_builder_config()
    config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
    config.add_optimization_profile(profile(builder, dtype))
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise SystemExit("no plan was built")
    plan.write_bytes(bytes(serialized))
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    return {
        "creators": creators(registry),
        "layers": {layer.name: str(layer.type) for layer in layers},
        "outputs": {output.name: [str(output.dtype), list(output.shape)] for output in outputs},
        "plan_bytes": plan.stat().st_size,
    }


def profile(builder, dtype: int):  # type: ignore[no-untyped-def]
    made = builder.create_optimization_profile()
    for name, (_, shape) in input_shapes(dtype).items():
        sizes = [[SIZES[d][i] if isinstance(d, str) else d for d in shape] for i in range(3)]
        made.set_shape(name, *sizes)
    return made


def creators(registry) -> dict[str, object]:  # type: ignore[no-untyped-def]
    """Version and attribute names of our creators, as the registry has them."""
    return {
        creator.name: [creator.plugin_version, [field.name for field in creator.field_names]]
        for creator in registry.all_creators
        if creator.plugin_namespace == PLUGIN["domain"]
    }


if __name__ == "__main__":
    print(json.dumps(build(Path(sys.argv[1]), DTYPES[sys.argv[2]], Path(sys.argv[3]))))

"""What is read of a plan's list of layers, on one as TensorRT-RTX 1.7 logs it."""

from legokv.plan.layers import layers_from_log, short_words

TENSOR = "{{ Name: {}, Location: Device, Dimensions: [-1,64], Datatype: BFloat16, Format: Linear }}"


def layer(name: str, kind: str, reads: str, gives: str, more: str = "TacticName: , ") -> str:
    inputs, outputs = (f"[ {TENSOR.format(tensor)}]" for tensor in (reads, gives))
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: {inputs}, Constants: [], Outputs: {outputs}, "
        f"{more}StreamId: 0, Metadata: [ONNX Layer: some_node]"
    )


def attention(number: int, profile: str = "") -> str:
    plugin = "PluginType: LegoLinkAttention, TacticValue: 0x1, "
    pools = f"pool_{number}{profile}", f"pool_out_{number}{profile}"
    return layer(f"node_attention_{number}{profile}", "PluginV3", *pools, plugin)


def log_of(*lines: str) -> list[str]:
    return ["a detail", "Layers:\n" + "\n".join(lines) + "\n\nI/O Tensors:\n Name: input_ids, ..."]


MIDDLE = (
    layer("__mye1_0_myl10_0", "shape_call", "x", "x"),
    layer("__myl_FcAdd_myl10_1", "runtime_fusion", "out", "a"),
    layer("node_gemm_myl10_2", "gemm", "a", "b", "TacticName: a_tactic, "),
    layer("__myl_SiluMul_myl11_0", "kgen", "b", "q"),
)


def test_each_layer_has_its_kind_its_tactic_and_the_formats_of_what_it_reads_and_gives() -> None:
    gemm = layers_from_log(log_of(*MIDDLE))[2]
    assert (gemm.name, gemm.kind, gemm.tactic) == ("node_gemm_myl10_2", "gemm", "a_tactic")
    (read,), (given,) = gemm.inputs, gemm.outputs
    assert (read.name, read.shape, read.dtype, read.format) == ("a", "-1,64", "BFloat16", "Linear")
    assert given.name == "b"


def test_the_short_words_count_the_kernels_and_regions_between_two_attentions() -> None:
    ends = layer("__myl_Norm_myl9_0", "kgen", "ids", "q")
    late = [attention(n, " [profile 1]") for n in range(2)]
    listed = log_of(ends, attention(0), *MIDDLE, attention(1), *MIDDLE, attention(2), ends, *late)
    layers = layers_from_log(listed)
    assert short_words(layers, ("prefill", "decode")) == [
        "profile prefill: 3 LegoLinkAttention; between two attentions 2 times 3 kernels of 2 fused "
        "regions (FcAdd gemm SiluMul); no copy of a pool",
        "profile decode: 2 LegoLinkAttention; between two attentions nothing; no copy of a pool",
    ]


def test_a_layer_that_copies_a_pool_is_named() -> None:
    copy = layer("Reformatting CopyNode for pool_1", "Reformat", "pool_1", "Reformatted pool_1")
    (line,) = short_words(layers_from_log(log_of(attention(0), copy, attention(1))), ("prefill",))
    assert line.endswith("copies of pools: Reformatting CopyNode for pool_1")


def test_the_one_profile_of_a_scoring_plan_counts_the_products_before_its_attention_too() -> None:
    weight = "{ Name: w, Location: Device, Dimensions: [64,64], Datatype: FP8, Format: Row major }"
    product = layer("node_linear_myl5_2", "gemm", "a", "qkv")
    product = product.replace("Constants: []", f"Constants: [ {weight}]")
    listed = layers_from_log(log_of(product, attention(0)))
    (alone,) = short_words(listed, ("scoring",))
    assert "1 LegoLinkAttention, 1 kernels read FP8 weights; between two" in alone
    # Of two profiles nothing tells whose it is.
    assert "FP8" not in short_words(listed, ("prefill", "decode"))[0]


def test_a_log_without_a_list_has_no_layers() -> None:
    assert layers_from_log(["a detail"]) == ()
    assert short_words((), ("prefill",)) == []

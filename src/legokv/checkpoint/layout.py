"""Which stored tensors make up each of the decoder's: the one table of names and shapes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

from legokv.checkpoint.tensor_table import StoredTensor
from legokv.errors import UnsupportedModel
from legokv.model.config import ModelConfig
from legokv.model.dtypes import FLOAT_DTYPES, STORED_DTYPES

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Source:
    """A tensor as a checkpoint names it, with the shape the model needs."""

    name: str
    shape: tuple[int, ...]


def weight_scale(name: str) -> str:
    """The tensor that numbers in few bits of a weight of that `name` are multiplied by."""
    return f"{name}_scale"


def packed_weight(name: str) -> str:
    """What has a weight of that `name` as INT4, eight numbers in an int32."""
    return f"{name}_packed"


def packed_shape(name: str) -> str:
    """The weight's shape before it was packed, which the model says, too."""
    return f"{name}_shape"


def input_scale(name: str) -> str:
    """The number that the inputs of a product by FP8 weights of that `name` are divided by."""
    return f"{name.removesuffix('weight')}input_scale"


@dataclass(frozen=True)
class DecoderTensor:
    """A tensor of the decoder's state dict: its sources stacked along the first axis."""

    name: str
    sources: tuple[Source, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(source.shape[0] for source in self.sources), *self.sources[0].shape[1:])

    @property
    def is_product(self) -> bool:
        """Whether it is a layer's matrix, as a plan may have in few bits; a head is none."""
        return self.name.startswith("layers.") and len(self.shape) == 2


def decoder_tensors(config: ModelConfig) -> tuple[DecoderTensor, ...]:
    """All tensors of the decoder; `head.weight` is absent where the embedding is tied."""
    table = (config.vocab_size, config.hidden_size)
    tensors = [_single("embed.weight", EMBEDDING, table)]
    for layer in range(config.num_layers):
        tensors.extend(_layer_tensors(config, layer))
    tensors.append(_single("norm.weight", "model.norm.weight", (config.hidden_size,)))
    if not config.tied_embeddings:
        tensors.append(_single("head.weight", HEAD, table))
    return tuple(tensors)


def check_tensors(stored: Mapping[str, StoredTensor], config: ModelConfig) -> None:
    """UnsupportedModel for the first tensor that is missing, misshapen, quantised or left over."""
    if config.num_layers > len(stored):
        # Said before so many layers are listed.
        raise UnsupportedModel(
            f"config.json asks for {config.num_layers} layers, the checkpoint has {len(stored)} "
            "tensors: it is incomplete"
        )
    needed = [source for tensor in decoder_tensors(config) for source in tensor.sources]
    for source in needed:
        _check_source(stored, source, config)
    spare = sorted(set(stored) - used_names(stored, config))
    if config.tied_embeddings and HEAD in spare and not heads_are_one(stored):
        raise UnsupportedModel(
            f"{HEAD} is not the embedding, to which the engine ties it: build the engine again"
        )
    unused = [name for name in spare if not _may_be_ignored(name, config)]
    if unused:
        raise UnsupportedModel(
            f"the checkpoint has {len(unused)} tensors {config.architecture} does not use, "
            f"the first is {unused[0]}: leaving them out would change the model"
            f"{_other_packing(unused[0])}"
        )


def _other_packing(name: str) -> str:
    """To end a refusal of a tensor: what packed weights it is of, and the next step."""
    if not name.endswith((".weight_g_idx", ".weight_zero_point")):
        return ""
    return (
        "; INT4 is read around 0 and in a row's own order: take the unquantised checkpoint, or a "
        "GGUF file"
    )


def used_names(stored: Mapping[str, StoredTensor], config: ModelConfig) -> set[str]:
    """The tensors that make up the model: the decoder's sources, and what few bits want."""
    names = {source.name for tensor in decoder_tensors(config) for source in tensor.sources}
    of_few_bits: set[str] = set()
    for name in names:
        if name in stored and stored[name].is_fp8:
            of_few_bits |= {weight_scale(name), input_scale(name)}
        elif name not in stored:
            of_few_bits |= {packed_weight(name), packed_shape(name), weight_scale(name)}
    return (names | of_few_bits).intersection(stored)


def with_its_head(config: ModelConfig, stored: Mapping[str, StoredTensor]) -> ModelConfig:
    """The config, untied where a head of its own is stored, as transformers does.

    A second copy of the embedding is no head of its own; that it is one is looked up byte by byte.
    """
    if not config.tied_embeddings or HEAD not in stored or heads_are_one(stored):
        return config
    return replace(config, tied_embeddings=False)


def heads_are_one(stored: Mapping[str, StoredTensor]) -> bool:
    """Whether the stored head is the embedding, byte by byte; also if there is no embedding."""
    embedding = stored.get(EMBEDDING)
    return embedding is None or embedding.equals(stored[HEAD])


def _layer_tensors(config: ModelConfig, layer: int) -> Iterator[DecoderTensor]:
    ours, theirs = f"layers.{layer}", f"model.layers.{layer}"
    attention = f"{theirs}.self_attn"
    hidden, head, mlp = config.hidden_size, config.head_size, config.intermediate_size
    query, key = config.num_heads * head, config.num_kv_heads * head
    qkv = {"q_proj": query, "k_proj": key, "v_proj": key}
    gate_up = {"gate_proj": mlp, "up_proj": mlp}

    yield _single(f"{ours}.attention_norm.weight", f"{theirs}.input_layernorm.weight", (hidden,))
    yield from _linear(f"{ours}.qkv", attention, qkv, hidden, config.qkv_bias)
    if config.qk_norm:
        yield _single(f"{ours}.q_norm.weight", f"{attention}.q_norm.weight", (head,))
        yield _single(f"{ours}.k_norm.weight", f"{attention}.k_norm.weight", (head,))
    yield from _linear(f"{ours}.out", attention, {"o_proj": hidden}, query, config.out_bias)
    yield _single(f"{ours}.mlp_norm.weight", f"{theirs}.post_attention_layernorm.weight", (hidden,))
    yield from _linear(f"{ours}.gate_up", f"{theirs}.mlp", gate_up, hidden, config.mlp_bias)
    yield from _linear(f"{ours}.down", f"{theirs}.mlp", {"down_proj": hidden}, mlp, config.mlp_bias)


def _single(name: str, source: str, shape: tuple[int, ...]) -> DecoderTensor:
    return DecoderTensor(name, (Source(source, shape),))


def _linear(
    name: str, prefix: str, rows: Mapping[str, int], columns: int, bias: bool
) -> Iterator[DecoderTensor]:
    """The projections of `rows` (output sizes by their own name) stacked into one."""
    weights = (Source(f"{prefix}.{own}.weight", (size, columns)) for own, size in rows.items())
    yield DecoderTensor(f"{name}.weight", tuple(weights))
    if bias:
        biases = (Source(f"{prefix}.{own}.bias", (size,)) for own, size in rows.items())
        yield DecoderTensor(f"{name}.bias", tuple(biases))


def _check_source(table: Mapping[str, StoredTensor], source: Source, config: ModelConfig) -> None:
    stored = table.get(source.name)
    if stored is None and packed_weight(source.name) in table:
        _check_packed(source, table)
        return
    if stored is None:
        raise UnsupportedModel(
            f"{source.name} is missing: the checkpoint is incomplete or not {config.architecture}"
        )
    if stored.shape != source.shape:
        raise UnsupportedModel(
            f"{source.name} has shape {list(stored.shape)}, config.json asks for "
            f"{list(source.shape)}"
        )
    if stored.is_fp8:
        _check_scales(source, table)
        return
    if stored.dtype not in FLOAT_DTYPES:
        raise UnsupportedModel(
            f"{source.name} is stored as {stored.dtype}: only {', '.join(STORED_DTYPES)} weights "
            "are supported, not otherwise quantised ones"
        )


def _check_scales(source: Source, table: Mapping[str, StoredTensor]) -> None:
    """UnsupportedModel unless FP8 numbers have one scale, or one an output; their inputs one."""
    _refuse_vector(source, "F8_E4M3")
    scales, inputs = table.get(weight_scale(source.name)), table.get(input_scale(source.name))
    if scales is None:
        raise UnsupportedModel(
            f"{source.name} is stored as F8_E4M3, and there is no {weight_scale(source.name)}: "
            "only FP8 weights with one scale, or one an output, are read; take another checkpoint"
        )
    one = ((), (1,), (1, 1))
    an_output = ((source.shape[0],), (source.shape[0], 1))
    # Not by how many they are: blocks of a matrix may be as many as its rows.
    for each, shapes in ((scales, (*one, *an_output)), (inputs, one)):
        if each is not None and (each.shape not in shapes or each.dtype not in FLOAT_DTYPES):
            counts = dict.fromkeys(prod(shape) for shape in shapes)
            raise UnsupportedModel(
                f"{each.name} is {each.dtype} {list(each.shape)}: FP8 weights "
                f"{list(source.shape)} have {' or '.join(map(str, counts))} floats there; take "
                "another checkpoint"
            )


def _check_packed(source: Source, table: Mapping[str, StoredTensor]) -> None:
    """UnsupportedModel unless INT4 numbers are as many as the model's, in blocks of a row."""
    _refuse_vector(source, "packed INT4")
    packed, scales = table[packed_weight(source.name)], table.get(weight_scale(source.name))
    rows, columns = source.shape
    if packed.dtype != "I32" or packed.shape != (rows, columns // 8) or columns % 8:
        raise UnsupportedModel(
            f"{packed.name} is {packed.dtype} {list(packed.shape)}: {list(source.shape)} numbers "
            f"of 4 bits are I32 {[rows, columns // 8]}; take another checkpoint"
        )
    blocks = scales.shape[1] if scales is not None and len(scales.shape) == 2 else 0
    odd = scales is None or scales.shape[0] != rows or scales.dtype not in FLOAT_DTYPES
    if odd or not blocks or columns % blocks:
        what = "missing" if scales is None else f"{scales.dtype} {list(scales.shape)}"
        raise UnsupportedModel(
            f"{weight_scale(source.name)} is {what}: {list(source.shape)} numbers of 4 bits have "
            "floats for the blocks of each row there; take another checkpoint"
        )


def _refuse_vector(source: Source, stored_as: str) -> None:
    if len(source.shape) != 2:
        raise UnsupportedModel(
            f"{source.name} is stored as {stored_as}: only matrices are read in few bits; take "
            "another checkpoint"
        )


def _may_be_ignored(name: str, config: ModelConfig) -> bool:
    # Old checkpoints store the rotary table; tied ones may store the head a second time.
    tied_head = config.tied_embeddings and name == HEAD
    return tied_head or name.endswith("rotary_emb.inv_freq")

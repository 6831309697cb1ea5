"""From a checkpoint folder to an engine folder."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import legokv
from legokv.bindings import graph_shape
from legokv.checkpoint.fingerprint import model_fingerprint
from legokv.checkpoint.hf_config import read_model_config
from legokv.checkpoint.layout import check_tensors
from legokv.checkpoint.tensor_table import index_file, read_tensor_table, weight_files
from legokv.compile.backends import PLAN_BACKENDS
from legokv.compile.engine_plan import engine_plan
from legokv.config import ModelConfig
from legokv.engine_folder import (
    FORMAT_VERSION,
    EngineFacts,
    StoredFile,
    read_engine_folder,
    refuse_foreign_folder,
    stored_files,
    write_engine_folder,
)
from legokv.engine_products import Inputs, make_products, product_names
from legokv.errors import EngineMismatch, InvalidRequest, UnsupportedModel
from legokv.gate import check_linking
from legokv.gate_facts import GateFacts
from legokv.plan_facts import PlanFacts
from legokv.profiles import PlanLimits
from legokv.tokenizer import TOKENIZER_FILES, Tokenizer

DTYPES = ("bfloat16", "float16", "float32")
_CONFIG_FILES = ("config.json", "generation_config.json")


@dataclass(frozen=True)
class EngineSettings:
    """What a builder chooses about an engine; `page_size` in tokens.

    exports_onnx: write model.onnx too, which a plan needs. plugin_library, limits: of a plan.
    """

    name: str
    dtype: str = "bfloat16"
    page_size: int = 16
    backend: str = "torch"
    exports_onnx: bool = False
    plugin_library: Path | None = None
    limits: PlanLimits = field(default_factory=PlanLimits)


def build_engine_folder(
    checkpoint: Path,
    output: Path,
    settings: EngineSettings,
    *,
    force: bool = False,
    keep_failed: bool = False,
    say: Callable[[str], None] = print,
) -> bool:
    """Make `output` the engine of `checkpoint`; False if it already was and is kept.

    `say` is told how far a long build is. UnsupportedModel, and `output` is as it was, for a
    checkpoint that cannot be compiled, or whose linked logits are not what they must be; that
    engine is made all the same with `keep_failed`.
    """
    refuse_foreign_folder(output)
    facts = facts_from_checkpoint(checkpoint, settings)
    names = product_names(facts, with_onnx=settings.exports_onnx)
    if not force and _is_up_to_date(output, facts, names, keep_failed=keep_failed):
        return False

    def produce(folder: Path) -> Collection[str]:
        make_products(facts, names, Inputs(checkpoint, settings.plugin_library, say), folder)
        return names

    def judge(folder: Path) -> GateFacts:
        return _judged(check_linking(folder, facts.page_size), say, keep_failed=keep_failed)

    write_engine_folder(output, facts, checkpoint, produce, judge)
    return True


def _judged(gate: GateFacts, say: Callable[[str], None], *, keep_failed: bool) -> GateFacts:
    say(f"Linked against full logits: {gate}")
    if not gate.passed and not keep_failed:
        raise UnsupportedModel(
            f"this model is not linked correctly: {gate}. --keep-failed writes the engine all the "
            "same, to be looked into; no server takes it"
        )
    return gate


def facts_from_checkpoint(checkpoint: Path, settings: EngineSettings) -> EngineFacts:
    """All facts of the engine `checkpoint` makes, after checking config, tensors and tokenizer."""
    _check_settings(settings)
    tokenizer = Tokenizer.open(checkpoint)
    model = _with_tokenizer_end(read_model_config(checkpoint), tokenizer)
    stored = read_tensor_table(checkpoint)
    check_tensors(stored, model)
    return EngineFacts(
        format_version=FORMAT_VERSION,
        legokv_version=legokv.__version__,
        name=settings.name,
        model=model,
        dtype=settings.dtype,
        page_size=settings.page_size,
        fingerprint=model_fingerprint(model, stored, tokenizer.fingerprint),
        backend=settings.backend,
        files=_files(checkpoint),
        plan=_plan(model, settings),
    )


def _plan(model: ModelConfig, settings: EngineSettings) -> PlanFacts | None:
    if settings.backend not in PLAN_BACKENDS:
        return None
    assert settings.plugin_library is not None, "a plan is built with the plugin library"
    return engine_plan(
        settings.backend,
        model,
        graph_shape(model, settings.dtype, settings.page_size),
        settings.plugin_library,
        settings.limits,
    )


def _files(checkpoint: Path) -> tuple[StoredFile, ...]:
    weights = (file.name for file in weight_files(checkpoint))
    index = index_file(checkpoint)
    names = chain(weights, TOKENIZER_FILES, _CONFIG_FILES, (index.name,) if index else ())
    return stored_files(checkpoint, names)


def _check_settings(settings: EngineSettings) -> None:
    if settings.dtype not in DTYPES:
        raise InvalidRequest(f"dtype '{settings.dtype}' is none of {', '.join(DTYPES)}")
    if settings.page_size < 1:
        raise InvalidRequest(f"a page must hold at least 1 token, not {settings.page_size}")


def _with_tokenizer_end(model: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The model, which also ends at the tokenizer's end token; all ids must have a row."""
    if tokenizer.vocab_size > model.vocab_size:
        raise UnsupportedModel(
            f"the tokenizer has ids up to {tokenizer.vocab_size - 1}, the model has "
            f"{model.vocab_size} embedding rows: they do not belong together"
        )
    ends = {*model.eos_token_ids, *tokenizer.eos_token_ids}
    return replace(model, eos_token_ids=tuple(sorted(ends)))


def _is_up_to_date(
    output: Path, facts: EngineFacts, names: Collection[str], *, keep_failed: bool
) -> bool:
    try:
        found = read_engine_folder(output)
    except EngineMismatch:
        return False
    has_all = {file.name for file in found.produced}.issuperset(names)
    is_judged = found.gate is not None and (found.gate.passed or keep_failed)
    return has_all and is_judged and replace(found, produced=(), gate=None) == facts

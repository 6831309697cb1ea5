"""From a checkpoint folder to an engine folder."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from legokv.build.calibration import Calibration, calibrate, kept_calibration
from legokv.build.gate import check_linking
from legokv.build.kept import AskedPlan, has_plan_of, is_up_to_date, kept_plan, replacement
from legokv.build.products import Inputs, make_products, product_names
from legokv.built.folder import (
    FORMAT_VERSION,
    EngineFacts,
    StoredFile,
    refuse_foreign_folder,
    stored_files,
    write_engine_folder,
)
from legokv.built.gate_facts import GateFacts
from legokv.built.plan_facts import NO_STREAMING, WEIGHT_STREAMING
from legokv.built.plan_limits import PlanLimits
from legokv.built.seal import is_calibrated
from legokv.checkpoint.fingerprint import calibrated_fingerprint, model_fingerprint
from legokv.checkpoint.hf_config import read_model_config
from legokv.checkpoint.layout import check_tensors, decoder_tensors, with_its_head
from legokv.checkpoint.tensor_table import index_file, read_tensor_table, weight_files
from legokv.checkpoint.weights import form_of_few_bits, stored_input_scales
from legokv.errors import InvalidRequest, UnsupportedModel
from legokv.model.config import ModelConfig
from legokv.model.dtypes import DTYPES, PLAN_FORMS, QUANTIZE_WORDS, WEIGHT_FORMS, Dtypes
from legokv.ops.quantised_weight import int4_block
from legokv.plan.backends import PLAN_BACKENDS
from legokv.plan.write import check_sizes, engine_plan
from legokv.step.graph import ImportBy, graph_shape
from legokv.text.formats import PromptFormats
from legokv.text.tokenizer import TOKENIZER_FILES, Tokenizer
from legokv.version import VERSION

_CONFIG_FILES = ("config.json", "generation_config.json")


@dataclass(frozen=True)
class BuildSettings:
    """What a builder chooses about an engine; InvalidRequest for a name, type or page that is none.

    name: the engine's, without a path.
    dtype: of weights and KV, "bfloat16", "float16" or "float32".
    page_size: tokens whose KV one page of the pool holds.
    backend: "torch", or a TensorRT flavour that builds a plan; "auto" while none is chosen, which
        no build takes.
    exports_onnx: write model.onnx too, which a plan needs.
    plugin_library: makes a plan's plugins; called when all else is checked, as it may take minutes.
    limits: the most that one step of a plan holds.
    any_plan: a plan that is there already will do, whichever backend built it.
    as_stored: so will one whose weights are in the few bits that the checkpoint has.
    imports: what puts arriving pages into a plan's pools: "stream", or "plugin" as a graph's node.
    flags: of `PLAN_FLAGS`, what a plan's builder is asked to do besides, in that order.
    weights: how matrices are kept, "model" in the type, or "int8", "int4": bfloat16, no plan.
        "qdq-fp8" or "qdq-int4": bfloat16, and the plan has them so.
    samples: texts to calibrate "qdq-fp8" with, where no calibration of the model is kept.

    >>> from legokv.build.engine import BuildSettings
    >>> BuildSettings("llama", dtype="float32").page_size
    16
    >>> BuildSettings("llama", dtype="int4")
    Traceback (most recent call last):
        ...
    legokv.errors.InvalidRequest: dtype 'int4' is none of bfloat16, float16, float32
    """

    name: str
    dtype: str = "bfloat16"
    page_size: int = 16
    backend: str = "torch"
    exports_onnx: bool = False
    plugin_library: Callable[[], Path] | None = None
    limits: PlanLimits = field(default_factory=PlanLimits)
    any_plan: bool = False
    as_stored: bool = False
    imports: ImportBy = "stream"
    weights: str = "model"
    flags: tuple[str, ...] = ()
    samples: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.name in ("", ".", "..") or Path(self.name).name != self.name:
            raise InvalidRequest(
                f"an engine's name is one folder's, without a path: '{self.name}' is none; choose "
                "another --name, and --output for another place"
            )
        if self.dtype not in DTYPES:
            raise InvalidRequest(f"dtype '{self.dtype}' is none of {', '.join(DTYPES)}")
        self._check_weights()
        if self.backend == "tensorrt-llm" and WEIGHT_STREAMING in self.flags:
            raise InvalidRequest(f"weights can't be streamed there: {NO_STREAMING}")
        if self.page_size < 1:
            raise InvalidRequest(f"a page must hold at least 1 token, not {self.page_size}")

    def _check_weights(self) -> None:
        if self.weights in QUANTIZE_WORDS:
            self._check_quantised()
            return
        if self.weights not in WEIGHT_FORMS:
            raise InvalidRequest(f"weights '{self.weights}' are none of {', '.join(WEIGHT_FORMS)}")
        if self.weights != "model" and self.backend in PLAN_BACKENDS:
            raise InvalidRequest(
                f"weights '{self.weights}' are for CPUs, and backend {self.backend} builds a plan: "
                f"choose --backend torch, or --quantize {', '.join(PLAN_FORMS)} for a plan of few "
                "bits"
            )
        if self.weights != "model" and self.dtype != "bfloat16":
            raise InvalidRequest(
                f"weights '{self.weights}' are multiplied in bfloat16, the engine's dtype is "
                f"{self.dtype}: choose --dtype bfloat16, or --weights model"
            )

    def _check_quantised(self) -> None:
        quantized = QUANTIZE_WORDS[self.weights]
        if self.backend not in (*PLAN_BACKENDS, "auto"):
            raise InvalidRequest(
                f"--quantize {quantized} is of a plan, and backend {self.backend} builds none: "
                "choose --backend tensorrt-rtx or tensorrt, or --weights int8 or int4, which CPUs "
                "compute with"
            )
        if self.backend in PLAN_BACKENDS and not PLAN_BACKENDS[self.backend].takes_qdq:
            raise InvalidRequest(
                f"--quantize {quantized} is not for backend {self.backend}, whose builder nobody "
                "has shown to take Q/DQ nodes: choose --backend tensorrt or tensorrt-rtx"
            )
        if self.dtype != "bfloat16":
            raise InvalidRequest(
                f"--quantize {quantized} has scales and all else in bfloat16, the engine's dtype "
                f"is {self.dtype}: choose --dtype bfloat16, or --quantize none"
            )


def build_engine_folder(
    checkpoint: Path,
    output: Path,
    settings: BuildSettings,
    *,
    force: bool = False,
    keep_failed: bool = False,
    say: Callable[[str], None] = print,
) -> bool:
    """Make `output` the engine of `checkpoint`; False if it already was and is kept.

    checkpoint: a Hugging Face folder, as `checkpoint_folder` also makes of a GGUF file.
    output: the engine folder; it appears whole or not at all, in place of an older engine.
    settings: what is chosen about it.
    force: build it also if it is there.
    keep_failed: make it also if its linked logits are not what they must be.
    say: told how far a long build is, and what engine it replaces.

    UnsupportedModel, and `output` is as it was, for a checkpoint that cannot be compiled, or whose
    linked logits are wrong; InvalidRequest if `output` holds something else.

    >>> from pathlib import Path
    >>> from legokv.build.engine import BuildSettings, build_engine_folder
    >>> settings = BuildSettings("mine", dtype="float32")
    >>> checkpoint, output = Path("out/checkpoints/llama"), Path("out/engines/mine")
    >>> build_engine_folder(checkpoint, output, settings)
    Checking linked against full logits
    True
    >>> build_engine_folder(checkpoint, output, settings)
    False
    """
    refuse_foreign_folder(output)
    facts, calibration = _facts(checkpoint, output, settings, say)
    if settings.any_plan and not force:
        kept = _kept(facts, output, settings, keep_failed)
        few = _as_stored(checkpoint, output, settings)
        if kept is None and few is not None:
            kept = _kept(_facts(checkpoint, output, few, say)[0], output, few, keep_failed)
        if kept is not None:
            say(f"{kept}, which auto keeps: a --backend by name, or --force, replaces it")
            return False
    library = settings.plugin_library() if settings.plugin_library is not None else None
    facts = with_plan(facts, settings, library)
    names = product_names(facts, with_onnx=settings.exports_onnx)
    if not force and is_up_to_date(output, facts, names, keep_failed=keep_failed):
        return False
    if output.exists():
        say(f"Replacing {output}: {replacement(output, facts)}")

    def produce(folder: Path) -> Collection[str]:
        inputs = Inputs(checkpoint, library, output, say, calibration)
        return make_products(facts, names, inputs, folder)

    def judge(folder: Path) -> GateFacts:
        say("Checking linked against full logits")
        return _judged(check_linking(folder, facts.page_size), keep_failed=keep_failed)

    write_engine_folder(output, facts, checkpoint, produce, judge)
    return True


def _facts(
    checkpoint: Path, output: Path, settings: BuildSettings, say: Callable[[str], None]
) -> tuple[EngineFacts, Calibration | None]:
    """All facts but the plan's, of the calibration too where the weights want one."""
    facts = facts_from_checkpoint(checkpoint, settings)
    if not is_calibrated(facts):
        return facts, None
    calibration = _calibration(facts, checkpoint, output, settings, say)
    fingerprint = calibrated_fingerprint(facts.fingerprint, calibration.to_json())
    return replace(facts, fingerprint=fingerprint), calibration


def _kept(
    facts: EngineFacts, output: Path, settings: BuildSettings, keep_failed: bool
) -> str | None:
    names = product_names(facts, with_onnx=settings.exports_onnx)
    asked = AskedPlan(settings.limits, settings.imports, settings.flags)
    return kept_plan(output, facts, names, asked, keep_failed=keep_failed)


def _as_stored(checkpoint: Path, output: Path, settings: BuildSettings) -> BuildSettings | None:
    """The settings of a plan with the checkpoint's few bits; None where there is no such plan."""
    if not settings.as_stored or (settings.weights, settings.dtype) != ("model", "bfloat16"):
        return None
    form = form_of_few_bits(read_tensor_table(checkpoint))
    if form == "model" or not has_plan_of(output, form):
        return None
    return replace(settings, backend="auto", weights=form)


def _calibration(
    facts: EngineFacts,
    checkpoint: Path,
    output: Path,
    settings: BuildSettings,
    say: Callable[[str], None],
) -> Calibration:
    """The checkpoint's own; or that which the engine before has of the same model, or the
    checkpoint if it is an engine folder, so that a rebuild repeats it; else a new one."""
    scales = stored_input_scales(checkpoint, facts.model)
    if scales:
        return Calibration(facts.fingerprint, "the checkpoint's own scales", scales)
    kept = kept_calibration((output, checkpoint), facts.model, facts.fingerprint)
    if kept is None:
        return calibrate(checkpoint, facts.model, settings.samples, facts.fingerprint, say)
    say(f"FP8's calibration is kept: {kept.source}")
    return kept


def _judged(gate: GateFacts, *, keep_failed: bool) -> GateFacts:
    if not gate.passed and not keep_failed:
        raise UnsupportedModel(
            f"this model is not linked correctly: {gate}. --keep-failed writes the engine all the "
            "same, to be looked into; no server takes it"
        )
    return gate


def facts_from_checkpoint(checkpoint: Path, settings: BuildSettings) -> EngineFacts:
    """All facts of the engine `checkpoint` makes but its plan's, after checking config, tensors
    and tokenizer, and whether a plan can have what is asked of it."""
    tokenizer = Tokenizer.open(checkpoint)
    PromptFormats(tokenizer).check()
    stored = read_tensor_table(checkpoint)
    model = with_its_head(read_model_config(checkpoint), stored)
    check_tensors(stored, model)
    model = _with_tokenizer_end(model, tokenizer)
    if settings.backend in PLAN_BACKENDS:
        check_sizes(
            model,
            graph_shape(model, Dtypes.same(settings.dtype), settings.page_size),
            settings.limits,
        )
    if settings.weights == PLAN_FORMS["int4"] != form_of_few_bits(stored):
        _check_blocks(model)
    return EngineFacts(
        format_version=FORMAT_VERSION,
        legokv_version=VERSION,
        name=settings.name,
        model=model,
        dtype=settings.dtype,
        page_size=settings.page_size,
        fingerprint=model_fingerprint(model, stored, tokenizer.fingerprint, settings.weights),
        backend=settings.backend,
        files=_files(checkpoint),
        weights=settings.weights,
    )


def _check_blocks(model: ModelConfig) -> None:
    """UnsupportedModel for a product whose rows are no blocks of INT4, before plugins compile."""
    for tensor in decoder_tensors(model):
        if tensor.is_product:
            int4_block(tensor.shape[1], tensor.name)


def with_plan(facts: EngineFacts, settings: BuildSettings, library: Path | None) -> EngineFacts:
    """The facts, with those of the plan that their backend builds with the plugin library."""
    if facts.backend not in PLAN_BACKENDS:
        return facts
    assert library is not None, "a plan is built with the plugin library"
    graph = graph_shape(facts.model, facts.dtypes, facts.page_size, settings.imports)
    plan = engine_plan(facts.backend, facts.model, graph, library, settings.limits, settings.flags)
    return replace(facts, plan=plan)


def _files(checkpoint: Path) -> tuple[StoredFile, ...]:
    weights = (file.name for file in weight_files(checkpoint))
    index = index_file(checkpoint)
    names = chain(weights, TOKENIZER_FILES, _CONFIG_FILES, (index.name,) if index else ())
    return stored_files(checkpoint, names)


def _with_tokenizer_end(model: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The model, which also ends at the tokenizer's end token; all ids must have a row.

    UnsupportedModel for an end token without an id, or with one that the model has not.
    """
    tokenizer.check_named_tokens()
    if tokenizer.vocab_size > model.vocab_size:
        raise UnsupportedModel(
            f"the tokenizer has ids up to {tokenizer.vocab_size - 1}, the model has "
            f"{model.vocab_size} embedding rows: they do not belong together"
        )
    tokenizer.check_tokens_texts()
    ends = {*model.eos_token_ids, *tokenizer.eos_token_ids}
    for end in sorted(ends):
        if not 0 <= end < model.vocab_size:
            raise UnsupportedModel(
                f"the end token {end} is none of the model's {model.vocab_size} tokens: correct "
                "eos_token_id in config.json or generation_config.json"
            )
    return replace(model, eos_token_ids=tuple(sorted(ends)))

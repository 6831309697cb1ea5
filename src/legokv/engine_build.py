"""From a checkpoint folder to an engine folder."""

from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import legokv
from legokv.checkpoint.fingerprint import model_fingerprint
from legokv.checkpoint.hf_config import read_model_config
from legokv.checkpoint.layout import check_tensors
from legokv.checkpoint.tensor_table import index_file, read_tensor_table, weight_files
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
from legokv.errors import EngineMismatch, InvalidRequest, UnsupportedModel
from legokv.tokenizer import TOKENIZER_FILES, Tokenizer

DTYPES = ("bfloat16", "float16", "float32")
_CONFIG_FILES = ("config.json", "generation_config.json")


@dataclass(frozen=True)
class EngineSettings:
    """What a builder chooses about an engine; `page_size` in tokens."""

    name: str
    dtype: str = "bfloat16"
    page_size: int = 16
    backend: str = "torch"


def build_engine_folder(
    checkpoint: Path, output: Path, settings: EngineSettings, *, force: bool = False
) -> bool:
    """Make `output` the engine of `checkpoint`; False if it already was and is kept.

    UnsupportedModel, before anything is written, for a checkpoint that cannot be compiled.
    """
    refuse_foreign_folder(output)
    facts = facts_from_checkpoint(checkpoint, settings)
    if not force and _is_up_to_date(output, facts):
        return False
    write_engine_folder(output, facts, checkpoint)
    return True


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


def _is_up_to_date(output: Path, facts: EngineFacts) -> bool:
    try:
        return read_engine_folder(output) == facts
    except EngineMismatch:
        return False

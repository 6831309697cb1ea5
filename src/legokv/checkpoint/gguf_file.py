"""A GGUF file becomes a Hugging Face folder, once, through transformers' own reader.

That reader drops what it has no place for without a word; what it would drop is refused here.
"""

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from legokv.checkpoint.gguf_header import GgufHeader, read_gguf_header
from legokv.checkpoint.gguf_refusals import CONTROL, USER_DEFINED, refuse_lost
from legokv.errors import LegokvError, UnsupportedModel

_FORM = 2
"""Of a converted folder: counted up when the same file becomes another folder."""


def folder_from_gguf(gguf: Path, checkpoints: Path, say: Callable[[str], None]) -> Path:
    """The folder under `checkpoints` made from `gguf`, its weights dequantised to float32.

    Named by the file's content, so it is converted only once. UnsupportedModel for a file with
    settings the conversion would lose.
    """
    header = read_gguf_header(gguf)
    # Also of one that older code converted, which dropped more.
    refuse_lost(header, gguf.name)
    folder = checkpoints / f"{gguf.stem}-{sha256_of(gguf)[:12]}-{_FORM}"
    if not folder.is_dir():
        say(f"Converting {gguf.name} to {folder}")
        _convert(gguf, header, folder)
    return folder


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write `gguf` as a Hugging Face folder; it appears whole or not at all."""
    header = read_gguf_header(gguf)
    refuse_lost(header, gguf.name)
    _convert(gguf, header, folder)


def _convert(gguf: Path, header: GgufHeader, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        new = Path(scratch, "new")
        try:
            _save_as_hf_folder(gguf, header, new)
        except (LegokvError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - another's program over another's file
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise UnsupportedModel(f"{gguf.name} could not be converted: {reason}") from None
        new.rename(folder)


def sha256_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _save_as_hf_folder(gguf: Path, header: GgufHeader, folder: Path) -> None:
    # Here, where it is used: it takes a second, and most builds convert nothing.
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(
        gguf.parent, gguf_file=gguf.name, local_files_only=True
    )
    _refuse_split_tokens(tokenizer, header, gguf.name)
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        local_files_only=True,
        output_loading_info=True,
    )
    model, report = loaded
    absent = sorted(report["missing_keys"])
    if absent:
        raise UnsupportedModel(
            f"{gguf.name} gives the conversion no {absent[0]}: what is missing is never made up"
        )
    # The weights are plain floats now; save_pretrained refuses while these say otherwise.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.generation_config.eos_token_id = _ends(header, model.generation_config.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        # Weights are saved for their owner alone; a server may run as somebody else.
        file.chmod(0o644)


def _refuse_split_tokens(tokenizer: Any, header: GgufHeader, name: str) -> None:
    """UnsupportedModel if a token that is one for llama.cpp would be cut into pieces here."""
    settings, added = header.settings, tokenizer.get_added_vocab()
    tokens, kinds = settings["tokenizer.ggml.tokens"], settings.get("tokenizer.ggml.token_type", [])
    for token_id, (token, kind) in enumerate(zip(tokens, kinds, strict=False)):
        if kind in (CONTROL, USER_DEFINED) and added.get(token) != token_id:
            raise UnsupportedModel(
                f"{name}: its token {token_id}, {token[:80]!r}, would be read in pieces after the "
                "conversion; take the checkpoint's safetensors folder instead"
            )


def _ends(header: GgufHeader, before: Any) -> Any:
    """Every token that ends a text, a turn or a message; as it was where only one is named."""
    keys = (f"tokenizer.ggml.{end}_token_id" for end in ("eos", "eot", "eom"))
    ends = sorted({header.settings[key] for key in keys if key in header.settings})
    return ends if len(ends) > 1 else before

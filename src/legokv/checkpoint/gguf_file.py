"""A GGUF file becomes a Hugging Face folder, once, through transformers' own reader.

That reader drops what it has no place for without a word; what it would drop is refused here.
"""

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from gguf import GGUFReader

from legokv.errors import UnsupportedModel

_ARCHITECTURES = ("llama", "qwen2", "qwen3")
# The byte-level splits transformers gives back as the file's author meant them.
_SPLITS = ("default", "gpt-2", "smollm", "qwen2")
_ADVICE = "take the checkpoint's safetensors folder instead"


def folder_from_gguf(gguf: Path, checkpoints: Path, say: Callable[[str], None]) -> Path:
    """The folder under `checkpoints` made from `gguf`, its weights dequantised to float32.

    Named by the file's content, so it is converted only once. UnsupportedModel for a file with
    settings the conversion would lose.
    """
    folder = checkpoints / f"{gguf.stem}-{sha256_of(gguf)[:12]}"
    if not folder.is_dir():
        say(f"Converting {gguf.name} to {folder}")
        convert_gguf(gguf, folder)
    return folder


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write `gguf` as a Hugging Face folder; it appears whole or not at all."""
    _refuse_lost_settings(gguf)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        new = Path(scratch, "new")
        _save_as_hf_folder(gguf, new)
        new.rename(folder)


def sha256_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _save_as_hf_folder(gguf: Path, folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        gguf.parent, gguf_file=gguf.name, local_files_only=True
    )
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
    )
    # The weights are plain floats now; save_pretrained refuses while these say otherwise.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        # Weights are saved for their owner alone; a server may run as somebody else.
        file.chmod(0o644)


def _refuse_lost_settings(gguf: Path) -> None:
    reader = _reader(gguf)
    architecture = _value(reader, "general.architecture")
    if architecture not in _ARCHITECTURES:
        raise UnsupportedModel(
            f"{gguf.name} holds a {architecture} model: it is none of {', '.join(_ARCHITECTURES)}"
        )
    experts = _value(reader, f"{architecture}.expert_count")
    if experts:
        raise UnsupportedModel(f"{gguf.name} is a mixture of {experts} experts: not supported")
    _refuse_rotary_scaling(gguf, reader, architecture)
    _refuse_narrow_window(gguf, reader, architecture)
    _refuse_unknown_split(gguf, reader)


def _refuse_rotary_scaling(gguf: Path, reader: Any, architecture: str) -> None:
    scaling = _value(reader, f"{architecture}.rope.scaling.type")
    tables = [tensor.name for tensor in reader.tensors if tensor.name.startswith("rope_")]
    lost = tables[0] if tables else scaling
    if lost not in (None, "none"):
        raise UnsupportedModel(
            f"{gguf.name}: its rotary scaling ({lost}) is lost in the conversion; {_ADVICE}"
        )


def _refuse_narrow_window(gguf: Path, reader: Any, architecture: str) -> None:
    window = _value(reader, f"{architecture}.attention.sliding_window")
    context = _value(reader, f"{architecture}.context_length")
    if window is not None and window < context:
        raise UnsupportedModel(
            f"{gguf.name}: sliding window of {window} tokens is narrower than the context of "
            f"{context}: a linked chunk must see every earlier chunk"
        )


def _refuse_unknown_split(gguf: Path, reader: Any) -> None:
    split = _value(reader, "tokenizer.ggml.pre")
    if _value(reader, "tokenizer.ggml.model") == "gpt2" and split not in (None, *_SPLITS):
        raise UnsupportedModel(
            f"{gguf.name}: the conversion does not know the tokenizer's '{split}' way to split "
            f"words; {_ADVICE}"
        )


def _reader(gguf: Path) -> Any:
    try:
        return GGUFReader(gguf)
    except FileNotFoundError:
        raise UnsupportedModel(f"{gguf} does not exist") from None
    except (ValueError, IndexError) as error:
        raise UnsupportedModel(f"{gguf} is not a readable GGUF file: {error}") from None


def _value(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()

"""What --model and --checkpoint name, as a Hugging Face folder on this disk."""

from collections.abc import Callable
from pathlib import Path

from legokv.checkpoint.gguf_file import folder_from_gguf
from legokv.checkpoint.smollm2 import smollm2_folder
from legokv.errors import InvalidRequest

PRESETS: dict[str, Callable[[Path, Callable[[str], None]], Path]] = {"llama": smollm2_folder}


def checkpoint_folder(
    preset: str, given: Path | None, checkpoints: Path, say: Callable[[str], None]
) -> Path:
    """`given` as a folder (a GGUF file is converted under `checkpoints`), else the preset's."""
    if given is None:
        return PRESETS[preset](checkpoints, say)
    if given.is_dir():
        return given
    if not given.is_file():
        raise InvalidRequest(f"--checkpoint {given} does not exist")
    if given.suffix.lower() != ".gguf":
        raise InvalidRequest(
            f"--checkpoint {given} is neither a folder nor a .gguf file: name the folder that "
            "holds config.json"
        )
    return folder_from_gguf(given, checkpoints, say)

"""Whether an engine folder still holds what its fingerprint says. No torch here.

Weights are hard links of the checkpoint's files, so whoever writes into those writes into the
engine. Reading them all at each start would be slow for large ones: a file beside them keeps how
they looked to the file system when they were last digested.
"""

import json
import logging
import os
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from legokv.built.folder import EngineFacts
from legokv.checkpoint.fingerprint import calibrated_fingerprint, model_fingerprint
from legokv.checkpoint.tensor_table import read_tensor_table
from legokv.errors import EngineMismatch
from legokv.model.dtypes import PLAN_FORMS

SEAL_FILE = "weights.seal"
CALIBRATION_FILE = "calibration.json"
"""What the inputs of a plan's FP8 products are divided by; other engines have none."""
_CONTENT = ("tokenizer.json", ".safetensors")

log = logging.getLogger(__name__)


def check_content(folder: Path, facts: EngineFacts, tokenizer_fingerprint: str) -> None:
    """EngineMismatch, naming both fingerprints, if the folder's weights or tokenizer are others.

    Digests them only if a file's size, times or inode are not those of the last time.
    """
    # Before they are read: what is written meanwhile has another time.
    seal = _seal(folder, facts)
    if _last_seal(folder) == seal:
        return
    started = time.monotonic()
    present = model_fingerprint(
        facts.model, read_tensor_table(folder), tokenizer_fingerprint, facts.weights
    )
    if is_calibrated(facts):
        text = (folder / CALIBRATION_FILE).read_bytes().decode(errors="replace")
        present = calibrated_fingerprint(present, text)
    if present != facts.fingerprint:
        raise EngineMismatch(
            f"{folder} was built of a model of fingerprint {facts.fingerprint[:12]}, its weights "
            f"or tokenizer{' or calibration' if is_calibrated(facts) else ''} are now of "
            f"{present[:12]}: somebody changed them, perhaps in the checkpoint they are linked to; "
            "build the engine again"
        )
    log.info("digested the weights of %s in %.1f s", folder, time.monotonic() - started)
    _keep(folder, seal)


def is_calibrated(facts: EngineFacts) -> bool:
    """Whether the engine's fingerprint is of a calibration, too."""
    return facts.weights == PLAN_FORMS["fp8"]


def _seal(folder: Path, facts: EngineFacts) -> str:
    names = [file.name for file in facts.files if file.name.endswith(_CONTENT)]
    names += [CALIBRATION_FILE] if is_calibrated(facts) else []
    looks = {name: _look(folder / name) for name in names}
    # The fingerprint is of the model's sizes, too, which somebody may have changed.
    seal = {"fingerprint": facts.fingerprint, "model": asdict(facts.model), "files": looks}
    return json.dumps(seal, sort_keys=True, allow_nan=False)


def _look(file: Path) -> list[int]:
    stat = file.stat()
    # The time of change, too: it can't be set back as that of modification can.
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_dev, stat.st_ino]


def _last_seal(folder: Path) -> str | None:
    try:
        return (folder / SEAL_FILE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _keep(folder: Path, seal: str) -> None:
    """Write the seal, whole or not at all; a folder that can't be written is digested each time."""
    with suppress(OSError):
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=f".{SEAL_FILE}-")
        try:
            with open(descriptor, "w", encoding="utf-8") as stream:
                stream.write(seal)
            os.chmod(name, 0o644)
            os.replace(name, folder / SEAL_FILE)
        except OSError:
            os.unlink(name)

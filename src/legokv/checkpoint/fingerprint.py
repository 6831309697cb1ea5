"""What a model is, as one digest: the same for the same weights, config and tokenizer anywhere."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Never

from tqdm import tqdm

from legokv.checkpoint.layout import used_names
from legokv.checkpoint.tensor_table import StoredTensor
from legokv.model.config import ModelConfig

_ENCODING = "legokv model 1"


def model_fingerprint(
    config: ModelConfig,
    stored: Mapping[str, StoredTensor],
    tokenizer_fingerprint: str,
    form: str = "model",
) -> str:
    """Hex SHA-256 over the config with its rotary settings, the weights and the tokenizer.

    `form` is how the engine keeps the weights: what it rounds makes another model.
    Does not depend on paths, times, the order of tensors or how they are spread over files.
    """
    digest = hashlib.sha256()
    forms = () if form == "model" else (f"weights {form}",)
    for part in (_ENCODING, _canonical(asdict(config)), tokenizer_fingerprint, *forms):
        _add(digest, part.encode())
    tensors = [stored[name] for name in sorted(used_names(stored, config))]
    total = sum(tensor.end - tensor.start for tensor in tensors)
    # disable=None: no bar where the output is not a terminal.
    with tqdm(desc="Weights", total=total, unit="B", unit_scale=True, disable=None) as bar:
        for tensor in tensors:
            _add(digest, _canonical([tensor.name, tensor.dtype, list(tensor.shape)]).encode())
            _add_bytes(digest, tensor, bar)
    return digest.hexdigest()


def calibrated_fingerprint(fingerprint: str, calibration: str) -> str:
    """That of the model of `fingerprint` whose products' inputs are rounded as the text says."""
    digest = hashlib.sha256()
    for part in (fingerprint, calibration):
        _add(digest, part.encode())
    return digest.hexdigest()


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _add(digest: "hashlib._Hash", part: bytes) -> None:
    # The length first: no two sequences of parts may read the same.
    digest.update(len(part).to_bytes(8, "little"))
    digest.update(part)


def _add_bytes(digest: "hashlib._Hash", tensor: StoredTensor, bar: "tqdm[Never]") -> None:
    for block in tensor.blocks():
        digest.update(block)
        bar.update(len(block))

"""The engine folder: engine.json with every fact a runner checks, the tokenizer, the weights.

Reading needs no torch, so that every Triton process can do it.
"""

import errno
import json
import os
import shlex
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from legokv.built.gate_facts import GateFacts
from legokv.built.plan_facts import PLAN_FLAGS, PlanFacts
from legokv.built.plan_limits import PlanLimits
from legokv.built.typed_json import typed
from legokv.errors import EngineMismatch, InvalidRequest
from legokv.model.config import ModelConfig
from legokv.model.dtypes import DTYPES, QUANTIZE_WORDS, WEIGHT_FORMS, Dtypes
from legokv.step.graph import IMPORTS
from legokv.whole_files import replaced_folder

FORMAT_VERSION = 3
FACTS_FILE = "engine.json"
MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"
SCORING_MODEL_FILE = "scoring.onnx"
SCORING_WEIGHTS_FILE = "scoring.onnx.data"
_SIZES = frozenset(
    ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads",
     "head_size", "max_positions")
)  # fmt: skip
# Positions and ids are int32 in the kernels; no size of a model is near it.
_MOST = 2**31 - 1
# Where a hard link is impossible (another disk, a file system without them), a copy does.
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})


@dataclass(frozen=True)
class StoredFile:
    """A file beside engine.json and the size it must have."""

    name: str
    size_bytes: int


@dataclass(frozen=True)
class EngineFacts:
    """All that is recorded about an engine. `dtype` is "bfloat16", "float16" or "float32".

    `weights` is one of WEIGHT_FORMS, or of PLAN_FORMS' values where the plan has Q/DQ nodes;
    engines of before it was recorded have their type's.

    `files` come from the checkpoint; `produced` were made from it: model.onnx, a plan, its plugins.
    `gate` is what the check of linked against full logits found in the folder when it was made.
    """

    format_version: int
    legokv_version: str
    name: str
    model: ModelConfig
    dtype: str
    page_size: int
    fingerprint: str
    backend: str
    files: tuple[StoredFile, ...]
    produced: tuple[StoredFile, ...] = ()
    plan: PlanFacts | None = None
    gate: GateFacts | None = None
    weights: str = "model"

    @property
    def dtypes(self) -> Dtypes:
        """`dtype`, the one name on disk, for weights, computing and KV."""
        return Dtypes.same(self.dtype)


Produce = Callable[[Path], Collection[str]]
"""Makes files in the folder it is given; their names."""
Judge = Callable[[Path], GateFacts]
"""Checks the engine in the folder it is given; raises what keeps it from being written."""


def read_engine_folder(path: Path) -> EngineFacts:
    """The facts of an engine folder whose files are all there at their recorded sizes.

    EngineMismatch, naming both sides, for a folder of another format version or with a file
    missing or of another size.
    """
    facts = _facts_from_json(_engine_json(path), path)
    for file in (*facts.files, *facts.produced):
        _check_file(path / file.name, file.size_bytes)
    return facts


def write_engine_folder(
    path: Path,
    facts: EngineFacts,
    checkpoint: Path,
    produce: Produce | None = None,
    judge: Judge | None = None,
) -> None:
    """Put `facts` and the files they name, taken from `checkpoint`, into a folder at `path`.

    What `produce` makes there is recorded with its sizes, and what `judge` finds.

    Weights are hard-linked where the file system can, else copied. The folder appears whole or
    not at all, in place of an older engine; InvalidRequest if `path` is anything else.
    """
    refuse_foreign_folder(path)
    with replaced_folder(path) as folder:
        for file in facts.files:
            _link_or_copy((checkpoint / file.name).resolve(), folder / file.name)
        if produce is not None:
            facts = replace(facts, produced=stored_files(folder, iter(produce(folder))))
        _write_facts(folder, facts)
        if judge is not None:
            _write_facts(folder, replace(facts, gate=judge(folder)))


def _write_facts(folder: Path, facts: EngineFacts) -> None:
    text = json.dumps(asdict(facts), indent=2, sort_keys=True, allow_nan=False)
    (folder / FACTS_FILE).write_text(text + "\n", encoding="utf-8")


def stored_files(checkpoint: Path, names: Iterator[str]) -> tuple[StoredFile, ...]:
    """The named files of a checkpoint, those it has, in name order."""
    present = sorted(name for name in set(names) if (checkpoint / name).is_file())
    return tuple(StoredFile(name, (checkpoint / name).stat().st_size) for name in present)


def refuse_foreign_folder(path: Path) -> None:
    """InvalidRequest if `path` exists and is not an engine folder that may be replaced."""
    if path.exists() and not (path / FACTS_FILE).is_file():
        raise InvalidRequest(
            f"{path} exists and holds no {FACTS_FILE}: it is not replaced; choose another --output"
        )


def _engine_json(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise EngineMismatch(f"engine folder {path} {what}: run build/build_engine.py")
    try:
        data = json.loads((path / FACTS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EngineMismatch(f"{path} holds no {FACTS_FILE}: it is not an engine folder") from None
    except (ValueError, RecursionError) as error:
        raise EngineMismatch(f"{path / FACTS_FILE} is not JSON: {error}") from None
    except OSError as error:
        raise EngineMismatch(
            f"{path / FACTS_FILE} cannot be read: {error.strerror or error}"
        ) from None
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise EngineMismatch(
            f"{path} has engine format {str(version)[:80]}, this legokv reads format "
            f"{FORMAT_VERSION}: build the engine again, from its own files with "
            f"{build_command(path, data)}"
        )
    return dict(data)


def build_command(path: Path, data: object) -> str:
    """What builds the folder's engine again, with its settings that `data` has as engine.json has
    them, whatever its format.
    """
    fields = data if isinstance(data, dict) else {}
    words = ["build/build_engine.py", "--checkpoint", str(path), "--output", str(path)]
    for name in ("name", "dtype", "weights", "page_size", "backend"):
        option, value = f"--{name.replace('_', '-')}", str(fields.get(name))[:80]
        if name == "weights" and value in QUANTIZE_WORDS:
            option, value = "--quantize", QUANTIZE_WORDS[value]
        if name == "weights" and value == "model" and fields.get("plan"):
            # Without it a plan takes the few bits that its checkpoint may have.
            option, value = "--quantize", "none"
        if name in fields:
            words += [option, value]
    plan = fields.get("plan")
    return shlex.join([*words, *_plan_options(plan if isinstance(plan, dict) else {})])


def _plan_options(plan: dict[str, Any]) -> Iterator[str]:
    limits, flags = plan.get("limits"), plan.get("flags")
    for name in asdict(PlanLimits()):
        if isinstance(limits, dict) and name in limits:
            yield from (f"--{name.replace('_', '-')}", str(limits[name])[:80])
    if plan.get("imports") in IMPORTS:
        yield from ("--import", str(plan["imports"]))
    if isinstance(flags, list | tuple):
        yield from (f"--{flag.replace('_', '-')}" for flag in PLAN_FLAGS if flag in flags)


def _facts_from_json(data: dict[str, Any], path: Path) -> EngineFacts:
    try:
        facts: EngineFacts = typed(EngineFacts, data, "")
    except TypeError as error:
        raise EngineMismatch(
            f"{path / FACTS_FILE} says format {FORMAT_VERSION} but has not its fields ({error}): "
            "build the engine again"
        ) from None
    model = facts.model
    sizes = {name: value for name, value in asdict(model).items() if name in _SIZES}
    sizes["page_size"] = facts.page_size
    odd = [name for name, value in sizes.items() if not 1 <= value <= _MOST]
    names = [file.name for file in (*facts.files, *facts.produced) if _is_path(file.name)]
    faults = [f"{name} {sizes[name]}" for name in odd]
    faults += [f"a file {name[:80]!r}" for name in names]
    faults += [] if facts.dtype in DTYPES else [f"dtype {facts.dtype[:80]!r}"]
    is_form = facts.weights in (*WEIGHT_FORMS, *QUANTIZE_WORDS)
    faults += [] if is_form else [f"weights {facts.weights[:80]!r}"]
    if faults:
        raise EngineMismatch(
            f"{path / FACTS_FILE} has {faults[0]}, which no engine has: build the engine again"
        )
    return facts


def _is_path(name: str) -> bool:
    """Whether it leads out of the folder, or further down than a plan's own folder."""
    parts = Path(name).parts
    return name != "/".join(parts) or ".." in parts or not 1 <= len(parts) <= 2 or name[:1] == "/"


def _check_file(file: Path, size_bytes: int) -> None:
    if not file.is_file():
        raise EngineMismatch(f"{FACTS_FILE} names {file.name}, {file} does not exist")
    num_bytes = file.stat().st_size
    if num_bytes != size_bytes:
        raise EngineMismatch(
            f"{file} has {num_bytes} bytes, {FACTS_FILE} says {size_bytes}: build the engine again"
        )


def _link_or_copy(source: Path, target: Path) -> None:
    # By the engine's name: in Hugging Face's cache the file behind the link is named by its digest.
    if target.suffix != ".safetensors":
        shutil.copyfile(source, target)
        return
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        shutil.copyfile(source, target)


def cache_root(cache_dir: str | Path, facts: EngineFacts) -> Path:
    """The folder of an engine's model: documents and KV belong to one."""
    return Path(cache_dir) / facts.fingerprint[:16]


def registry_file(root: Path) -> Path:
    """The document registry of a model whose folder is `root`."""
    return root / "registry.sqlite"

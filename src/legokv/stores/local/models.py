"""All models that keep something in one cache folder, and how one of them is removed from it."""

import fcntl
import re
import shutil
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from legokv.errors import Busy
from legokv.stores.local.database import USERS_SUFFIX
from legokv.stores.local.files import ChunkFolder

_MODEL = re.compile(r"[0-9a-f]{16}", re.ASCII)


@dataclass(frozen=True)
class ModelContents:
    """What is kept of one model: documents, chunks and the bytes of the chunks."""

    num_documents: int
    num_chunks: int
    num_bytes: int


def is_model(folder: Path) -> bool:
    """Whether a folder is called as a model's is: by the beginning of a fingerprint."""
    return bool(_MODEL.fullmatch(folder.name))


def models_in(cache_dir: Path, registry: str, chunks: str) -> dict[str, ModelContents]:
    """What each model keeps below `cache_dir`, by the beginning of its fingerprint.

    registry, chunks: how a model's registry file and chunk folder are called.
    """
    return {
        folder.name: _contents(folder / registry, folder / chunks)
        for folder in sorted(cache_dir.glob("*"))
        if is_model(folder) and (folder / registry).is_file()
    }


def remove_model(cache_dir: Path, model: str, registry: str) -> None:
    """Remove all that a model keeps below `cache_dir`; Busy while a server has it open."""
    folder = cache_dir / model
    with open(folder / f"{registry}{USERS_SUFFIX}", "a") as users:
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"{folder} is in use: stop the servers of this model first") from None
        shutil.rmtree(folder)


def _contents(registry: Path, chunks: Path) -> ModelContents:
    files = list(ChunkFolder(chunks).files())
    return ModelContents(_num_documents(registry), len(files), sum(f.num_bytes for f in files))


def _num_documents(registry: Path) -> int:
    with (
        suppress(sqlite3.DatabaseError),  # of a version that this one does not know
        closing(sqlite3.connect(f"{registry.absolute().as_uri()}?mode=ro", uri=True)) as connection,
    ):
        return int(connection.execute("SELECT count(*) FROM documents").fetchone()[0])
    return 0

"""A document set as one file, to warm another machine: texts, token ids, and their stored KV.

A tar file without compression: `documents.json`, then one member a chunk in its stored form. What
is read is believed only as far as it can be checked: ids against the tokenizer, keys and KV against
the ids.
"""

import io
import json
import tarfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from legokv.errors import InvalidRequest

FORMAT_VERSION = 1
_MANIFEST = "documents.json"
_MAX_MANIFEST_BYTES = 2**31
# Far above any chunk: a member's size is read from the file, and not believed without a bound.
_MAX_CHUNK_BYTES = 2**34


@dataclass(frozen=True)
class ArchivedChunk:
    """A chunk of an archived document; its KV may be missing from the archive."""

    token_ids: tuple[int, ...]
    key: str | None


@dataclass(frozen=True)
class ArchivedDocument:
    """A document as it was registered. Pins are not archived: they are a machine's own choice."""

    namespace: str
    id: str
    name: str | None
    text: str
    ttl_seconds: float | None
    chunks: tuple[ArchivedChunk, ...]


@dataclass(frozen=True)
class Manifest:
    """What an archive holds, and the model its KV belongs to."""

    fingerprint: str
    documents: tuple[ArchivedDocument, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of all chunks that were compiled, each once, in order."""
        chunks = (chunk for document in self.documents for chunk in document.chunks)
        return tuple(dict.fromkeys(chunk.key for chunk in chunks if chunk.key is not None))


def write_archive(
    path: Path,
    manifest: Manifest,
    chunks: Iterable[tuple[str, BinaryIO]],
    done: Callable[[int], object],
) -> int:
    """Write the manifest and the chunks' stored bytes: how many chunks. Whole or not at all.

    `done` gets the bytes of each chunk written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    number = 0
    try:
        with tarfile.open(temporary, "x", format=tarfile.PAX_FORMAT) as archive:
            _add_manifest(archive, manifest)
            for key, content in chunks:
                done(_add_chunk(archive, key, content))
                number += 1
        temporary.replace(path)
    except OSError as error:
        raise InvalidRequest(f"archive {path} cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return number


def read_archive(path: Path) -> Iterator[Manifest | tuple[str, bytearray]]:
    """First the manifest, then (key, stored bytes) of each chunk; InvalidRequest for another file.

    Nothing is unpacked to disk, and no member's name is used as a path.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            yield _read_manifest(archive, path)
            while (member := archive.next()) is not None:
                content = archive.extractfile(member)
                if content is None or member.size > _MAX_CHUNK_BYTES:
                    raise InvalidRequest(f"archive {path}: {member.name[:80]!r} is no chunk")
                yield member.name.removesuffix(".safetensors"), bytearray(content.read())
    except tarfile.TarError as error:
        raise InvalidRequest(f"{path} is no archive of documents: {error}") from error
    except OSError as error:
        raise InvalidRequest(f"archive {path} cannot be read: {error.strerror}") from error


def _add_manifest(archive: tarfile.TarFile, manifest: Manifest) -> None:
    body = json.dumps({"format_version": FORMAT_VERSION, **asdict(manifest)}).encode()
    info = tarfile.TarInfo(_MANIFEST)
    info.size = len(body)
    archive.addfile(info, io.BytesIO(body))


def _add_chunk(archive: tarfile.TarFile, key: str, content: BinaryIO) -> int:
    info = tarfile.TarInfo(f"{key}.safetensors")
    info.size = content.seek(0, io.SEEK_END)
    content.seek(0)
    archive.addfile(info, content)
    return info.size


def _read_manifest(archive: tarfile.TarFile, path: Path) -> Manifest:
    member = archive.next()
    content = None if member is None else archive.extractfile(member)
    if member is None or member.name != _MANIFEST or content is None:
        raise InvalidRequest(f"{path} is no archive of documents: it does not begin with a list")
    if member.size > _MAX_MANIFEST_BYTES:
        raise InvalidRequest(f"archive {path}: a list of {member.size} bytes is refused")
    try:
        fields = json.loads(content.read())
        version = fields["format_version"]
        if version != FORMAT_VERSION:
            raise InvalidRequest(
                f"archive {path} has version {version}, this program reads {FORMAT_VERSION}"
            )
        documents = tuple(_document(item) for item in fields["documents"])
        return Manifest(str(fields["fingerprint"]), documents)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidRequest(f"archive {path}: its list is damaged: {error!r}") from error


def _document(fields: dict[str, Any]) -> ArchivedDocument:
    name, ttl = fields["name"], fields["ttl_seconds"]
    return ArchivedDocument(
        namespace=str(fields["namespace"]),
        id=str(fields["id"]),
        name=None if name is None else str(name),
        text=str(fields["text"]),
        ttl_seconds=None if ttl is None else float(ttl),
        chunks=tuple(
            ArchivedChunk(
                tuple(int(token) for token in chunk["token_ids"]),
                None if chunk["key"] is None else str(chunk["key"]),
            )
            for chunk in fields["chunks"]
        ),
    )

"""Documents that chats name, by file id or by their text: registered, and compiled before use; and
files as they came.

Documents have one home, the registry. `Uploads` are beside it: one that is lost costs the original.
"""

import asyncio
import json
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from legokv.documents.document import MAX_NAME_LEN, is_hidden, normalise_text
from legokv.documents.document import document_id as content_id
from legokv.errors import ApiRefused, NotFound
from legokv.serving.gateway.accounts import Account
from legokv.serving.gateway.models import Models, json_text
from legokv.whole_files import make_private_folder, private_opener

WAIT_SECONDS = 60.0
"""Longest that a chat waits for a file to be compiled."""
INLINE_TTL_SECONDS = 3600.0
"""How long a text that stood in a chat itself is kept, unless the chat says."""
INLINE = "inline/"
"""What names of such documents begin with: they are in no list of files."""
_TRUST_SECONDS = 60.0
_MAX_KNOWN = 10_000
_DIAMOND = "\ufffd"
_MAX_ENDING_LEN = 16
_FILE, _DOCUMENT = "file-", "doc-"


def file_id_of(document_id: str) -> str:
    """What a document is called as a file."""
    return _FILE + document_id.removeprefix(_DOCUMENT)


def document_id_of(file_id: str) -> str:
    """The document that is this file."""
    return _DOCUMENT + file_id.removeprefix(_FILE) if file_id.startswith(_FILE) else file_id


def shown_name(filename: str) -> str:
    """A file's name without its folders, as `shown_title`."""
    return shown_title(filename.replace("\\", "/").rpartition("/")[2])


def shown_title(name: str, most: int = MAX_NAME_LEN) -> str:
    """The name with so many letters at most, its ending kept.

    What could end a line, drive a terminal or turn letters around becomes a question mark in a
    diamond; joiners, which letters and emoji are written with, stay.
    """
    name = "".join(_DIAMOND if is_hidden(letter) else letter for letter in name) or "file"
    stem, dot, ending = name.rpartition(".")
    if len(name) > most and dot and len(ending) < _MAX_ENDING_LEN:
        name = f"{stem[: most - len(ending) - 1]}.{ending}"
    return name[:most]


class Library:
    """Remembers which documents were ready a moment ago, so that no chat asks about them again."""

    def __init__(self, models: Models, clock: Callable[[], float] = time.time) -> None:
        self._models = models
        self._clock = clock
        self._known: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._registering: set[asyncio.Task[None]] = set()

    async def ready(self, namespace: str, file_id: str) -> str:
        """The id of a file's document, which is compiled.

        NotFound if there is none; ApiRefused with status 409 if it is not ready in time, or failed.
        """
        document_id = document_id_of(file_id)
        if self._is_known(namespace, document_id):
            return document_id
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                reply = await self._models.documents(
                    "get", namespace=namespace, id=document_id, wait=True
                )
        except TimeoutError:
            raise ApiRefused(
                f"file {file_id[:80]!r} was not compiled within {WAIT_SECONDS:g} s: ask again when "
                "its status is 'processed'",
                409,
                kind="file_not_ready",
            ) from None
        document = reply["document"]
        self.check_not_over(document)
        if document["state"] == "failed":
            raise ApiRefused(
                f"file {file_id[:80]!r} could not be compiled: {document['failure']}",
                409,
                kind="file_failed",
            )
        self._note(namespace, document)
        return document_id

    async def of_text(
        self, account: Account, text: str, name: str, ttl_seconds: float | None = None
    ) -> str:
        """The id of a document with this text, registered for a while unless it is there."""
        namespace = account.namespace()
        document_id = content_id(namespace, normalise_text(text))
        if self._is_known(namespace, document_id):
            return document_id
        new = {"namespace": namespace, "namespace_bytes": account.stored_bytes, "text": text}
        changes = {
            "name": INLINE + shown_title(name, MAX_NAME_LEN - len(INLINE)),
            "ttl_seconds": ttl_seconds or INLINE_TTL_SECONDS,
        }
        # Whole even if the client leaves: a text that has no name and end yet is kept for ever.
        registering = asyncio.create_task(self._register(new, changes))
        self._registering.add(registering)
        registering.add_done_callback(self._registering.discard)
        await asyncio.shield(registering)
        document = (await self._models.documents("create", **new))["document"]
        self._note(namespace, document)
        return str(document["id"])

    async def _register(self, new: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
        """Register a text, not waiting for its KV. A document that has another name keeps it."""
        reply = await self._models.documents("create", **new, wait=False)
        document = reply["document"]
        if reply["created"] or (document["name"] or "").startswith(INLINE):
            await self._models.documents(
                "update", namespace=document["namespace"], id=document["id"], **changes
            )

    def check_not_over(self, document: dict[str, Any]) -> None:
        """NotFound if the document's time is over."""
        expires_at = document["expires_at"]
        if expires_at is not None and expires_at <= self._clock():
            raise NotFound(
                f"no document {document['id']!r} in namespace {document['namespace']!r}: its time "
                "was over"
            )

    def forget(self, namespace: str, document_id: str) -> None:
        """Ask about this one again."""
        self._known.pop((namespace, document_id), None)

    def _is_known(self, namespace: str, document_id: str) -> bool:
        return self._known.get((namespace, document_id), 0.0) > self._clock()

    def _note(self, namespace: str, document: dict[str, Any]) -> None:
        until = self._clock() + _TRUST_SECONDS
        if document["expires_at"] is not None:
            until = min(until, document["expires_at"])
        key = (namespace, document["id"])
        self._known[key] = until
        self._known.move_to_end(key)
        while len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)


@dataclass(frozen=True)
class Upload:
    """A file's own facts; `num_bytes` as it came."""

    num_bytes: int
    media_type: str


class Uploads:
    """What was uploaded, byte for byte, where the registered text is not the same; kept on disk.

    By (namespace, document id). Safe for several threads.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, namespace: str, document_id: str, upload: Upload, data: bytes) -> None:
        """Write it down, whole or not at all."""
        path = self._path(namespace, document_id)
        make_private_folder(self._folder)
        make_private_folder(path.parent)
        scratch = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
        with open(scratch, "wb", opener=private_opener) as file:
            file.write(json_text(asdict(upload)).encode() + b"\n" + data)
        os.replace(scratch, path)

    def facts(self, namespace: str, document_id: str) -> Upload | None:
        """What is known of the original; None if the registered text is all there is."""
        try:
            with open(self._path(namespace, document_id), "rb") as file:
                return Upload(**json.loads(file.readline()))
        except (OSError, ValueError, TypeError):
            return None

    def data(self, namespace: str, document_id: str) -> bytes | None:
        """The original; None if the registered text is all there is."""
        try:
            with open(self._path(namespace, document_id), "rb") as file:
                file.readline()
                return file.read()
        except OSError:
            return None

    def forget(self, namespace: str, document_id: str) -> None:
        """Remove what is kept of it."""
        self._path(namespace, document_id).unlink(missing_ok=True)

    def _path(self, namespace: str, document_id: str) -> Path:
        # A namespace may be two dots; ids come from the registry.
        return self._folder / f"of-{namespace}" / document_id

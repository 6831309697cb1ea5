"""What was uploaded, byte for byte, where the registered text is not the same; kept on disk.

Documents have one home, the registry. This is beside it: a lost file here costs the original only.
"""

import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from legokv.serving.gateway.models import json_text
from legokv.whole_files import make_private_folder, private_opener


@dataclass(frozen=True)
class Upload:
    """A file's own facts; `num_bytes` as it came."""

    num_bytes: int
    media_type: str


class Uploads:
    """Originals by (namespace, document id). Safe for several threads."""

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

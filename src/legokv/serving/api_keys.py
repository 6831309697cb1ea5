"""The file of API keys: who may ask, in which namespace, how much. Hashes only; no key is in it.

A key has 256 random bits: nobody finds one by trying, however fast its hash is. So SHA-256 without
a salt keeps it as well as a slow hash would, and takes a microsecond of a request.
"""

import fcntl
import hashlib
import json
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from legokv.documents.document import check_namespace
from legokv.errors import InvalidRequest, NotFound
from legokv.whole_files import private_opener, write_private_file

FORMAT = 1
MAX_FILE_BYTES = 4 * 2**20
MAX_LIMIT = 2**53
"""Largest limit: past it JSON's numbers are not exact everywhere."""
PREFIX = "lk-"
_SECRET_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
_LIMITS = ("requests_per_minute", "tokens_per_minute", "stored_bytes")


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """One key as the file has it; a limit of 0 is none. InvalidRequest for a wrong value.

    `stored_bytes` is of all documents in the namespace with their KV, as `namespace_bytes` is.
    `metrics`: whether it reads the server's figures, which are of all namespaces together.
    """

    name: str
    namespace: str
    sha256: str
    created_at: int
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    stored_bytes: int = 0
    metrics: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise InvalidRequest(
                "a key's name is 1 to 64 letters, digits, dots, underscores or dashes, not "
                f"{str(self.name)[:80]!r}"
            )
        if not isinstance(self.sha256, str) or not _HASH.fullmatch(self.sha256):
            raise InvalidRequest(f"the sha256 of key {self.name} is not 64 digits in base 16")
        if not isinstance(self.namespace, str):
            raise InvalidRequest(f"the namespace of key {self.name} is no text")
        check_namespace(self.namespace)
        for name in (*_LIMITS, "created_at"):
            self._check_number(name, getattr(self, name))
        if not isinstance(self.metrics, bool):
            raise InvalidRequest(f"metrics of key {self.name} is true or false")

    def _check_number(self, name: str, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_LIMIT:
            raise InvalidRequest(
                f"{name} of key {self.name} is a whole number from 0 to {MAX_LIMIT}, "
                f"not {str(value)[:40]}"
            )


def hash_of(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


def read_keys(file: Path) -> tuple[ApiKey, ...]:
    """The file's keys; InvalidRequest with one sentence for a file that is none of keys."""
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidRequest(
            f"the file of API keys {file} cannot be read: {error.strerror}; "
            "`legokv keys add NAME --file FILE` makes one"
        ) from None
    if len(content) > MAX_FILE_BYTES:
        raise InvalidRequest(f"the file of API keys {file} has more than {MAX_FILE_BYTES} bytes")
    try:
        return _keys_in(json.loads(content))
    except InvalidRequest as error:
        raise InvalidRequest(f"the file of API keys {file} is damaged: {error}") from None
    except (ValueError, RecursionError):
        raise InvalidRequest(f"the file of API keys {file} is damaged: it is no JSON") from None


def _keys_in(content: object) -> tuple[ApiKey, ...]:
    if not isinstance(content, dict) or set(content) != {"format", "keys"}:
        raise InvalidRequest("it is no object of 'format' and 'keys'")
    if content["format"] != FORMAT or isinstance(content["format"], bool):
        raise InvalidRequest(f"it is of format {str(content['format'])[:20]}, {FORMAT} is read")
    if not isinstance(content["keys"], list):
        raise InvalidRequest("its 'keys' are no list")
    keys = tuple(_key_of(item, number) for number, item in enumerate(content["keys"], 1))
    for noun, values in (("name", [k.name for k in keys]), ("hash", [k.sha256 for k in keys])):
        if len(set(values)) != len(values):
            raise InvalidRequest(f"a {noun} is there twice among its {len(keys)} keys")
    return keys


def _key_of(item: object, number: int) -> ApiKey:
    names = {field.name for field in fields(ApiKey)}
    if not isinstance(item, dict) or not set(item) <= names:
        raise InvalidRequest(f"key {number} is no object of {', '.join(sorted(names))}")
    missing = {"name", "namespace", "sha256", "created_at"} - set(item)
    if missing:
        raise InvalidRequest(f"key {number} lacks {', '.join(sorted(missing))}")
    return ApiKey(**item)


def add_key(file: Path, name: str, rights: Mapping[str, Any]) -> tuple[str, ApiKey]:
    """A new key, which is nowhere kept, and what the file has of it; the file is made if need be.

    `rights` are ApiKey's other fields, the namespace the name unless given.
    """
    key = PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    kept = ApiKey(
        name=name,
        sha256=hash_of(key),
        created_at=int(time.time()),
        **{"namespace": name, **rights},
    )
    with _changing(file):
        keys = read_keys(file) if file.exists() else ()
        if any(other.name == name for other in keys):
            raise InvalidRequest(
                f"there is a key {name} in {file}: revoke it first, or name another"
            )
        _write(file, (*keys, kept))
    return key, kept


def revoke_key(file: Path, name: str) -> ApiKey:
    """Take a key out of the file; NotFound with those there are."""
    with _changing(file):
        keys = read_keys(file)
        for key in keys:
            if key.name == name:
                _write(file, [other for other in keys if other is not key])
                return key
    names = ", ".join(key.name for key in keys[:20]) or "none"
    raise NotFound(f"there is no key {name[:80]!r} in {file}; there are {names}")


def _write(file: Path, keys: Sequence[ApiKey]) -> None:
    content = {"format": FORMAT, "keys": [asdict(key) for key in keys]}
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    try:
        write_private_file(file, text.encode())
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be written: {error.strerror}") from None


@contextmanager
def _changing(file: Path) -> Iterator[None]:
    """Who changes the file is alone in the block: what another adds meanwhile is not lost."""
    try:
        with open(file.with_name(f".{file.name}.lock"), "w", opener=private_opener) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be written: {error.strerror}") from None

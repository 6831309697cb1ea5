"""A document set as one file, to warm another machine: texts, token ids, and their stored KV.

A tar file without compression: `documents.json`, then one member a chunk in its stored form. A
reader holds one document or one chunk at a time, and believes no size, type or name it finds.
"""

import codecs
import io
import json
import re
import tarfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from legokv.chunks.chunk import MAX_TOKEN_ID
from legokv.errors import InvalidRequest, kind_of
from legokv.whole_files import private_opener

FORMAT_VERSION = 1
MAX_ARCHIVE_DOCUMENTS = 2**20
MAX_ARCHIVE_CHUNKS = 2**20
MAX_LIST_BYTES = 2**31
_MANIFEST = "documents.json"
_CHUNK_SUFFIX = ".safetensors"
_PIECE_BYTES = 2**20
_MAX_HEAD_LEN = 4096
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE)
_MEMBER = re.compile(r"[0-9a-f]{64}\.safetensors", re.ASCII)
_BLANKS = re.compile(r"[ \t\r\n]*")
# In the order that `write_archive` has them.
_HEAD = re.compile(
    r'\s*\{\s*"format_version"\s*:\s*(?P<version>-?\d{1,9})\s*,'
    r'\s*"fingerprint"\s*:\s*"(?P<fingerprint>[0-9a-f]{64})"\s*,\s*"documents"\s*:\s*\[',
    re.ASCII,
)


@dataclass(frozen=True)
class ArchivedChunk:
    """A chunk of an archived document; its KV may be missing from the archive."""

    token_ids: tuple[int, ...]
    key: str | None


@dataclass(frozen=True)
class ArchivedDocument:
    """A document as it was registered. Pins are not archived: they are a machine's own choice.

    head: the token ids that it is compiled behind; none in an archive of before there were heads.
    """

    namespace: str
    id: str
    name: str | None
    text: str
    ttl_seconds: float | None
    chunks: tuple[ArchivedChunk, ...]
    head: tuple[int, ...] = ()


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

    The file is its owner's alone to read. `done` gets the bytes of each chunk written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    number = 0
    try:
        with (
            open(temporary, "xb", opener=private_opener) as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive,
        ):
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


@dataclass(frozen=True)
class Member:
    """One file of an archive, where its bytes begin and how many there are."""

    name: str
    start: int
    size: int

    @property
    def key(self) -> str:
        """The key of the chunk it holds."""
        return self.name.removesuffix(_CHUNK_SUFFIX)


class Archive:
    """An archive that is read from its start as often as needed; InvalidRequest for a bad one.

    Nothing is unpacked to disk, and no member's name is used as a path.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        first = self._member(0)
        if first is None or first.name != _MANIFEST:
            self._refuse_file("it does not begin with a list")
        if first.size > MAX_LIST_BYTES:
            self._refuse(f"a list of {first.size} bytes is refused, at most {MAX_LIST_BYTES}")
        self._list = first
        head = _HEAD.match(next(self._text(), "")[:_MAX_HEAD_LEN])
        if head is None:
            self._refuse("its list is damaged: it does not begin as this program writes it")
        if int(head["version"]) != FORMAT_VERSION:
            raise InvalidRequest(
                f"archive {path} has version {head['version']}, this program reads {FORMAT_VERSION}"
            )
        self.fingerprint = str(head["fingerprint"])
        self._first_document = head.end()

    def documents(self, max_bytes: int) -> Iterator[ArchivedDocument]:
        """The documents in order, each of at most `max_bytes` of JSON."""
        for number, fields in enumerate(self._objects(max_bytes), 1):
            if number > MAX_ARCHIVE_DOCUMENTS:
                self._refuse(f"it has more than {MAX_ARCHIVE_DOCUMENTS} documents")
            try:
                document = _document(fields)
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
                self._refuse(f"its list is damaged at document {number}: {error!r:.200}")
            yield document

    def chunks(self, max_bytes: Mapping[str, int]) -> Iterator[Member]:
        """The chunks' members: of these keys, each at most once and as large as it may be."""
        seen: set[str] = set()
        place = _behind(self._list)
        while (member := self._member(place)) is not None:
            key = member.key
            if not _MEMBER.fullmatch(member.name) or key not in max_bytes:
                self._refuse(f"{member.name[:80]!r} is no chunk of its documents")
            if key in seen:
                self._refuse(f"chunk {key[:12]} is in it twice")
            if member.size > max_bytes[key]:
                self._refuse(
                    f"chunk {key[:12]} has {member.size} bytes, one of its tokens takes at most "
                    f"{max_bytes[key]}"
                )
            seen.add(key)
            yield member
            place = _behind(member)

    def content(self, member: Member) -> bytearray:
        """A member's bytes."""
        self._file.seek(member.start)
        content = bytearray(member.size)
        if self._file.readinto(content) != member.size:  # type: ignore[attr-defined]
            self._refuse("it was cut short")
        return content

    def _member(self, place: int) -> Member | None:
        """The member whose header is at `place`; None at the archive's end."""
        self._file.seek(place)
        block = self._file.read(tarfile.BLOCKSIZE)
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.TarError as error:
            if block and not block.strip(b"\0") and len(block) == tarfile.BLOCKSIZE:
                return None
            if place and len(block) < tarfile.BLOCKSIZE:
                self._refuse("it was cut short")
            self._refuse_file(str(error))
        if info.type not in _REGULAR or info.size < 0:
            self._refuse(f"{info.name[:80]!r} is no plain file")
        start = place + tarfile.BLOCKSIZE
        if start + info.size > self._file.seek(0, io.SEEK_END):
            self._refuse("it was cut short")
        return Member(info.name, start, info.size)

    def _text(self) -> Iterator[str]:
        """The list's text, a piece at a time."""
        decoder, left = codecs.getincrementaldecoder("utf-8")(), self._list.size
        place = self._list.start
        while left:
            self._file.seek(place)
            piece = self._file.read(min(left, _PIECE_BYTES))
            left -= len(piece)
            place += len(piece)
            try:
                yield decoder.decode(piece, final=not left)
            except UnicodeDecodeError as error:
                self._refuse(f"its list is damaged: {error.reason} at byte {place - len(piece)}")
            if not piece:
                self._refuse("it was cut short")

    def _objects(self, max_bytes: int) -> Iterator[Any]:
        """The JSON values of the list of documents, none longer than `max_bytes`."""
        pieces = self._text()
        text, place = self._filled(next(pieces), self._first_document, pieces)
        while text[place] != "]":
            value, text, place = self._value(text, place, pieces, max_bytes)
            yield value
            text, place = self._filled(text, place, pieces)
            if text[place] == ",":
                text, place = self._filled(text, place + 1, pieces)
            elif text[place] != "]":
                self._refuse("its list is damaged: documents are not apart by commas")
        rest = text[place + 1 :].strip()
        for piece in pieces:
            # Piece by piece: what stands behind may be gigabytes.
            rest += piece.strip()
            if len(rest) > 1:
                break
        if rest != "}":
            self._refuse("its list is damaged: something stands behind its documents")

    def _value(
        self, text: str, place: int, pieces: Iterator[str], max_bytes: int
    ) -> tuple[Any, str, int]:
        """The value at `place`, the text with what was read for it, and where the value ends."""
        while True:
            try:
                value, end = _DECODER.raw_decode(text, place)
            except RecursionError as error:
                self._refuse(f"its list is damaged: {error}")
            except ValueError as error:
                more = _more(pieces, len(text) - place)
                if not more:
                    self._refuse(f"its list is damaged: {error}")
                text, place = text[place:] + more, 0
            else:
                return value, text, end
            if len(text) > 2 * max_bytes + _PIECE_BYTES:
                self._refuse(
                    f"a document of more than {max_bytes} bytes of JSON is refused: "
                    "max_document_bytes and max_document_tokens allow no such one"
                )

    def _filled(self, text: str, place: int, pieces: Iterator[str]) -> tuple[str, int]:
        """The text with something but blanks at the place given."""
        while True:
            blanks = _BLANKS.match(text, place)
            place = blanks.end() if blanks else place
            if place < len(text):
                return text, place
            text, place = next(pieces, ""), 0
            if not text:
                self._refuse("its list is damaged: it has no end")

    def _refuse(self, why: str) -> NoReturn:
        raise InvalidRequest(f"archive {self._path}: {why}")

    def _refuse_file(self, why: str) -> NoReturn:
        raise InvalidRequest(f"{self._path} is no archive of documents: {why}")


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """The archive in the file `path`; InvalidRequest for a file that is none."""
    try:
        with open(path, "rb") as file:
            yield Archive(path, file)
    except OSError as error:
        raise InvalidRequest(f"archive {path} cannot be read: {error.strerror}") from error


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_number)


def _behind(member: Member) -> int:
    """Where the header of the next member is."""
    return member.start + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _more(pieces: Iterator[str], num_characters: int) -> str:
    """The next pieces, as much as there was: so a long document is not decoded too often."""
    more = ""
    while len(more) < num_characters and (piece := next(pieces, "")):
        more += piece
    return more


def _add_manifest(archive: tarfile.TarFile, manifest: Manifest) -> None:
    body = json.dumps({"format_version": FORMAT_VERSION, **asdict(manifest)}).encode()
    info = tarfile.TarInfo(_MANIFEST)
    info.size = len(body)
    archive.addfile(info, io.BytesIO(body))


def _add_chunk(archive: tarfile.TarFile, key: str, content: BinaryIO) -> int:
    info = tarfile.TarInfo(f"{key}{_CHUNK_SUFFIX}")
    info.size = content.seek(0, io.SEEK_END)
    content.seek(0)
    archive.addfile(info, content)
    return info.size


def _document(fields: dict[str, Any]) -> ArchivedDocument:
    ttl = fields["ttl_seconds"]
    return ArchivedDocument(
        namespace=_text(fields, "namespace"),
        id=_text(fields, "id"),
        name=None if fields["name"] is None else _text(fields, "name"),
        text=_text(fields, "text"),
        ttl_seconds=None if ttl is None else _number(ttl),
        chunks=tuple(
            ArchivedChunk(
                tuple(map(_token, chunk["token_ids"])),
                None if chunk["key"] is None else _text(chunk, "key"),
            )
            for chunk in fields["chunks"]
        ),
        head=tuple(map(_token, fields.get("head", ()))),
    )


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str):
        raise TypeError(f"'{name}' is a text, not {kind_of(value)}")
    value.encode()  # half a surrogate pair is a ValueError
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"'ttl_seconds' is a number, not {kind_of(value)}")
    return float(value)


def _token(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_TOKEN_ID:
        raise ValueError(f"a token id is a number from 0 to {MAX_TOKEN_ID}, not {value!r:.80}")
    return value

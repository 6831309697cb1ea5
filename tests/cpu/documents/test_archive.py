"""What an archive's reader believes: nothing that it can bound or check."""

import io
import json
import resource
import struct
import tarfile

import pytest

from legokv.documents.archive import (
    ArchivedChunk,
    ArchivedDocument,
    Manifest,
    open_archive,
    write_archive,
)
from legokv.errors import InvalidRequest

KEY, OTHER_KEY = "a" * 64, "b" * 64
DOCUMENT = ArchivedDocument("default", "doc-1", None, "Text.", None, (ArchivedChunk((1,), KEY),))
MANIFEST = Manifest("f" * 64, (DOCUMENT,))
LIST = json.dumps(
    {
        "format_version": 1,
        "fingerprint": "f" * 64,
        "documents": [
            {
                "namespace": "default",
                "id": "doc-1",
                "name": None,
                "text": "Text.",
                "ttl_seconds": None,
                "chunks": [{"token_ids": [1], "key": KEY}],
            }
        ],
    }
)


def header(name, size, kind=tarfile.REGTYPE, linkname=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, linkname
    return info.tobuf(tarfile.GNU_FORMAT)


def member(name, content, size=None, **fields):
    padding = b"\0" * (-len(content) % 512)
    return header(name, len(content) if size is None else size, **fields) + content + padding


def listed(change=lambda text: text):
    return member("documents.json", change(LIST).encode())


END = b"\0" * 1024


def read(path, max_bytes=2**20, sizes=None):
    with open_archive(path) as archive:
        documents = list(archive.documents(max_bytes))
        members = archive.chunks({KEY: 100} if sizes is None else sizes)
        return documents, [(m.key, bytes(archive.content(m))) for m in members]


def test_what_was_written_is_read_again(tmp_path):
    path = tmp_path / "set.tar"
    done = []
    assert write_archive(path, MANIFEST, [(KEY, io.BytesIO(b"kv"))], done.append) == 1
    assert (done, path.stat().st_mode & 0o777) == ([2], 0o600)
    assert read(path) == ([DOCUMENT], [(KEY, b"kv")])


def test_documents_longer_than_a_piece_and_many_short_ones_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("legokv.documents.archive._PIECE_BYTES", 150)
    documents = tuple(
        ArchivedDocument("n", f"doc-{n}", "ж" * n, "é\n" * n, 1.5, ()) for n in range(40)
    )
    write_archive(tmp_path / "set.tar", Manifest("0" * 64, documents), [], print)
    assert read(tmp_path / "set.tar")[0] == list(documents)


# What is refused before its end is looked for needs none.
HOSTILE = {
    "a negative size": member(f"{KEY}.safetensors", b"", size=-512),
    "a symbolic link": member(f"{KEY}.safetensors", b"", kind=tarfile.SYMTYPE, linkname="/etc/x"),
    "a hard link": member(f"{KEY}.safetensors", b"", kind=tarfile.LNKTYPE, linkname="x"),
    "a device": member(f"{KEY}.safetensors", b"", kind=tarfile.CHRTYPE),
    "a folder": member(f"{KEY}.safetensors", b"", kind=tarfile.DIRTYPE),
    "a sparse file": member(f"{KEY}.safetensors", b"", kind=tarfile.GNUTYPE_SPARSE),
    "an extended header": member("pax", b"19 size=8589934592\n", kind=tarfile.XHDTYPE),
    "a long name": member("././@LongLink", b"x" * 600, kind=tarfile.GNUTYPE_LONGNAME),
    "a chunk too large": member(f"{KEY}.safetensors", b"x" * 101),
    "an unknown chunk": member(f"{OTHER_KEY}.safetensors", b"x"),
    "a path": member("../../x", b"x"),
    "a chunk twice": 2 * member(f"{KEY}.safetensors", b"x") + END,
    "no end": member(f"{KEY}.safetensors", b"x"),
    "a size past the end": header(f"{KEY}.safetensors", 90),
    "half a header": header(f"{KEY}.safetensors", 90)[:100],
    "no header": b"\x1b[31m" * 300,
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_a_member_that_is_no_chunk_of_the_documents_is_refused_in_a_sentence(tmp_path, hostile):
    path = tmp_path / "set.tar"
    path.write_bytes(listed() + hostile)
    with pytest.raises(InvalidRequest) as refusal:
        read(path)
    assert str(path) in str(refusal.value)
    assert "\x1b" not in str(refusal.value)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.GNUTYPE_SPARSE])
def test_a_list_that_is_no_plain_file_is_refused(tmp_path, kind):
    path = tmp_path / "set.tar"
    path.write_bytes(member("documents.json", b"", kind=kind, linkname="x") + END)
    with pytest.raises(InvalidRequest, match="is no plain file"):
        read(path)


CHANGES = {
    "deep": lambda text: text.replace('"Text."', "[" * 100_000),
    "no end": lambda text: text[:-1],
    "more behind": lambda text: text + "{}",
    "two without a comma": lambda text: text[:-2] + " {}]}",
    "another order": lambda text: "{" + text[len('{"format_version": 1, ') :],
    "a fingerprint that escapes": lambda text: text.replace("f" * 64, "\\u001b[31m"),
    "half a surrogate as text": lambda text: text.replace("Text.", "\\ud800"),
    "half a surrogate as name": lambda text: text.replace('"name": null', '"name": "\\ud800"'),
    "a time to live of 400 digits": lambda text: text.replace(
        '"ttl_seconds": null', f'"ttl_seconds": {"9" * 400}'
    ),
    "a time to live of 5000 digits": lambda text: text.replace(
        '"ttl_seconds": null', f'"ttl_seconds": {"9" * 5000}'
    ),
    "a time to live that is no number": lambda text: text.replace(
        '"ttl_seconds": null', '"ttl_seconds": NaN'
    ),
    "a number as text": lambda text: text.replace('"Text."', "5"),
    "a list as name": lambda text: text.replace('"name": null', '"name": []'),
    "a fraction as token": lambda text: text.replace("[1]", "[1.5]"),
    "a token below 0": lambda text: text.replace("[1]", "[-1]"),
    "a token past 31 bits": lambda text: text.replace("[1]", "[2147483648]"),
    "true as token": lambda text: text.replace("[1]", "[true]"),
    "a text as chunks": lambda text: text.replace('[{"token_ids": [1], ', '"abc", "x": [{'),
    "not UTF-8": lambda text: text.replace("Text.", "\udcff"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_list_that_is_not_as_this_program_writes_it_is_refused_in_a_sentence(tmp_path, change):
    path = tmp_path / "set.tar"
    body = change(LIST).encode("utf-8", "surrogateescape")
    path.write_bytes(member("documents.json", body) + END)
    with pytest.raises(InvalidRequest, match=r"archive .*: its list is damaged") as refusal:
        read(path)
    assert len(str(refusal.value)) < 1000
    assert "\x1b" not in str(refusal.value)


def test_a_document_longer_than_one_may_be_is_refused_before_all_of_it_is_read(tmp_path):
    path = tmp_path / "set.tar"
    path.write_bytes(listed(lambda whole: whole.replace("Text.", "x" * 50_000_000)) + END)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidRequest, match="a document of more than 1000000 bytes of JSON"):
        read(path, max_bytes=1_000_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000  # kilobytes


def test_a_size_that_only_base_256_can_say_is_refused(tmp_path):
    block = bytearray(header("documents.json", 0))
    block[124:136] = b"\x80" + struct.pack(">Q", 2**62).rjust(11, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "set.tar").write_bytes(block + END)
    with pytest.raises(InvalidRequest, match="was cut short"):
        read(tmp_path / "set.tar")


def test_gigabytes_behind_the_documents_are_not_read(tmp_path):
    path = tmp_path / "set.tar"
    size = 2**31 - 1
    with path.open("wb") as file:
        file.write(header("documents.json", size) + LIST.encode())
        file.truncate(512 + size + 1024)  # sparse: zeros that lie on no disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidRequest, match="something stands behind its documents"):
        read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB

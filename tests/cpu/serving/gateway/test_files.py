"""Files: documents of the registry in OpenAI's and Anthropic's shapes."""

import asyncio
import base64
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from gateway_world import RunningGateway, running_gateway

from legokv.documents.compiling import Compiler
from legokv.errors import ApiRefused, Busy
from legokv.serving.gateway import extract, files
from legokv.serving.gateway.extract import kind_of
from legokv.serving.gateway.library import shown_name, shown_title

DATA = base64.b64encode(b"Of a chat.").decode()
TEXT = "The harbour of Vellin has three lighthouses.\r\nOrrin keeps the oldest.\n\n"


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[RunningGateway]:
    with running_gateway(tmp_path) as one:
        yield one


@pytest.fixture
def client(gateway: RunningGateway) -> openai.OpenAI:
    return gateway.openai()


def upload(client: openai.OpenAI, text: str = TEXT, name: str = "harbour.txt", **fields: object):
    return client.files.create(file=(name, text.encode()), purpose="user_data", **fields)


def pdf_of(text: str) -> bytes:
    """A PDF of one page that says this, written by hand."""
    stream = f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET".encode()
    bodies = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 200]/Contents 4 0 R"
        b"/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(stream), stream),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    out, places = io.BytesIO(), []
    out.write(b"%PDF-1.4\n")
    for number, body in enumerate(bodies, 1):
        places.append(out.tell())
        out.write(b"%d 0 obj" % number + body + b"endobj\n")
    start = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(bodies) + 1))
    out.write(b"".join(b"%010d 00000 n \n" % place for place in places))
    out.write(
        b"trailer\n<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (len(bodies) + 1, start)
    )
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("b\x1b[31m.txt", "b\ufffd[31m.txt"),
        ("bill\u202efdp.txt", "bill\ufffdfdp.txt"),
        ("../../etc/passwd", "passwd"),
        ("..\\boot.ini.txt", "boot.ini.txt"),
        ("\u05d7\u05d5\u05d6\u05d4.txt", "\u05d7\u05d5\u05d6\u05d4.txt"),
        ("👩\u200d🔬.txt", "👩\u200d🔬.txt"),
        ("x" * 300 + ".txt", "x" * 252 + ".txt"),
        ("x" * 300, "x" * 256),
    ],
)
def test_a_name_is_shown_without_what_drives_a_terminal_or_turns_letters(
    name: str, shown: str, gateway: RunningGateway, client: openai.OpenAI
) -> None:
    assert shown_name(name) == shown
    file = client.files.create(file=(name, b"Orrin."), purpose="user_data")
    assert client.files.retrieve(file.id).filename == shown
    asked: Any = [
        {
            "role": "user",
            "content": [{"type": "file", "file": {"file_data": DATA, "filename": name}}],
        }
    ]
    client.chat.completions.create(model="tiny", messages=asked)
    listed = gateway.models.service.reply({"operation": "list"})["documents"]
    assert {document["name"] for document in listed} == {
        shown,
        f"inline/{shown_title(shown_name(name), 249)}",
    }


def test_a_file_comes_back_as_it_was_and_is_processed_when_it_is_compiled(
    client: openai.OpenAI, gateway: RunningGateway
) -> None:
    file = upload(client)
    assert (file.filename, file.bytes, file.purpose) == ("harbour.txt", len(TEXT), "user_data")
    assert client.files.wait_for_processing(file.id, poll_interval=0.02).status == "processed"
    assert gateway.store.compiled
    assert client.files.content(file.id).read() == TEXT.encode()
    assert client.files.retrieve(file.id).bytes == len(TEXT)


def test_the_same_content_is_the_same_file_under_its_last_name(client: openai.OpenAI) -> None:
    first = upload(client)
    again = upload(client, name="folder/again.txt")
    assert (again.id, again.filename) == (first.id, "again.txt")
    assert [file.id for file in client.files.list()] == [first.id]


def test_a_list_goes_on_after_a_file_in_either_order(client: openai.OpenAI) -> None:
    ids = [upload(client, f"Text number {number}.").id for number in range(5)]
    assert [file.id for file in client.files.list(order="asc", limit=2)] == ids
    assert [file.id for file in client.files.list()] == ids[::-1]
    page = client.files.list(order="asc", after=ids[2], limit=1)
    assert ([file.id for file in page.data], page.has_more) == ([ids[3]], True)
    with pytest.raises(openai.BadRequestError, match="no file 'file-x' to go on after"):
        client.files.list(after="file-x")


def test_a_page_of_the_list_is_one_question_of_a_few_hundred_rows(
    client: openai.OpenAI, gateway: RunningGateway
) -> None:
    ids = [upload(client, f"Text number {number}.").id for number in range(7)]
    for path, want in (("?limit=2", ids[:4:-1]), (f"?limit=3&after={ids[5]}", ids[4:1:-1])):
        gateway.models.documents.clear()
        with urllib.request.urlopen(f"{gateway.url}/v1/files{path}", timeout=60) as response:
            page = json.loads(response.read())
        assert ([file["id"] for file in page["data"]], page["has_more"]) == (want, True)
        (asked,) = gateway.models.documents
        assert asked["limit"] == 256
    with anthropic.Anthropic(base_url=gateway.url, api_key="none") as other:
        gateway.models.documents.clear()
        named = other.files.list(extra_query={"ids": [ids[3], "file-none", ids[3]]})
        assert [file.id for file in named.data] == [ids[3]]
        assert [asked["operation"] for asked in gateway.models.documents] == ["get", "get"]


def test_texts_of_chats_between_files_cost_no_file_its_place(
    client: openai.OpenAI, gateway: RunningGateway
) -> None:
    first = upload(client, "First.").id
    for number in range(5):
        client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "Who?"}],
            extra_body={"documents": [{"text": f"Inline {number}."}]},
        )
    second = upload(client, "Second.").id
    page = client.files.list(limit=1)
    assert ([file.id for file in page.data], page.has_more) == ([second], True)
    page = client.files.list(limit=1, after=second)
    assert ([file.id for file in page.data], page.has_more) == ([first], False)
    lists = [one for one in gateway.models.documents if one["operation"] == "list"]
    assert len(lists) == 2


def test_a_client_that_leaves_ends_the_search_for_its_page(gateway: RunningGateway) -> None:
    begun, gone = threading.Event(), threading.Event()

    async def documents(operation: str, **fields: Any) -> dict[str, Any]:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            gone.set()
        raise AssertionError("nobody sets it")

    gateway.world.models.documents = documents  # type: ignore[method-assign]
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as connection:
        connection.sendall(b"GET /v1/files?limit=1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert begun.wait(20)
    assert gone.wait(20)


def test_an_upload_may_ask_for_its_ranking(client: openai.OpenAI, gateway: RunningGateway) -> None:
    upload(client)
    upload(client, extra_body={"rank": "true"})
    upload(client, extra_body={"rank": "false"})
    ranked = [asked for asked in gateway.models.documents if asked["operation"] == "get"]
    assert [(asked["wait"], asked["rank"]) for asked in ranked] == [(True, True)]
    with pytest.raises(openai.BadRequestError, match="'rank' is true or false, not '1'"):
        upload(client, extra_body={"rank": "1"})


def test_a_file_that_is_to_be_ranked_is_processed_when_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def rank(compiler: Compiler, namespace: str, document_id: str) -> int:
        begun.set()
        may_end.wait(30)
        return 1

    monkeypatch.setattr(Compiler, "rank", rank)
    with running_gateway(tmp_path, rank_documents="on") as gateway:
        client = gateway.openai()
        plain = upload(client, "Not ranked.", extra_body={"rank": "false"})
        file = upload(client)
        begun.wait(30)
        assert client.files.wait_for_processing(plain.id, poll_interval=0.02).status == "processed"
        assert client.files.retrieve(file.id).status == "uploaded"
        assert [one.status for one in client.files.list()] == ["uploaded", "processed"]
        may_end.set()
        assert client.files.wait_for_processing(file.id, poll_interval=0.02).status == "processed"


def test_no_path_leads_where_a_client_s_host_says(gateway: RunningGateway) -> None:
    for path in ("/v1/files/", "/v1/chat/completions/", "/docs/", "/v1/files/file-x/content/"):
        with socket.create_connection(("127.0.0.1", gateway.port)) as plain:
            plain.sendall(f"GET {path} HTTP/1.1\r\nhost: evil.example\r\n\r\n".encode())
            head = plain.recv(2**16).partition(b"\r\n\r\n")[0].lower()
        assert head.startswith(b"http/1.1 404"), path
        assert b"evil" not in head


def test_a_deleted_file_is_gone_with_all_that_was_kept_of_it(
    client: openai.OpenAI, gateway: RunningGateway
) -> None:
    file = upload(client)
    client.files.wait_for_processing(file.id, poll_interval=0.02)
    assert client.files.delete(file.id).deleted
    assert gateway.store.dropped
    assert gateway.uploads.data("default", file.id.replace("file-", "doc-")) is None
    with pytest.raises(openai.NotFoundError, match=f"no file '{file.id}' .GET /v1/files lists"):
        client.files.retrieve(file.id)


def test_a_file_past_its_time_is_not_there(client: openai.OpenAI, gateway: RunningGateway) -> None:
    file = upload(client, expires_after={"anchor": "created_at", "seconds": 60})
    assert file.expires_at is not None
    assert 59 <= file.expires_at - file.created_at <= 61
    change = {"operation": "update", "ttl_seconds": 1e-6}
    gateway.models.service.reply({**change, "id": file.id.replace("file-", "doc-")})
    with pytest.raises(openai.NotFoundError, match="its time was over"):
        client.files.retrieve(file.id)
    assert list(client.files.list()) == []
    assert upload(client).expires_at is None


def test_files_are_ranked_a_few_at_once_and_what_failed_or_fell_short_is_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lock, may_end = threading.Lock(), threading.Event()
    running, most, outcomes = [], [], iter([None, 0, *[1] * 8])

    def rank(compiler: Compiler, namespace: str, document_id: str) -> int:
        with lock:
            running.append(document_id)
            most.append(len(running))
            outcome = next(outcomes)
            if len(running) == 4:
                may_end.set()
        assert may_end.wait(20)
        with lock:
            running.remove(document_id)
        if outcome is None:
            raise Busy("the engine was lost")
        return outcome

    monkeypatch.setattr(Compiler, "rank", rank)
    with running_gateway(tmp_path, rank_documents="on") as gateway:
        client = gateway.openai()
        ids = [upload(client, f"Text number {number}.").id for number in range(10)]
        for file_id in ids:
            file = client.files.wait_for_processing(file_id, poll_interval=0.02)
            assert file.status == "processed"
    assert (len(most), max(most)) == (10, 4)
    told = [record.getMessage() for record in caplog.records if record.name == files.__name__]
    assert len(told) == 2
    assert any("was not compiled and ranked behind its request: the engine" in one for one in told)
    assert any("0 of its 1 chunks are ranked" in one for one in told)


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("a.pdf", pdf_of("Orrin keeps the oldest."), "Orrin keeps the oldest."),
        (
            "a.html",
            b"<title>No</title><h1>Vellin</h1><p>Orrin <b>keeps</b> it.</p><script>x()</script>",
            "No\nVellin\nOrrin keeps it.",
        ),
        ("a.md", "\ufeff# Größe".encode(), "# Größe"),
    ],
)
def test_a_document_has_the_text_of_its_file(
    client: openai.OpenAI, gateway: RunningGateway, name: str, data: bytes, text: str
) -> None:
    file = client.files.create(file=(name, data), purpose="user_data")
    reply = gateway.models.service.reply(
        {"operation": "get", "id": file.id.replace("file-", "doc-"), "text": True}
    )
    assert reply["text"] == text
    assert client.files.content(file.id).read() == data


@pytest.mark.parametrize(
    ("name", "data", "status", "said"),
    [
        ("a.png", b"\x89PNG", 400, "'a.png' is no file that text is read of"),
        ("a.pdf", b"%PDF-1.4 nothing", 422, "no text was read"),
        ("a.txt", b"ab\xff", 422, "byte 0xff at offset 2 of 3"),
        ("a.txt", b" \n", 422, "nothing but blanks"),
        ("a.txt", b"x" * 2001, 400, "2001 bytes, at most 2000 fit"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_by_name(
    client: openai.OpenAI, name: str, data: bytes, status: int, said: str
) -> None:
    with pytest.raises(openai.APIStatusError, match=said) as refused:
        client.files.create(file=(name, data), purpose="user_data")
    assert refused.value.status_code == status
    assert list(client.files.list()) == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"purpose": "batch"}, "'purpose' is user_data, not 'batch'"),
        (
            {"purpose": "user_data", "expires_after": {"anchor": "created_at", "seconds": -1}},
            "whole number of seconds from 1 to .*, not '-1'",
        ),
        ({"purpose": "user_data", "extra_body": {"colour": "red"}}, "unknown field 'colour'"),
    ],
)
def test_a_form_with_other_fields_is_refused_by_name(
    client: openai.OpenAI, fields: dict[str, object], said: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        client.files.create(file=("a.txt", b"text"), **fields)


def test_a_file_longer_than_a_request_may_be_is_refused(tmp_path: Path) -> None:
    with running_gateway(tmp_path, max_request_bytes=1000) as gateway:
        with pytest.raises(openai.APIStatusError, match="at most 1000 fit") as refused:
            upload(gateway.openai(), "x" * 5000)
        assert refused.value.status_code == 413


def test_anthropic_s_client_finds_the_same_files_in_its_own_shape(gateway: RunningGateway) -> None:
    file = upload(gateway.openai())
    client = anthropic.Anthropic(base_url=gateway.url, api_key="none", max_retries=0)
    other = client.files.upload(file=("b.txt", b"Another text.", "text/plain"))
    assert (other.filename, other.mime_type, other.size_bytes) == ("b.txt", "text/plain", 13)
    assert [one.id for one in client.files.list(limit=1)] == [other.id, file.id]
    assert client.files.retrieve_metadata(file.id).filename == "harbour.txt"
    assert client.files.delete(other.id).type == "file_deleted"
    with pytest.raises(anthropic.NotFoundError):
        client.files.retrieve_metadata(other.id)


def test_a_name_tells_what_a_file_is_and_its_first_bytes_tell_better() -> None:
    assert kind_of("a.bin", "", b"%PDF-1.7") == "pdf"
    assert kind_of("a.bin", "text/html; charset=utf-8", b"") == "html"
    assert kind_of("README", "", b"") == "text"
    with pytest.raises(ApiRefused):
        kind_of("a.docx", "application/octet-stream", b"PK")


def test_files_and_their_originals_survive_a_restart(tmp_path: Path) -> None:
    with running_gateway(tmp_path) as gateway:
        client = gateway.openai()
        file = upload(client)
        # Its thread outlives the gateway here, and would hold the claim: there is one process.
        client.files.wait_for_processing(file.id, poll_interval=0.02)
    with running_gateway(tmp_path) as gateway:
        client = gateway.openai()
        again = client.files.retrieve(file.id)
        assert (again.filename, again.bytes) == (file.filename, file.bytes)
        assert client.files.content(file.id).read() == TEXT.encode()
        assert again.status == "processed"


def test_bodies_together_are_bounded_and_small_ones_are_still_taken(tmp_path: Path) -> None:
    with running_gateway(tmp_path, max_request_bytes=200_000) as gateway:
        head = b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 190000\r\n\r\n"
        held = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(9)]
        for connection in held:
            connection.sendall(head + b" " * 189_000)
        refused = [connection for connection in held if answer_of(connection)]
        assert len(refused) == 1
        assert b"bytes are read, at most 1600000 at once" in answer_of(refused[0])
        assert upload(gateway.openai(), "Small.").status == "uploaded"
        for connection in held:
            connection.close()


def answer_of(connection: socket.socket) -> bytes:
    """What came within a second; "" if nothing did."""
    connection.settimeout(1)
    try:
        return connection.recv(65536, socket.MSG_PEEK)
    except TimeoutError:
        return b""


def test_pages_that_take_long_to_read_wait_for_one_another_and_end(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "MAX_WAITING", 0)
    with pytest.raises(openai.InternalServerError, match="0 files wait to be read as PDF or HTML"):
        gateway.openai().files.create(file=("a.html", b"<p>x</p>"), purpose="user_data")
    monkeypatch.setattr(extract, "MAX_WAITING", 16)
    monkeypatch.setattr(extract, "MAX_SECONDS", 0.01)
    with pytest.raises(openai.UnprocessableEntityError, match=r"not read within 0\.01 s"):
        gateway.openai().files.create(file=("a.html", b"<p>x</p>"), purpose="user_data")
    monkeypatch.setattr(extract, "MAX_SECONDS", 60)
    file = gateway.openai().files.create(file=("a.html", b"<p>x</p>"), purpose="user_data")
    assert gateway.openai().files.content(file.id).read() == b"<p>x</p>"


def test_a_page_that_takes_the_processor_is_given_up() -> None:
    hostile = b"<html>" + b"<a " * 300_000
    ended = subprocess.run(
        [sys.executable, "-c", _LIMITED],
        input=hostile,
        capture_output=True,
        check=False,
        timeout=600,
    )
    assert ended.returncode == -signal.SIGXCPU


_LIMITED = """
from legokv.serving.gateway import extract
extract.MAX_CPU_SECONDS = 2
import os, sys
# Behind everybody, two seconds of a busy machine's processor may take minutes.
os.nice = lambda by: 0
sys.argv = ["extract", "html"]
extract.main()
"""


def test_a_damaged_pdf_is_unreadable_whenever_its_reader_ends(gateway: RunningGateway) -> None:
    for body in (b"%PDF-1.7\n" + b"\x00\xff" * 100_000, b"%PDF-1.7\n1 0 obj\n" + b"[" * 200_000):
        with pytest.raises(openai.UnprocessableEntityError, match="damaged, locked, or no pdf"):
            gateway.openai().files.create(file=("x.pdf", body), purpose="user_data")

"""The real server's log has one JSON line for each request that ended, and no text of a prompt."""

import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from server import RunningServer, refusal, replies, serving, tensor
from tritonclient.utils import InferenceServerException

MARKED = "Heliotrope. The keeper of the oldest lighthouse is called Orrin. " * 4
QUESTION = "Who keeps the heliotrope?"
SETTLED_SECONDS = 60


class Log:
    """A server's standard error in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[dict[str, Any]]:
        """All lines that are JSON objects."""
        text = self.path.read_text()
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def line(self, request_id: str) -> dict[str, Any]:
        """The one line of a request, waiting for it to be written."""
        (line,) = self.of(request_id)
        return line

    def of(self, request_id: str, number: int = 1) -> list[dict[str, Any]]:
        """All lines of an id, once there are so many of them."""
        deadline = time.monotonic() + SETTLED_SECONDS
        while len(found := [x for x in self.lines() if x["request_id"] == request_id]) < number:
            assert time.monotonic() < deadline, self.path.read_text()
            time.sleep(0.05)
        return found


@pytest.fixture(scope="module")
def logged(
    engine_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunningServer, Log]]:
    folder = tmp_path_factory.mktemp("logged")
    with (
        (folder / "log").open("wb") as file,
        serving(engine_folder, folder / "cache", log=file) as server,
    ):
        yield server, Log(folder / "log")


def test_an_answer_s_line_says_what_its_reply_says(logged: tuple[RunningServer, Log]) -> None:
    server, log = logged
    ids = server.register(MARKED, namespace="tenant-a")
    fields = {"text_input": QUESTION, "document_ids": ids, "namespace": "tenant-a"}
    for stream in (False, True):
        with closing(server.client()) as client:
            asked = {**fields, "max_tokens": 6, "stream": stream}
            *_, reply = replies(client, request_id=f"mine {stream}", **asked)
        line = log.line(f"mine {stream}")
        assert reply["request_id"] == f"mine {stream}"
        for name, value in reply.items():
            if name.endswith(("_tokens", "_seconds")) or name == "documents_linked":
                assert line[name] == pytest.approx(value), name
        assert line["finish_reason"] == reply["finish_reason"]
        assert (line["model"], line["level"]) == ("generate", "info")
        assert line["namespace"] == "tenant-a"


def test_without_an_id_the_server_gives_one_and_tells_it(
    logged: tuple[RunningServer, Log],
) -> None:
    server, log = logged
    first, second = (server.ask(text_input=QUESTION, max_tokens=1) for _ in range(2))
    assert first["request_id"] != second["request_id"]
    assert log.line(first["request_id"])["prompt_tokens"] == first["prompt_tokens"]


def test_an_id_in_a_request_over_http_is_the_reply_s_and_the_line_s(
    logged: tuple[RunningServer, Log],
) -> None:
    server, log = logged
    body = json.dumps({"id": "over http", "text_input": QUESTION, "max_tokens": 2}).encode()
    status, reply = server.post("/v2/models/generate/generate", body)
    assert status == 200
    assert json.loads(reply)["request_id"] == "over http"
    assert log.line("over http")["generated_tokens"] == 2


def test_a_refused_request_s_line_has_the_code_and_the_sentence(
    logged: tuple[RunningServer, Log],
) -> None:
    server, log = logged
    with (
        closing(server.client()) as client,
        pytest.raises(InferenceServerException) as refused,
    ):
        list(replies(client, request_id="wrong", text_input=QUESTION, document_ids=["doc-0"]))
    line = log.line("wrong")
    _, sentence = refusal(refused.value)
    assert line["error"] == {"code": "NOT_FOUND", "message": sentence}
    assert (line["level"], line["namespace"]) == ("warning", "default")
    assert "finish_reason" not in line


def test_a_client_that_goes_away_leaves_a_line(logged: tuple[RunningServer, Log]) -> None:
    server, log = logged
    with closing(server.client()) as client:
        # Long enough that it is still under way when the front and the model have noticed.
        likeliest = {"return_log_probs": True, "num_top_log_probs": 20, "max_tokens": 1500}
        likeliest |= {"min_tokens": 1500, "num_return_sequences": 8, "temperature": 1.0}
        leaving = replies(client, request_id="gone", text_input=QUESTION, stream=True, **likeliest)
        next(leaving)
        leaving.close()
    assert log.line("gone")["error"]["code"] == "CANCELLED"


def test_requests_of_one_id_at_once_are_each_answered(logged: tuple[RunningServer, Log]) -> None:
    server, log = logged

    def ask(number: int) -> int:
        fields = {"text_input": QUESTION, "max_tokens": 20 + number, "request_id": "twice"}
        return int(server.ask(**fields)["generated_tokens"])

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(ask, range(4))) == [20, 21, 22, 23]
    lines = log.of("twice", 4)
    assert sorted(line["generated_tokens"] for line in lines) == [20, 21, 22, 23]


def test_an_id_too_long_to_keep_is_refused_with_its_length(
    logged: tuple[RunningServer, Log],
) -> None:
    server, log = logged
    with pytest.raises(InferenceServerException, match="id has 129 characters, at most 128"):
        server.ask(text_input=QUESTION, request_id="i" * 129)
    assert log.line("i" * 128)["error"]["code"] == "INVALID_ARG"


def test_a_registration_has_a_line_too(logged: tuple[RunningServer, Log]) -> None:
    server, log = logged
    body = json.dumps({"operation": "create", "text": MARKED, "namespace": "b"}).encode()
    with closing(server.client()) as client:
        given = [tensor("request", "BYTES", [body], batch=False)]
        client.infer("documents", given, request_id="registers")
    line = log.line("registers")
    assert (line["model"], line["operation"], line["namespace"]) == ("documents", "create", "b")
    assert line["total_seconds"] > 0


def test_no_line_has_any_text_of_documents_questions_or_answers(
    logged: tuple[RunningServer, Log],
) -> None:
    server, log = logged
    ids = server.register(MARKED)
    fields = {
        "text_input": QUESTION,
        "document_ids": ids,
        "system_text": "You are a heliotrope.",
        "stop_words": ["heliotrope"],
        "max_tokens": 8,
    }
    said = server.ask(**fields)
    log.line(said["request_id"])
    text = log.path.read_text().lower()
    assert "heliotrope" not in text
    assert json.dumps(said["text_output"])[1:-1].lower() not in text


def test_each_line_is_whole_and_alone_beside_what_triton_writes(
    logged: tuple[RunningServer, Log],
) -> None:
    server, log = logged
    output = os.open(f"/proc/{server.processes()[0]}/fd/2", os.O_WRONLY)
    over = threading.Event()

    def write_as_triton_does() -> None:
        while not over.is_set():
            os.write(output, b"E1129 14:38:06.2 937 server.cc:241] " + os.urandom(8).hex().encode())
            time.sleep(0.001)
            os.write(output, b"\n")

    def ask(number: int) -> None:
        with suppress(InferenceServerException):
            server.ask(text_input=QUESTION, max_tokens=number % 2, request_id=f"beside {number}")

    writing = threading.Thread(target=write_as_triton_does)
    writing.start()
    try:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(ask, range(40)))
    finally:
        over.set()
        writing.join()
        os.close(output)
    for number in range(40):
        assert log.line(f"beside {number}")["request_id"] == f"beside {number}"
    lines = log.path.read_text().splitlines()
    assert all(line.startswith("{") for line in lines if '"request_id"' in line)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"log_level": "warning"}, ["wrong"]),
        ({"request_log": "off"}, []),
    ],
)
def test_lines_are_written_as_the_settings_say(
    engine_folder: Path, tmp_path: Path, settings: dict[str, str], expected: list[str]
) -> None:
    path = tmp_path / "log"
    with (
        path.open("wb") as file,
        serving(engine_folder, tmp_path / "cache", log=file, **settings) as server,
    ):
        server.ask(text_input=QUESTION, max_tokens=1, request_id="right")
        with pytest.raises(InferenceServerException):
            server.ask(text_input=QUESTION, document_ids=["doc-0"], request_id="wrong")
        server.ask(text_input=QUESTION, max_tokens=1, request_id="right")
    assert [line["request_id"] for line in Log(path).lines()] == expected

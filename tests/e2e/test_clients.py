"""The client scripts against the real server, as a user runs them."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from paths import CLIENT
from ports import free_port
from server import RunningServer
from server_texts import TEXTS

NO_DOCUMENT = "no document is called 'nowhere' in namespace 'clients'"


def run(
    server: RunningServer, script: str, *arguments: str, text: str = ""
) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(CLIENT / script), "--url", server.grpc, "--namespace", "clients"]
    return subprocess.run(
        [*command, *arguments], input=text, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("texts")
    for number, text in enumerate(TEXTS):
        (made / f"text{number}.txt").write_text(text, encoding="utf-8")
    (made / "ignored.bin").write_bytes(b"\xff\x00")
    return made


def documents(server: RunningServer, *arguments: str, text: str = "") -> list[dict[str, object]]:
    result = run(server, "documents.py", "--format", "json", *arguments, text=text)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_folder_is_added_listed_shown_changed_and_deleted(
    server: RunningServer, folder: Path
) -> None:
    added = documents(server, "add", str(folder))
    assert [document["name"] for document in added] == ["text0", "text1", "text2", "text3"]
    assert documents(server, "list") == documents(server, "list")
    assert [d["id"] for d in documents(server, "list")] == [d["id"] for d in added]
    (shown,) = documents(server, "show", "text2", "--text")
    assert shown["text"] == TEXTS[2].strip()
    (changed,) = documents(server, "update", "text2", "--name", "other", "--pin")
    assert (changed["name"], changed["pinned"]) == ("other", True)
    (timed,) = documents(server, "update", "other", "--ttl-seconds", "60")
    assert timed["expires_at"] is not None
    (timeless,) = documents(server, "update", "other", "--ttl-seconds", "none")
    assert timeless["expires_at"] is None
    documents(server, "delete", "other", "text0")
    assert [d["name"] for d in documents(server, "list")] == ["text1", "text3"]
    documents(server, "delete", "text1", "text3")


def test_a_document_is_added_warm(server: RunningServer, tmp_path: Path) -> None:
    (tmp_path / "mill.txt").write_text("The mill of Vellin grinds on Mondays.")
    (added,) = documents(server, "add", "--warm", "pool", str(tmp_path))
    assert added["warmed_chunks"] == added["num_chunks"] == 1
    result = run(server, "documents.py", "add", "--warm", "host", str(tmp_path))
    assert "1 of its chunks warm" in result.stdout
    result = run(server, "documents.py", "add", "--rank", str(tmp_path))
    assert "1 of its chunks ranked" in result.stdout
    documents(server, "delete", "mill")


def test_standard_input_is_a_document(server: RunningServer) -> None:
    (added,) = documents(server, "add", "-", "--name", "piped", text="The bridge has four arches.")
    assert added["state"] == "ready"
    (again,) = documents(server, "add", "-", text="The bridge has four arches.")
    assert (again["id"], again["name"]) == (added["id"], "piped")
    documents(server, "delete", "piped")


def test_a_file_that_is_not_text_is_told_of_and_the_others_are_added(
    server: RunningServer, tmp_path: Path
) -> None:
    (tmp_path / "good.txt").write_text("The bridge has four arches.")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xfa")
    result = run(server, "documents.py", "--format", "json", "add", str(tmp_path))
    assert result.returncode == 1
    assert "bad.txt: not UTF-8" in result.stderr
    assert json.loads(result.stdout)["name"] == "good"
    documents(server, "delete", "good")


def test_a_question_streams_its_answer_and_ends_with_what_it_took(
    server: RunningServer, folder: Path
) -> None:
    documents(server, "add", str(folder))
    question = ("ask.py", "Who keeps it?", "--max-tokens", "12", "--documents", "text0", "text2")
    plain = run(server, *question)
    assert plain.returncode == 0, plain.stderr
    assert "cached" in plain.stderr
    lines = run(server, *question, "--format", "json").stdout.splitlines()
    replies = [json.loads(line) for line in lines]
    assert "".join(reply["text_output"] for reply in replies) == plain.stdout.removesuffix("\n")
    assert len(replies) > 3
    assert replies[-1]["documents_linked"] == 2
    full = run(server, *question, "--format", "json", "--full").stdout.splitlines()
    assert json.loads(full[-1])["cached_tokens"] == 0
    few = run(server, *question, "--format", "json", "--link-tokens", "3").stdout.splitlines()
    assert json.loads(few[-1])["recomputed_tokens"] < replies[-1]["recomputed_tokens"]


def test_a_conversation_in_a_file_is_answered_over_the_documents_in_it(
    server: RunningServer, folder: Path, tmp_path: Path
) -> None:
    added = {str(d["name"]): d["id"] for d in documents(server, "add", str(folder))}
    asked = [
        {"type": "document", "id": added["text0"]},
        {"type": "document", "id": added["text2"]},
        {"type": "text", "text": "Who keeps it?"},
    ]
    said = tmp_path / "said.json"
    said.write_text(json.dumps([{"role": "user", "content": asked}]), encoding="utf-8")
    options = ("--max-tokens", "12", "--format", "json")
    plain = run(server, "ask.py", "Who keeps it?", *options, "--documents", "text0", "text2")
    talk = run(server, "ask.py", "--messages", str(said), *options)
    assert talk.returncode == 0, talk.stderr
    answers, counts = [], []
    for result in (plain, talk):
        replies = [json.loads(line) for line in result.stdout.splitlines()]
        answers.append("".join(reply["text_output"] for reply in replies))
        counts.append((replies[-1]["prompt_tokens"], replies[-1]["documents_linked"]))
    assert answers[0] == answers[1]
    assert counts[0] == counts[1]
    refused = run(server, "ask.py", "--messages", str(said), "--system-text", "Lie.")
    assert refused.returncode == 1
    assert "'messages' and 'system_text' are both there" in refused.stderr


def test_what_had_to_be_compiled_is_said_beside_what_is_cached(server: RunningServer) -> None:
    new_head = ("ask.py", "Who?", "--max-tokens", "2", "--system-text", "You are a miller.")
    first, second = (run(server, *new_head).stderr for _ in range(2))
    counts = r"(\d+) cached, 0 recomputed, \d+ fresh; (\d+) of the cached and .* compiled first"
    cached, compiled = map(int, re.search(counts, first).groups())
    assert cached == compiled > 0
    assert tuple(map(int, re.search(counts, second).groups())) == (cached, 0)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            ("ask.py", "Who?", "--documents", "nowhere"),
            NO_DOCUMENT,
        ),
        (("ask.py", "Who?", "--link-tokens", "-4"), "link_tokens"),
        (("ask.py", "Who?", "--max-tokens", "99999999999"), "max_tokens is 99999999999, outside"),
        (("ask.py", "Who?", "--seed", "-3"), "seed is -3, outside 0 to"),
        (
            ("documents.py", "delete", "nowhere"),
            NO_DOCUMENT,
        ),
        (("documents.py", "add", "/nowhere.txt"), "No such file"),
    ],
)
def test_a_refused_command_prints_the_reason_and_fails(
    server: RunningServer, arguments: tuple[str, ...], reason: str
) -> None:
    result = run(server, *arguments)
    assert result.returncode == 1
    assert reason in result.stderr
    assert "Traceback" not in result.stderr


def test_several_answers_are_printed_one_after_another_with_what_they_took(
    server: RunningServer,
) -> None:
    drawn = ("--temperature", "1.2", "--seed", "3", "--max-tokens", "8", "--return-log-probs")
    result = run(server, "ask.py", "Who?", *drawn, "--num-return-sequences", "2")
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.removeprefix("[0] ").split("\n\n[1] ")
    assert first != second.strip()
    assert "8, 8 generated, length, length;" in result.stderr
    assert "log-probability -" in result.stderr
    (one,) = run(server, "ask.py", "Who?", *drawn).stdout.splitlines()[:1]
    assert first.startswith(one)


def test_a_server_that_is_not_there_is_said_so(server: RunningServer) -> None:
    gone = replace(server, grpc=f"127.0.0.1:{free_port()}")
    result = run(gone, "ask.py", "Who?")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "connect" in result.stderr.lower()


def test_an_empty_namespace_is_refused_by_every_script(server: RunningServer) -> None:
    for words in (("ask.py", "Who?"), ("documents.py", "list")):
        result = run(server, words[0], "--namespace", "", *words[1:])
        assert (result.returncode, result.stdout) == (1, "")
        assert "a namespace is 1 to 64" in result.stderr
        assert "Traceback" not in result.stderr

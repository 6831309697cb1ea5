"""What `documents.py add` says and does about names, and how both scripts read their words."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paths import CLIENT


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The scripts' modules `documents` and `ask`, as Python imports them when they are run."""
    monkeypatch.syspath_prepend(str(CLIENT))
    import ask
    import documents

    return argparse.Namespace(ask=ask, documents=documents)


class FakeServer:
    """Keeps documents by their texts, as a server does."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, Any]] = {}

    def documents(self, operation: str, **fields: Any) -> dict[str, Any]:
        if operation == "create":
            text = fields.pop("text").strip()
            created = text not in self.kept
            new = {"id": f"doc-{len(self.kept)}", "name": None, "state": "ready", "failure": None}
            document = self.kept.setdefault(text, new | {"num_tokens": 3, "num_chunks": 1})
            document.update(fields)
            return {"document": dict(document), "created": created}
        (text,) = (text for text, kept in self.kept.items() if kept["id"] == fields["id"])
        if operation == "get":
            return {"document": dict(self.kept[text]), "text": text}
        self.kept[text].update(fields)
        return {"document": dict(self.kept[text])}

    def all_documents(self, name: str | None = None) -> Iterator[dict[str, Any]]:
        yield from (dict(d) for d in self.kept.values() if name in (None, d["name"]))

    def document_id(self, name: str) -> str:
        (document,) = self.all_documents(name)
        return str(document["id"])

    def names(self) -> dict[str, str | None]:
        return {text: document["name"] for text, document in self.kept.items()}


@pytest.fixture
def add(client: Any, tmp_path: Path) -> Any:
    """`add(server, {file: text}, *options)`: the status of `documents.py add FILES OPTIONS`."""

    def run(server: FakeServer, files: dict[str, str], *options: str) -> int:
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        words = ["add", *(str(tmp_path / name) for name in files), *options]
        status: int = client.documents.add(server, client.documents.parse_arguments(words))
        return status

    return run


def test_a_file_gives_a_document_its_name(add: Any) -> None:
    server = FakeServer()
    assert add(server, {"sea.txt": "The sea.", "mill.md": "The mill."}, "--pin") == 0
    assert server.names() == {"The sea.": "sea", "The mill.": "mill"}
    assert [document["pinned"] for document in server.kept.values()] == [True, True]


def test_another_file_of_the_same_text_renames_nothing_and_says_so(
    add: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server = FakeServer()
    add(server, {"sea.txt": "The sea."})
    assert add(server, {"copy.txt": "The sea.\n"}) == 0
    assert server.names() == {"The sea.": "sea"}
    assert "its text is document doc-0 already, called 'sea'" in capsys.readouterr().err


def test_a_name_that_was_asked_for_and_not_given_is_status_1(
    add: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server = FakeServer()
    add(server, {"sea.txt": "The sea."})
    assert add(server, {"sea.txt": "The sea."}, "--name", "ocean") == 1
    assert server.names() == {"The sea.": "sea"}
    assert "update DOCUMENT --name NAME" in capsys.readouterr().err


def test_a_name_of_another_document_is_refused_before_anything_is_registered(
    add: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server = FakeServer()
    add(server, {"sea.txt": "The sea."})
    assert add(server, {"mill.txt": "The mill."}, "--name", "sea") == 1
    assert server.names() == {"The sea.": "sea"}
    assert "'sea' is the name of doc-0, whose text is another" in capsys.readouterr().err


def test_a_changed_file_is_registered_without_the_name_of_what_it_was(
    add: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server = FakeServer()
    add(server, {"sea.txt": "The sea."})
    assert add(server, {"sea.txt": "The sea rose."}) == 0
    assert server.names() == {"The sea.": "sea", "The sea rose.": None}
    assert "it has no name, for 'sea' is that of doc-0" in capsys.readouterr().err


def test_a_name_that_another_document_has_is_refused_by_update_too(
    add: Any, client: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server = FakeServer()
    add(server, {"sea.txt": "The sea.", "mill.txt": "The mill."})

    def rename(document: str, name: str) -> None:
        words = ["update", document, "--name", name, "--pin"]
        client.documents.update(server, client.documents.parse_arguments(words))

    with pytest.raises(client.documents.Refused, match="'sea' is the name of doc-0: `documents"):
        rename("mill", "sea")
    assert server.names() == {"The sea.": "sea", "The mill.": "mill"}
    assert not server.kept["The mill."].get("pinned")
    rename("sea", "sea")
    rename("mill", "water mill")
    assert server.names() == {"The sea.": "sea", "The mill.": "water mill"}


def test_the_same_file_again_is_no_news(add: Any, capsys: pytest.CaptureFixture[str]) -> None:
    server = FakeServer()
    for _ in range(2):
        assert add(server, {"sea.txt": "The sea."}, "--name", "ocean") == 0
    assert server.names() == {"The sea.": "ocean"}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "words",
    [("--format", "json", "--url", "a:1", "list"), ("list", "--url", "a:1", "--format", "json")],
)
def test_what_every_script_has_stands_before_a_command_or_behind_it(
    client: Any, words: tuple[str, ...]
) -> None:
    parsed = client.documents.parse_arguments(list(words))
    assert (parsed.format, parsed.url, parsed.namespace) == ("json", "a:1", "default")


@pytest.mark.parametrize("never", ["none", "null"])
def test_no_time_to_live_has_jsons_word_too(client: Any, never: str) -> None:
    parsed = client.documents.parse_arguments(["update", "a", "--ttl-seconds", never])
    assert client.documents.changes_of(parsed) == {"ttl_seconds": None}


def test_a_time_that_is_none_is_refused_with_the_word_for_ever(
    client: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        client.documents.parse_arguments(["update", "a", "--ttl-seconds", "soon"])
    assert "'soon' is no time in seconds; none is for ever" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("Who?", "--documents", "a", "b"),
        ("--documents", "a", "b", "--question", "Who?"),
        ("--documents", "a", "b", "--mode", "full", "Who?"),
        ("--question=Who?", "--documents", "a", "b"),
        ("--documents", "a", "b", "--", "Who?"),
    ],
)
def test_a_question_stands_where_no_option_takes_it(client: Any, words: tuple[str, ...]) -> None:
    parsed = client.ask.parse_arguments(list(words))
    assert (parsed.question, parsed.documents) == ("Who?", ["a", "b"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--documents", "a", "b", "Who?"), "there is no question: it stands first, or behind"),
        ((), "there is no question"),
        (("Who?", "--question", "What?"), "there are several questions"),
        (("Who?", "--messages", "a.json"), "there are several questions"),
    ],
)
def test_no_question_or_two_are_refused_with_where_it_stands(
    client: Any, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    with pytest.raises(SystemExit):
        client.ask.parse_arguments(list(words))
    assert said in capsys.readouterr().err


def test_an_empty_question_is_one(client: Any) -> None:
    assert client.ask.parse_arguments([""]).question == ""

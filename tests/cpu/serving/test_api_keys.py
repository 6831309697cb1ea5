"""The file of keys: hashes only, private, whole; what is damaged is told in one sentence."""

import json
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from legokv.cli import main
from legokv.errors import InvalidRequest
from legokv.serving.api_keys import add_key, hash_of, read_keys


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any]:
    """The status, and the JSON or the error."""
    status = main(["keys", *map(str, arguments), "--format", "json"])
    out = capsys.readouterr()
    return status, json.loads(out.out) if out.out else out.err


def test_a_key_is_shown_once_and_the_file_has_its_hash_for_its_owner_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys.json"
    status, added = command(
        capsys, "add", "a", "--file", file, "--tokens-per-minute", 9, "--namespace", "x"
    )
    key = added["key"]
    assert (status, len(key), key[:3]) == (0, 46, "lk-")
    text = file.read_text()
    assert key not in text
    assert key[3:] not in text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    (kept,) = read_keys(file)
    assert (kept.sha256, kept.namespace, kept.tokens_per_minute) == (hash_of(key), "x", 9)
    _, listed = command(capsys, "list", "--file", file)
    assert listed["keys"]["a"]["tokens_per_minute"] == 9
    assert key not in json.dumps(listed)


def test_a_revoked_key_is_gone_and_another_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys.json"
    for name in ("a", "b"):
        assert command(capsys, "add", name, "--file", file)[0] == 0
    assert command(capsys, "revoke", "a", "--file", file) == (0, {"revoked": "a"})
    assert [key.name for key in read_keys(file)] == ["b"]
    status, error = command(capsys, "revoke", "a", "--file", file)
    assert (status, "there is no key 'a'" in error, "there are b" in error) == (1, True, True)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("add", "a b"), "a key's name is 1 to 64 letters"),
        (("add", "n" * 65), "a key's name is 1 to 64 letters"),
        (("add", "a", "--namespace", "../x"), "a namespace is 1 to 64"),
        (("add", "there"), "there is a key there in"),
        (("revoke", "nobody"), "there is no key 'nobody'"),
    ],
)
def test_what_the_commands_cannot_do_is_said_and_the_file_stays(
    arguments: tuple[str, ...],
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "keys.json"
    add_key(file, "there", {})
    before = file.read_bytes()
    status, error = command(capsys, *arguments, "--file", file)
    assert status == 1
    assert reason in error
    assert file.read_bytes() == before


@pytest.mark.parametrize("number", ["-1", "x", "1e3", "9" * 16, ""])
def test_a_limit_that_is_no_number_is_refused(number: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["keys", "add", "a", "--file", str(tmp_path / "k"), f"--stored-bytes={number}"])
    assert not (tmp_path / "k").exists()


def test_keys_added_at_the_same_time_are_all_there(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    adding = [threading.Thread(target=add_key, args=(file, f"k{n}", {})) for n in range(12)]
    for thread in adding:
        thread.start()
    for thread in adding:
        thread.join()
    assert {key.name for key in read_keys(file)} == {f"k{n}" for n in range(12)}


GOOD = {"name": "a", "namespace": "a", "sha256": "0" * 64, "created_at": 1}


def content(*keys: object, **changes: object) -> str:
    return json.dumps({"format": 1, "keys": list(keys), **changes})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is no JSON"),
        ("[" * 100_000, "it is no JSON"),
        ("[]", "no object of 'format' and 'keys'"),
        (content(format=2), "it is of format 2, 1 is read"),
        (content(format=True), "it is of format True"),
        (content(keys={}), "its 'keys' are no list"),
        (content(3), "key 1 is no object of"),
        (content({**GOOD, "key": "secret"}), "key 1 is no object of"),
        (content({"name": "a"}), "key 1 lacks created_at, namespace, sha256"),
        (content(GOOD, GOOD), "a name is there twice among its 2 keys"),
        (content(GOOD, {**GOOD, "name": "b"}), "a hash is there twice"),
        (content({**GOOD, "sha256": "0" * 63}), "sha256 of key a is not 64 digits"),
        (content({**GOOD, "sha256": None}), "sha256 of key a is not 64 digits"),
        (content({**GOOD, "namespace": None}), "the namespace of key a is no text"),
        (content({**GOOD, "namespace": "a/b"}), "a namespace is 1 to 64"),
        (content({**GOOD, "stored_bytes": -1}), "stored_bytes of key a is a whole number"),
        (content({**GOOD, "stored_bytes": 1.5}), "stored_bytes of key a is a whole number"),
        (content({**GOOD, "tokens_per_minute": True}), "tokens_per_minute of key a"),
        (content({**GOOD, "requests_per_minute": None}), "requests_per_minute of key a"),
        (content({**GOOD, "metrics": 1}), "metrics of key a is true or false"),
        (content({**GOOD, "name": ["a"]}), "a key's name is 1 to 64 letters"),
    ],
)
def test_a_damaged_file_is_told_in_a_sentence(text: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(text)
    with pytest.raises(InvalidRequest) as refused:
        read_keys(file)
    assert str(refused.value).startswith(f"the file of API keys {file} is damaged: ")
    assert reason in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_file_that_is_not_there_is_refused_with_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"No such file.*legokv keys add NAME --file FILE"):
        read_keys(tmp_path / "none")

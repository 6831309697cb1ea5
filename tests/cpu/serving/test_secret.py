"""The engine takes commands of those alone who know its secret, and looks at no other's."""

import hmac
from collections.abc import Iterator

import pytest

from legokv.errors import InvalidRequest, ServerError
from legokv.serving.answering import Reply
from legokv.serving.secret import SECRET_VARIABLE, new_secret, replies_to_own, secret_in

SECRET = b"s" * 64
COMMAND = b'{"type":"Drop","keys":["ab"]}'


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"secret": b""},
        {"secret": b"s" * 63},
        {"secret": b"s" * 65},
        {"secret": b"t" * 64},
        {"secret": "s" * 64},
        {"secret": [SECRET]},
        {"secret": b"\xff" * 64},
    ],
)
def test_a_command_without_the_secret_is_refused_and_not_looked_at(
    fields: dict[str, object],
) -> None:
    def replies(command: bytes) -> Iterator[Reply]:
        pytest.fail("a stranger's command was looked at")

    with pytest.raises(InvalidRequest, match="takes commands of its server's own models only"):
        list(replies_to_own({"command": COMMAND, **fields}, SECRET, replies))


def test_a_command_with_the_secret_is_carried_out() -> None:
    def replies(command: bytes) -> Iterator[Reply]:
        yield Reply({"events": command}, final=True)

    fields = {"secret": SECRET, "command": COMMAND}
    (reply,) = replies_to_own(fields, SECRET, replies)
    assert reply.values == {"events": COMMAND}


def test_the_secret_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(given: bytes, secret: bytes) -> bool:
        compared.append((given, secret))
        return False

    monkeypatch.setattr(hmac, "compare_digest", compare)
    with pytest.raises(InvalidRequest):
        list(replies_to_own({"secret": b"guess", "command": COMMAND}, SECRET, lambda _: iter(())))
    assert compared == [(b"guess", SECRET)]


def test_each_start_has_a_secret_of_its_own_that_models_find_in_their_environment() -> None:
    first, second = new_secret(), new_secret()
    assert first != second
    assert len(first) == 64
    assert secret_in({SECRET_VARIABLE: first}) == first.encode()


@pytest.mark.parametrize("environment", [{}, {SECRET_VARIABLE: ""}, {SECRET_VARIABLE: "short"}])
def test_without_a_secret_no_engine_starts_and_the_next_step_is_said(
    environment: dict[str, str],
) -> None:
    with pytest.raises(ServerError, match=f"{SECRET_VARIABLE} has . characters, it needs 32"):
        secret_in(environment)

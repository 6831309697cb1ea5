"""Sentences of Triton that name the server's memory, files or processes do not reach clients."""

import pytest

from legokv.serving.front.internals import FAULT, STARTING, Internals, Shown

INTERNALS = Internals(("/var/cache/kv",))


@pytest.mark.parametrize(
    "sentence",
    [
        "Failed to increase the shared memory pool size for key 'legokv_10235_f9154150-aa'",
        "Failed to process the request(s) for model 'documents_0_0', message: UnicodeDecodeError",
        "ValueError: no\n\nAt:\n  /somewhere/model.py(35): execute\n",
        "cannot write /var/cache/kv/registry.sqlite",
        "open /dev/shm/x failed",
    ],
)
def test_what_names_the_inside_is_replaced(sentence: str) -> None:
    assert INTERNALS.shown(sentence) == Shown("INTERNAL", FAULT)
    assert INTERNALS.shown(f"legokv error UNAVAILABLE {sentence}") == Shown("INTERNAL", FAULT)


def test_a_process_that_is_gone_is_told_as_something_to_try_later() -> None:
    lost = "Stub process 'engine_0_0' is not healthy."
    assert INTERNALS.shown(lost) == Shown("UNAVAILABLE", STARTING)


@pytest.mark.parametrize(
    "sentence",
    [
        "max_tokens is -3, 1 or more is taken",
        "unknown field '/etc/passwd'; known are text_input",
        "no document doc-1 in namespace 'default'",
        "unexpected size 5 for input 'request', expecting 1 additional bytes",
        "Redis is unavailable now: ask again",
        "document doc-1 is not ready after 5 s",
        "the pool is full: 17 tokens need 2 pages, 1 of 1 are free",
    ],
)
def test_a_sentence_for_clients_is_passed_on(sentence: str) -> None:
    assert INTERNALS.shown(sentence) == Shown("", sentence)
    assert INTERNALS.shown(f"legokv error UNAVAILABLE {sentence}") == Shown("UNAVAILABLE", sentence)


@pytest.mark.parametrize(
    "value",
    [
        "/dev/shm",
        "legokv_1_",
        "At:\n",
        "stub process",
        "x.py:1",
        "/var/cache/kv",
        "Server is not ready",
    ],
)
def test_what_a_client_sent_is_no_word_of_the_inside(value: str) -> None:
    for sentence, code in (
        (f"'mode' is one of legolink, full, not '{value}'", "INVALID_ARG"),
        (f"no document '{value}' in namespace 'default'", "NOT_FOUND"),
    ):
        assert INTERNALS.shown(f"legokv error {code} {sentence}") == Shown(code, sentence)

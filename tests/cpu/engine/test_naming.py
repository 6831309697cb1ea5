"""A key stands for the token ids it was put with: of its namespace, and for so many of them."""

import pytest

from legokv.chunks.chunk import Chunk
from legokv.engine.naming import NamedChunks


def chunk(name: str, num_tokens: int = 4, namespace: str = "default") -> Chunk:
    return Chunk(f"key {name}", namespace, tuple(range(num_tokens)))


def known(named: NamedChunks, names: str, namespace: str = "default") -> str:
    """Which of these one-letter chunks are found, in the order of the letters."""
    found = named.find([f"key {name}" for name in names], namespace)
    return "".join(name for name in names if f"key {name}" in found)


def test_a_key_is_known_in_the_namespace_of_its_chunk_alone():
    named = NamedChunks(max_tokens=100)
    ours, theirs = chunk("a"), chunk("b", namespace="tenant")
    named.put(ours)
    named.put(theirs)
    keys = [ours.key, theirs.key, "key c"]
    assert named.find(keys, "default") == {ours.key: ours}
    assert named.find(keys, "tenant") == {theirs.key: theirs}
    assert named.find(keys, "another") == {}


def test_of_too_many_tokens_those_named_longest_ago_leave():
    named = NamedChunks(max_tokens=12)
    for name in "abc":
        named.put(chunk(name))
    assert known(named, "a") == "a"
    named.put(chunk("d"))
    assert known(named, "abcd") == "acd"
    named.put(chunk("e", 8))
    assert known(named, "acde") == "de"


def test_a_chunk_put_twice_counts_once_and_is_the_newest():
    named = NamedChunks(max_tokens=12)
    for name in "abca":
        named.put(chunk(name))
    assert known(named, "abc") == "abc"
    named.put(chunk("b"))
    named.put(chunk("d"))
    assert known(named, "abcd") == "bcd"


@pytest.mark.parametrize("num_tokens", [12, 13, 1000])
def test_the_newest_chunk_stays_alone_however_large(num_tokens):
    named = NamedChunks(max_tokens=12)
    named.put(chunk("a"))
    named.put(chunk("b", num_tokens))
    assert known(named, "ab") == "b"
    named.put(chunk("c"))
    assert known(named, "bc") == "c"


def test_what_is_forgotten_makes_room_and_forgetting_it_again_does_nothing():
    named = NamedChunks(max_tokens=12)
    for name in "abc":
        named.put(chunk(name))
    named.forget("key b")
    named.forget("key b")
    named.put(chunk("d"))
    assert known(named, "abcd") == "acd"
    named.put(chunk("e"))
    assert known(named, "acde") == "cde"

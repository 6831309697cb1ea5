"""What a registry of documents keeps: the same of SQLite's and Redis'."""

from dataclasses import replace

import pytest
from registries import (  # noqa: F401 - fixtures
    CAP,
    clock_fixture,
    compile_all,
    new,
    register,
    registry_fixture,
)

from legokv.documents.document import (
    State,
    check_namespace,
    document_id,
    normalise_text,
)
from legokv.errors import InvalidRequest, NotFound


def test_a_document_comes_back_as_it_was_registered(registry):
    document = register(registry, name="notes", ttl_seconds=60.0)
    assert registry.get("default", document.id) == document
    assert (document.state, document.name, document.failure) == (State.REGISTERED, "notes", None)
    assert (document.num_bytes, document.num_tokens, document.num_chunks) == (10, 5, 2)
    assert (document.created_at, document.expires_at) == (1000.0, 1060.0)
    assert registry.text("default", document.id) == "Some text."
    assert [chunk.token_ids for chunk in registry.chunks("default", document.id)] == [
        (1, 2, 3),
        (4, 5),
    ]


def test_a_document_keeps_the_head_that_it_was_registered_with_and_one_without_has_none(registry):
    alone = register(registry)
    behind = register(registry, replace(new("Another text."), head=(7, 300, 70_000)))
    again = register(registry, replace(new("Another text."), head=(8,)))
    assert again.id == behind.id
    (chunks, claim) = (
        registry.chunks("default", behind.id),
        registry.take_claim("default", behind.id, 60.0),
    )
    assert {chunk.head for chunk in chunks} == {(7, 300, 70_000)}
    assert claim.chunks == chunks
    both = registry.chunks("default", alone.id, behind.id, alone.id)
    assert [chunk.head for chunk in both] == [(), ()] + [(7, 300, 70_000)] * 2 + [(), ()]


def test_the_same_content_is_the_same_document_and_what_is_new_in_the_call_applies(registry):
    first, made = registry.register(new(), {"name": "a", "ttl_seconds": 60.0}, CAP)
    second, made_again = registry.register(new(), {"ttl_seconds": 90.0}, CAP)
    assert (made, made_again) == (True, False)
    assert (second.id, second.name, second.expires_at) == (first.id, "a", 1090.0)
    assert len(registry.page("default").documents) == 1


def test_ids_come_from_content_and_namespace_and_never_change():
    assert document_id("default", "Some text.") == "doc-0b5c558cc29c1a1b686fa173"
    assert document_id("default", "Some text") != document_id("default", "Some text.")
    assert document_id("other", "Some text.") != document_id("default", "Some text.")
    assert document_id("ab", "c") != document_id("a", "bc")


def test_line_ends_byte_order_mark_and_blanks_around_do_not_make_another_document():
    assert normalise_text("\ufeff \r\n\n  One\r\ntwo\rthree \n\n") == "  One\ntwo\nthree"
    assert normalise_text("\n \t\r\n") == ""


def test_a_document_is_unknown_in_every_other_namespace(registry):
    document = register(registry)
    for namespace in ("other", "Default", ""):
        with pytest.raises(NotFound, match=document.id):
            registry.get(namespace, document.id)
        with pytest.raises(NotFound):
            registry.delete(namespace, document.id)
        assert registry.page(namespace).documents == ()
    assert registry.get("default", document.id) == document


@pytest.mark.parametrize("namespace", ["", "a" * 65, "a/b", "a b", "ä", "a\n", "../x"])
def test_a_namespace_is_made_of_a_few_plain_characters(namespace):
    with pytest.raises(InvalidRequest, match="namespace"):
        check_namespace(namespace)


def test_changes_are_all_made_or_none(registry):
    document = register(registry, name="before")
    with pytest.raises(InvalidRequest):
        registry.update("default", document.id, {"name": "after", "pinned": True}, 4)
    assert registry.get("default", document.id) == document
    changed = registry.update("default", document.id, {"name": None, "pinned": True}, 5)
    assert (changed.name, changed.pinned) == (None, True)


def test_deleting_gives_only_the_chunk_keys_that_no_document_names_any_more(registry):
    one = register(registry, new("One.", chunks=((1,), (2,))))
    two = register(registry, new("Two.", chunks=((1,), (3,))))
    compile_all(registry, one, ["shared", "mine"])
    compile_all(registry, two, ["shared", "yours"])
    assert registry.delete("default", one.id) == ("mine",)
    assert registry.delete("default", two.id) == ("shared", "yours")
    with pytest.raises(NotFound):
        registry.delete("default", two.id)


def test_pages_of_a_list_join_to_the_whole_while_documents_go(registry):
    ids = [register(registry, new(f"Text {number}.")).id for number in range(7)]
    first = registry.page("default", limit=3)
    registry.delete("default", ids[1])
    registry.delete("default", ids[2])
    second = registry.page("default", after=first.next_after, limit=3)
    third = registry.page("default", after=second.next_after, limit=3)
    assert [[doc.id for doc in page.documents] for page in (first, second, third)] == [
        ids[:3],
        ids[3:6],
        ids[6:],
    ]
    assert third.next_after is None
    assert registry.page("default", limit=5).next_after is None


def test_a_list_may_begin_with_the_newest_and_go_on_behind_a_document(registry):
    ids = [register(registry, new(f"Text {number}.")).id for number in range(7)]
    first = registry.page("default", limit=3, newest_first=True)
    registry.delete("default", ids[3])
    second = registry.page("default", after=first.next_after, limit=3, newest_first=True)
    assert [doc.id for doc in first.documents] == ids[:3:-1]
    assert [doc.id for doc in second.documents] == ids[2::-1]
    assert second.next_after is None
    behind = registry.page("default", after=ids[4], limit=1, newest_first=True)
    assert [doc.id for doc in behind.documents] == [ids[2]]
    assert [doc.id for doc in registry.page("default", after=ids[4]).documents] == ids[5:]
    for gone in (ids[3], "doc-none"):
        with pytest.raises(NotFound):
            registry.page("default", after=gone)
    with pytest.raises(NotFound):
        registry.page("other", after=ids[4])


def test_a_list_by_name_has_only_documents_of_that_name(registry):
    register(registry, new("A."), name="a")
    register(registry, new("B."))
    assert [doc.name for doc in registry.page("default", name="a").documents] == ["a"]


def test_using_documents_is_noted(registry, clock):
    document = register(registry)
    clock.seconds += 5
    registry.touch("default", [document.id, "doc-unknown"])
    assert registry.get("default", document.id).last_used_at == 1005.0
    clock.seconds += 5
    registry.touch("other", [document.id])
    assert registry.get("default", document.id).last_used_at == 1005.0


def test_a_failed_document_says_why_and_registering_it_again_lets_it_be_compiled_again(registry):
    document = register(registry)
    claim = registry.take_claim("default", document.id, 60.0)
    registry.finish_claim(claim, failure="the pool is full")
    failed = registry.get("default", document.id)
    assert (failed.state, failed.failure) == (State.FAILED, "the pool is full")
    assert registry.take_claim("default", document.id, 60.0) is None
    again = register(registry)
    assert (again.state, again.failure) == (State.REGISTERED, None)
    assert registry.take_claim("default", document.id, 60.0) is not None

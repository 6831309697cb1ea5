import sqlite3
import subprocess
import sys
import threading
import uuid
from contextlib import closing

import pytest

from legokv.documents.claims import ClaimLost
from legokv.documents.document import (
    NamespaceQuota,
    NewDocument,
    State,
    check_namespace,
    document_id,
    normalise_text,
)
from legokv.documents.registry import Registry
from legokv.documents.schema import STEPS
from legokv.errors import Busy, EngineMismatch, InvalidRequest, NotFound
from legokv.fleet.connection import Connection
from legokv.fleet.redis_registry import RedisRegistry

CAP = 100


class Clock:
    def __init__(self):
        self.seconds = 1000.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=["sqlite", "redis"])
def registry(request, tmp_path, clock):
    if request.param == "sqlite":
        opened = Registry.open(tmp_path / "registry.sqlite", clock)
    else:
        url = request.getfixturevalue("redis_url")
        opened = RedisRegistry(Connection(url, uuid.uuid4().hex, clock=clock))
    with closing(opened):
        yield opened


def new(text="Some text.", namespace="default", chunks=((1, 2, 3), (4, 5))):
    return NewDocument(namespace, text, chunks)


def register(registry, document=None, **changes):
    return registry.register(document or new(), changes, CAP)[0]


def compile_all(registry, document, keys):
    claim = registry.take_claim(document.namespace, document.id, 60.0)
    for position, key in enumerate(keys):
        registry.record_chunk(claim, position, key)
    registry.finish_claim(claim)


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


def test_a_document_past_its_time_stays_and_holds_no_pin(registry, clock):
    document = register(registry, ttl_seconds=60.0, pinned=True)
    compile_all(registry, document, ["k1", "k2"])
    clock.seconds += 59.9
    registry.sweep()
    assert registry.get("default", document.id).pinned
    assert registry.pinned_chunk_keys() == {"k1", "k2"}
    clock.seconds += 0.1
    assert registry.pinned_chunk_keys() == frozenset()
    registry.sweep()
    assert not registry.get("default", document.id).pinned
    assert [found.id for found in registry.page("default").documents] == [document.id]
    assert registry.delete("default", document.id) == ("k1", "k2")


def test_an_expired_pin_does_not_count_against_the_cap(registry, clock):
    register(registry, ttl_seconds=60.0, pinned=True)
    clock.seconds += 61
    other = new("Other.", chunks=((1,) * 6,))
    assert registry.register(other, {"pinned": True}, 10)[0].pinned


def test_registering_an_expired_document_keeps_its_chunks_and_takes_its_expiry_away(
    registry, clock
):
    old = register(registry, ttl_seconds=60.0, pinned=True)
    compile_all(registry, old, ["k1", "k2"])
    clock.seconds += 61
    document, made = registry.register(new(), {}, CAP)
    assert not made
    assert (document.state, document.expires_at, document.pinned) == (State.READY, None, False)
    assert [chunk.key for chunk in registry.chunks("default", old.id)] == ["k1", "k2"]


@pytest.mark.parametrize("back", [30, 900, 10**8], ids="{} s back".format)
def test_a_clock_set_back_ends_no_time_to_live_early_and_makes_none_last_for_ever(
    registry, clock, back
):
    document = register(registry, ttl_seconds=60.0, pinned=True)
    compile_all(registry, document, ["k1", "k2"])
    clock.seconds += 20
    clock.seconds -= back
    registry.sweep()
    for _ in range(40):  # 60 seconds since it was registered
        assert registry.get("default", document.id).pinned
        assert registry.pinned_chunk_keys() == {"k1", "k2"}
        clock.seconds += 1
        registry.sweep()
    clock.seconds += 20  # and 60 since the clock was set back
    registry.sweep()
    assert registry.pinned_chunk_keys() == frozenset()
    assert not registry.get("default", document.id).pinned


def test_a_clock_that_goes_on_moves_no_expiry(registry, clock):
    document = register(registry, ttl_seconds=60.1, pinned=True)
    for _ in range(50):
        clock.seconds += 1.1
        registry.sweep()
        assert registry.get("default", document.id) == document


def test_a_document_without_an_end_is_not_given_one_by_a_clock_set_back(registry, clock):
    document = register(registry, pinned=True)
    clock.seconds -= 900
    registry.sweep()
    assert registry.get("default", document.id) == document


def test_a_clock_set_back_does_not_leave_a_document_claimed_for_ever(registry, clock):
    document = register(registry)
    assert registry.take_claim("default", document.id, 60.0) is not None
    clock.seconds -= 3600
    assert registry.take_claim("default", document.id, 60.0) is not None


def test_a_registry_of_the_first_version_is_brought_to_this_one_with_its_documents(tmp_path):
    path = tmp_path / "registry.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(f"{STEPS[0]} PRAGMA user_version = 1;")
    connection.execute(
        "INSERT INTO documents (namespace, id, text, num_bytes, num_tokens, state, created_at)"
        " VALUES ('default', 'doc-1', 'Text.', 5, 3, 'ready', 1.0)"
    )
    connection.commit()
    connection.close()
    with Registry.open(path) as registry:
        assert registry.text("default", "doc-1") == "Text."
        assert registry.delete("default", "doc-1") == ()


def test_changes_are_all_made_or_none(registry):
    document = register(registry, name="before")
    with pytest.raises(InvalidRequest):
        registry.update("default", document.id, {"name": "after", "pinned": True}, 4)
    assert registry.get("default", document.id) == document
    changed = registry.update("default", document.id, {"name": None, "pinned": True}, 5)
    assert (changed.name, changed.pinned) == (None, True)


def test_a_pin_past_the_cap_is_refused_with_numbers_and_nothing_is_registered(registry):
    register(registry, pinned=True)
    with pytest.raises(Busy, match="5 tokens are pinned and this document has 6: more than the 10"):
        registry.register(new("Other.", chunks=((1,) * 6,)), {"pinned": True}, 10)
    with pytest.raises(InvalidRequest, match="a document of 11 tokens is more than the 10"):
        registry.register(new("Third.", chunks=((1,) * 11,)), {"pinned": True}, 10)
    assert len(registry.page("default").documents) == 1


def test_a_document_past_its_namespace_s_quota_is_refused_with_the_numbers(registry):
    quota = NamespaceQuota(max_bytes=899, token_bytes=100)
    registry.register(new(), {}, CAP, quota)
    other = new("Other.", chunks=((1,) * 4,))
    with pytest.raises(Busy, match=r"takes 400 bytes and its namespace's .* have 500: .* the 899"):
        registry.register(other, {}, CAP, quota)
    with pytest.raises(InvalidRequest, match=r"takes 900 bytes, more than the 899 .* at all"):
        registry.register(new("Third.", chunks=((1,) * 9,)), {}, CAP, quota)
    assert len(registry.page("default").documents) == 1
    assert registry.register(new(), {"name": "same"}, CAP, quota)[0].name == "same"
    elsewhere = new("Other.", "other", chunks=((1,) * 4,))
    assert registry.register(elsewhere, {}, CAP, quota)[1]
    registry.delete("default", new().id)
    assert registry.register(other, {}, CAP, quota)[1]


def test_pinning_what_is_pinned_already_counts_it_once(registry):
    document = register(registry, pinned=True)
    assert registry.update("default", document.id, {"pinned": True}, 5).pinned


def test_only_compiled_chunks_of_pinned_documents_are_pinned(registry):
    pinned = register(registry, pinned=True)
    loose = register(registry, new("Other.", chunks=((9,),)))
    compile_all(registry, pinned, ["k1", "k2"])
    compile_all(registry, loose, ["k9"])
    assert registry.pinned_chunk_keys() == {"k1", "k2"}
    registry.update("default", pinned.id, {"pinned": False}, CAP)
    assert registry.pinned_chunk_keys() == frozenset()


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


def test_a_list_by_name_has_only_documents_of_that_name(registry):
    register(registry, new("A."), name="a")
    register(registry, new("B."))
    assert [doc.name for doc in registry.page("default", name="a").documents] == ["a"]


def test_using_documents_is_noted(registry, clock):
    document = register(registry)
    clock.seconds += 5
    registry.touch("default", [document.id, "doc-unknown"])
    assert registry.get("default", document.id).last_used_at == 1005.0


def test_a_restarted_process_finds_documents_chunks_pins_and_states(tmp_path):
    path = tmp_path / "registry.sqlite"
    with Registry.open(path) as before:
        document = register(before, pinned=True, name="kept")
        compile_all(before, document, ["k1", "k2"])
        expected = before.get("default", document.id)
    with Registry.open(path) as after:
        assert after.get("default", document.id) == expected
        assert expected.state == State.READY
        assert [chunk.key for chunk in after.chunks("default", document.id)] == ["k1", "k2"]
        assert after.pinned_chunk_keys() == {"k1", "k2"}


def test_one_claim_at_a_time_is_given(registry):
    document = register(registry)
    claim = registry.take_claim("default", document.id, 60.0)
    assert registry.get("default", document.id).state == State.COMPILING
    assert registry.take_claim("default", document.id, 60.0) is None
    registry.record_chunk(claim, 0, "k1")
    assert registry.get("default", document.id).compiled_chunks == 1
    registry.finish_claim(claim)
    assert registry.take_claim("default", document.id, 60.0) is None


def test_a_claim_past_its_deadline_is_taken_over_where_it_stood_and_its_holder_told(
    registry, clock
):
    document = register(registry)
    dead = registry.take_claim("default", document.id, 60.0)
    clock.seconds += 59
    registry.record_chunk(dead, 0, "k1")
    clock.seconds += 59  # the recorded chunk moved the deadline
    assert registry.take_claim("default", document.id, 60.0) is None
    clock.seconds += 1
    heir = registry.take_claim("default", document.id, 60.0)
    assert [chunk.key for chunk in registry.chunks("default", document.id)] == ["k1", None]
    with pytest.raises(ClaimLost):
        registry.record_chunk(dead, 1, "late")
    with pytest.raises(ClaimLost):
        registry.finish_claim(dead)
    registry.record_chunk(heir, 1, "k2")
    registry.finish_claim(heir)
    assert registry.get("default", document.id).state == State.READY


def test_deleting_a_document_ends_its_claim(registry):
    document = register(registry)
    claim = registry.take_claim("default", document.id, 60.0)
    registry.delete("default", document.id)
    again = register(registry)
    assert again.id == document.id
    with pytest.raises(ClaimLost):
        registry.record_chunk(claim, 0, "k1")


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


def test_a_registry_of_another_version_is_refused_by_both_names(tmp_path):
    path = tmp_path / "registry.sqlite"
    Registry.open(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(EngineMismatch, match=r"registry\.sqlite has registry version 7.*version 3"):
        Registry.open(path)


def test_a_file_that_is_no_registry_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "registry.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(EngineMismatch, match="cannot be used as a document registry"):
        Registry.open(path)
    assert path.read_bytes() == b"not a database" * 100


def test_many_threads_share_one_registry(registry):
    def work(number):
        for step in range(20):
            text = f"Text {number % 2} {step}."
            document = register(registry, new(text))
            registry.touch("default", [document.id])
            registry.page("default", limit=5)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(registry.page("default").documents) == 40


WRITER = """
import sys
from pathlib import Path
from legokv.documents.document import NewDocument
from legokv.documents.registry import Registry
from legokv.documents.schema import STEPS
registry = Registry.open(Path(sys.argv[1]))
for step in range(50):
    for text in (f"Shared {step}.", f"Own {sys.argv[2]} {step}."):
        registry.register(NewDocument("default", text, ((1, 2), (3,))), {}, 0)
"""


def test_several_processes_open_and_fill_one_new_registry_at_once(tmp_path):
    path = tmp_path / "registry.sqlite"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(number)])
        for number in range(3)
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    with Registry.open(path) as registry:
        documents = registry.page("default", limit=1000).documents
        assert len(documents) == 50 + 3 * 50
        assert all(document.num_chunks == 2 for document in documents)

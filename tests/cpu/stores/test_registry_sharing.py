"""A registry that several threads and processes use, before and after a restart."""

import sqlite3
import subprocess
import sys
import threading

import pytest
from registries import (  # noqa: F401 - fixtures
    clock_fixture,
    compile_all,
    new,
    register,
    registry_fixture,
)

from legokv.documents.document import (
    State,
)
from legokv.documents.protocol import CompiledChunk
from legokv.errors import ClaimLost, EngineMismatch, NotFound
from legokv.stores.local.database import STEPS
from legokv.stores.local.registry import Registry


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


def test_a_claim_has_the_chunks_and_ends_with_the_last_one_noted(registry, clock):
    document = register(registry)
    dead = registry.take_claim("default", document.id, 60.0)
    registry.record_chunk(dead, 0, "k1")
    clock.seconds += 60
    heir = registry.take_claim("default", document.id, 60.0)
    assert [[chunk.key for chunk in claim.chunks] for claim in (dead, heir)] == [
        [None, None],
        ["k1", None],
    ]
    assert heir.chunks == registry.chunks("default", document.id)
    with pytest.raises(ClaimLost):
        registry.finish_claim(dead, last=CompiledChunk(1, "late"))
    assert registry.chunks("default", document.id) == heir.chunks
    ended = registry.finish_claim(heir, last=CompiledChunk(1, "k2"))
    assert ended == registry.get("default", document.id)
    assert (ended.state, ended.compiled_chunks) == (State.READY, 2)
    assert [chunk.key for chunk in registry.chunks("default", document.id)] == ["k1", "k2"]
    assert set(registry.named(["k2", "late"])) == {"k2"}


def test_a_claim_that_ends_in_failure_gives_the_failed_document(registry):
    document = register(registry)
    claim = registry.take_claim("default", document.id, 60.0)
    ended = registry.finish_claim(claim, failure="the pool is full")
    assert ended == registry.get("default", document.id)
    assert (ended.state, ended.failure) == (State.FAILED, "the pool is full")


def test_the_chunks_of_several_documents_are_one_behind_the_other(registry):
    one, other = (register(registry, new(f"Text {n}.", chunks=((n,), (n, n)))) for n in (1, 2))
    of_each = [registry.chunks("default", document.id) for document in (other, one)]
    asked = (other.id, one.id, other.id)
    assert registry.chunks("default", *asked) == (*of_each[0], *of_each[1], *of_each[0])
    assert [chunk.token_ids for chunk in of_each[0]] == [(2,), (2, 2)]
    assert registry.chunks("default") == ()
    with pytest.raises(NotFound):
        registry.chunks("default", one.id, "doc-none")


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
from legokv.stores.local.registry import Registry
from legokv.documents.protocol import CompiledChunk
from legokv.stores.local.database import STEPS
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

"""What ends or is refused in a registry: times to live, pins past the cap, quotas."""

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
    DOCUMENT_BYTES,
    NamespaceQuota,
    State,
)
from legokv.errors import Busy, InvalidRequest


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


@pytest.mark.parametrize("seconds", [60, 61])
def test_registering_an_expired_document_keeps_its_chunks_and_takes_its_expiry_away(
    registry, clock, seconds
):
    old = register(registry, ttl_seconds=60.0, pinned=True)
    compile_all(registry, old, ["k1", "k2"])
    clock.seconds += seconds
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


def test_a_pin_past_the_cap_is_refused_with_numbers_and_nothing_is_registered(registry):
    register(registry, pinned=True)
    with pytest.raises(Busy, match="5 tokens are pinned and this document has 6: more than the 10"):
        registry.register(new("Other.", chunks=((1,) * 6,)), {"pinned": True}, 10)
    with pytest.raises(InvalidRequest, match="a document of 11 tokens is more than the 10"):
        registry.register(new("Third.", chunks=((1,) * 11,)), {"pinned": True}, 10)
    assert len(registry.page("default").documents) == 1


def test_a_document_past_its_namespace_s_quota_is_refused_with_the_numbers(registry):
    fixed = DOCUMENT_BYTES + 10  # each text has ten bytes
    quota = NamespaceQuota(max_bytes=2 * fixed + 899, token_bytes=100)
    registry.register(new("Some text."), {}, CAP, quota)
    other = new("Some more.", chunks=((1,) * 4,))
    numbers = (
        rf"takes {fixed + 400} bytes .* 1 documents have {fixed + 500}: .* the {2 * fixed + 899}"
    )
    with pytest.raises(Busy, match=numbers):
        registry.register(other, {}, CAP, quota)
    with pytest.raises(InvalidRequest, match=r"takes \d+ bytes .*, more than the \d+ .* at all"):
        registry.register(new("Third one.", chunks=((1,) * 21,)), {}, CAP, quota)
    assert len(registry.page("default").documents) == 1
    assert registry.register(new(), {"name": "same"}, CAP, quota)[0].name == "same"
    elsewhere = new("Some more.", "other", chunks=((1,) * 4,))
    assert registry.register(elsewhere, {}, CAP, quota)[1]
    registry.delete("default", new().id)
    assert registry.register(other, {}, CAP, quota)[1]


@pytest.mark.parametrize(
    ("text_bytes", "number"), [(5 * DOCUMENT_BYTES, 2), (1, 9)], ids=["long texts", "many"]
)
def test_texts_and_documents_count_as_kv_does(registry, text_bytes, number):
    quota = NamespaceQuota(number * (text_bytes + DOCUMENT_BYTES + 1), token_bytes=1)
    for n in range(number):
        registry.register(new(str(n) * text_bytes, chunks=((1,),)), {}, CAP, quota)
    with pytest.raises(Busy, match=f"its namespace's {number} documents"):
        registry.register(new("z", chunks=((1,),)), {}, CAP, quota)


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

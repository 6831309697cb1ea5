"""Files and rows that disagree, however that came about, are brought together again."""

import logging
import shutil

import pytest
from small_chunks import file_bytes, small_chunk, small_disk_tier, small_kv

from legokv.built.folder import registry_file
from legokv.built.settings import EngineSettings
from legokv.chunks.header import STORED_DTYPES
from legokv.chunks.stored_kv import to_stored
from legokv.chunks.tier import Repair
from legokv.documents.document import NewDocument
from legokv.errors import CacheUnavailable, EngineMismatch
from legokv.stores.local.registry import Registry
from legokv.stores.local.repair import mend, verify
from legokv.stores.tiers import open_tiers


def nobody_names(keys):
    return {}


@pytest.fixture
def tier(tmp_path):
    tier = small_disk_tier(tmp_path)
    for number in range(4):
        tier.write(small_chunk(number), small_kv(number))
    return tier


def path(tier, number):
    return tier.folder.path(small_chunk(number).key)


def assert_whole(tier):
    rows = {row.key: row.num_bytes for row in tier.stored.rows()}
    assert {file.key: file.num_bytes for file in tier.folder.files()} == rows
    assert tier.folder.temporary_files() == []
    assert mend(tier, nobody_names) == Repair()


def test_a_sound_cache_is_left_as_it_is(tier):
    assert mend(tier, nobody_names) == Repair()
    assert tier.stats().num_chunks == 4


def test_a_row_without_its_file_goes(tier):
    path(tier, 1).unlink()
    assert mend(tier, nobody_names) == Repair(rows_without_file=1)
    assert_whole(tier)


def test_a_folder_that_was_lost_leaves_no_rows(tier):
    shutil.rmtree(tier.folder.root)
    assert mend(tier, nobody_names) == Repair(rows_without_file=4)
    assert_whole(tier)


def test_a_file_without_a_row_goes_unless_a_document_names_its_chunk(tier, tmp_path):
    size = path(tier, 1).stat().st_size
    tier.stored.forget([small_chunk(1).key, small_chunk(2).key])
    found = mend(tier, lambda keys: {small_chunk(2).key: "tenant"})
    assert found == Repair(files_without_row=1, files_adopted=1, removed_bytes=size)
    assert [row.namespace for row in tier.stored.rows()][-1] == "tenant"
    assert_whole(tier)


def test_what_a_killed_writer_left_goes(tier):
    left = path(tier, 1).with_name(f".{path(tier, 1).name}.abc.tmp")
    left.write_bytes(b"x" * 100)
    assert mend(tier, nobody_names) == Repair(temporary_files=1, removed_bytes=100)
    assert_whole(tier)


def test_a_file_of_another_size_than_its_row_goes(tier):
    with path(tier, 1).open("ab") as file:
        file.write(b"more")
    size = path(tier, 1).stat().st_size
    assert mend(tier, nobody_names) == Repair(files_of_wrong_size=1, removed_bytes=size)
    assert_whole(tier)


def test_files_of_others_in_the_folder_are_left_alone(tier):
    others = [tier.folder.root / "notes.txt", path(tier, 1).with_name("short.safetensors")]
    for other in others:
        other.write_text("not ours")
    mend(tier, nobody_names)
    assert all(other.exists() for other in others)


def registered(registry, number):
    """A ready document of one chunk, which is the small chunk of that number."""
    new = NewDocument("default", f"Text {number}.", (small_chunk(number).token_ids,))
    document, _ = registry.register(new, {}, 0)
    claim = registry.take_claim("default", document.id, 60.0)
    registry.record_chunk(claim, 0, small_chunk(number).key)
    registry.finish_claim(claim)
    return document


def test_a_deleted_document_s_chunk_goes_though_its_deleter_died_before_removing_it(tier, tmp_path):
    with Registry.open(registry_file(tmp_path)) as registry:
        for number in (1, 2):
            document = registered(registry, number)
        registry.delete("default", document.id)
        mend(tier, registry.named)
    assert [path(tier, n).exists() for n in range(4)] == [True, True, False, True]
    assert_whole(tier)


def test_a_chunk_of_a_deleted_document_stays_if_one_of_the_same_content_was_registered(
    tier, tmp_path
):
    with Registry.open(registry_file(tmp_path)) as registry:
        document = registered(registry, 1)
        registry.delete("default", document.id)
        registered(registry, 1)
        mend(tier, registry.named)
    assert path(tier, 1).exists()


def test_a_smaller_budget_than_what_is_stored_evicts_the_oldest(tier, tmp_path):
    size = file_bytes(tmp_path)
    smaller = small_disk_tier(tmp_path, disk_bytes=2 * size)
    mend(smaller, nobody_names)
    assert [path(tier, n).exists() for n in range(4)] == [False, False, True, True]


def test_verify_finds_each_damaged_file_and_only_those(tier):
    content = bytearray(path(tier, 1).read_bytes())
    content[len(content) // 2] ^= 1
    path(tier, 1).write_bytes(content)
    shutil.copy(path(tier, 3), path(tier, 2))
    seen = []
    found = verify(tier, lambda files, num_bytes: seen.append(num_bytes))
    assert (found.checked_files, found.damaged_files, len(seen)) == (4, 2, 4)
    assert [path(tier, n).exists() for n in range(4)] == [True, False, False, True]
    assert_whole(tier)


@pytest.mark.parametrize("form", STORED_DTYPES)
def test_verify_notices_any_one_byte_but_those_of_the_ids_digest(tier, form):
    tier.write(small_chunk(1), to_stored(small_kv(1), form))
    content = path(tier, 1).read_bytes()
    digest = content.index(b'"token_digest"') + len(b'"token_digest":"')
    unnoticed = []
    for place in range(0, len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 0x04
        path(tier, 1).write_bytes(damaged)
        if not verify_one(tier):
            unnoticed.append(place)
    assert set(unnoticed) <= set(range(digest, digest + 64))


def verify_one(tier):
    try:
        tier.folder.verify(small_chunk(1).key)
    except Exception:  # noqa: BLE001 - whatever it says, it has noticed
        return True
    return False


def test_opening_mends_and_says_so(tier, tmp_path, caplog):
    path(tier, 1).unlink()
    with caplog.at_level(logging.WARNING):
        open_tiers(tmp_path, EngineSettings(), frozenset)
    assert "rows_without_file=1" in caplog.text
    assert_whole(tier)


def test_a_cache_without_its_registry_keeps_no_file_it_cannot_account_for(tier, tmp_path):
    for part in tmp_path.glob("registry.sqlite*"):
        part.unlink()
    (disk,) = open_tiers(tmp_path, EngineSettings(host_bytes=0), frozenset).tiers
    assert list(disk.folder.files()) == []


def test_a_damaged_registry_is_refused_with_the_next_step_and_left_alone(tier, tmp_path):
    for part in tmp_path.glob("registry.sqlite-*"):
        part.unlink(missing_ok=True)
    registry_file(tmp_path).write_bytes(b"no database" * 1000)
    with pytest.raises(EngineMismatch, match="cannot be used as a document registry"):
        open_tiers(tmp_path, EngineSettings(), frozenset)
    assert registry_file(tmp_path).read_bytes().startswith(b"no database")


def test_a_cache_folder_that_cannot_be_used_leaves_the_host_tier_alone(tmp_path, caplog):
    (tmp_path / "root").write_text("a file in the way")
    tiers = open_tiers(tmp_path / "root", EngineSettings(), frozenset)
    assert [tier.name for tier in tiers.tiers] == ["host"]
    assert "no chunk is kept on disk" in caplog.text


def test_mending_a_folder_that_is_a_file_is_an_error_that_names_it(tmp_path):
    tier = small_disk_tier(tmp_path)
    (tmp_path / "chunks.lock").mkdir()
    with pytest.raises(CacheUnavailable, match="could not be mended"):
        mend(tier, nobody_names)

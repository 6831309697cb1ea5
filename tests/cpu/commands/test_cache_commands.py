"""`legokv cache` over real folders: what it says, what it mends, and what it takes elsewhere."""

import io
import json
import tarfile

import pytest
import torch
from crash_worker import TEXTS
from folder_machine import FolderMachine

from legokv.chunks.header import STORED_DTYPES
from legokv.documents.document import document_id


@pytest.fixture
def machine(tiny_engine_folder, tmp_path):
    return FolderMachine(tiny_engine_folder(), tmp_path / "here")


@pytest.fixture
def elsewhere(tiny_engine_folder, tmp_path):
    return FolderMachine(tiny_engine_folder(), tmp_path / "elsewhere")


@pytest.fixture(params=STORED_DTYPES)
def two_machines(request, tiny_engine_folder, tmp_path):
    """Two machines that keep KV in one form."""
    return [
        FolderMachine(tiny_engine_folder(), tmp_path / n, request.param) for n in ("one", "two")
    ]


def test_stats_count_documents_chunks_and_bytes_by_namespace(machine, capsys):
    one = machine.register(0, pinned=True)
    other = machine.register(1, namespace="other")
    status, said = machine.command(capsys, "stats")
    assert status == 0
    assert said["tiers"].keys() == {"disk"}
    assert said["tiers"]["disk"]["bytes"] == sum(f.stat().st_size for f in machine.files())
    assert said["namespaces"]["default"]["pinned_documents"] == 1
    assert {name: facts["disk_chunks"] for name, facts in said["namespaces"].items()} == {
        "default": one["num_chunks"],
        "other": other["num_chunks"],
    }


def test_verify_is_content_with_a_sound_cache_and_mends_a_damaged_one(machine, capsys):
    machine.register(0)
    assert machine.command(capsys, "verify")[0] == 0
    content = bytearray(machine.files()[0].read_bytes())
    content[-1] ^= 1
    machine.files()[0].write_bytes(content)
    number = len(machine.files())
    status, said = machine.command(capsys, "verify")
    assert (status, said["damaged_files"], said["checked_files"]) == (1, 1, number)
    status, said = machine.command(capsys, "verify")
    assert (status, said["damaged_files"], said["checked_files"]) == (0, 0, number - 1)


def test_clear_removes_the_kv_of_one_namespace_and_leaves_its_documents(machine, capsys):
    machine.register(0)
    kept = machine.register(1, namespace="other")
    status, said = machine.command(capsys, "clear", "--namespace", "default")
    assert (status, said["chunks_in_use"], said["deleted_documents"]) == (0, 0, 0)
    assert len(machine.files()) == kept["num_chunks"]
    assert len(machine.registry.page("default").documents) == 1


def test_clear_with_documents_leaves_nothing(machine, capsys):
    machine.register(0)
    machine.register(1, namespace="other")
    _, said = machine.command(capsys, "clear", "--documents")
    assert said["deleted_documents"] == 2
    assert machine.files() == []
    assert machine.registry.namespaces() == ()


def test_an_exported_set_is_answered_elsewhere_without_compiling(two_machines, tmp_path, capsys):
    machine, elsewhere = two_machines
    document = machine.register(0, name="notes", ttl_seconds=600)
    machine.register(1, namespace="other")
    expected = machine.answer(document).logits
    _, gave = machine.command(capsys, "export", tmp_path / "set.tar")
    status, took = elsewhere.command(capsys, "import", tmp_path / "set.tar")
    assert (status, gave["documents"], took["documents"]) == (0, 2, 2)
    assert (gave["unusable_chunks"], took["unusable_chunks"]) == (0, 0)
    assert gave["chunks"] == took["chunks"] == len(elsewhere.files()) > 2
    there = elsewhere.registry.get("default", document["id"])
    assert (there.state, there.name, there.compiled_chunks) == (
        "ready",
        "notes",
        document["num_chunks"],
    )
    result = elsewhere.answer(document)
    assert torch.equal(result.logits, expected)
    assert result.usage.compiled_tokens == 0


def test_an_export_of_one_namespace_holds_no_other_s_texts(machine, tmp_path, capsys):
    machine.register(0)
    machine.register(1, namespace="other")
    machine.command(capsys, "export", "--namespace", "other", tmp_path / "set.tar")
    content = (tmp_path / "set.tar").read_bytes()
    assert TEXTS[1][:40].encode() in content
    assert TEXTS[0][:40].encode() not in content


def test_an_import_takes_no_damaged_kv_and_the_rest_is_compiled(
    machine, elsewhere, tmp_path, capsys
):
    document = machine.register(0)
    expected = machine.answer(document).logits
    machine.command(capsys, "export", tmp_path / "set.tar")
    content = bytearray((tmp_path / "set.tar").read_bytes())
    with tarfile.open(tmp_path / "set.tar") as archive:
        member = archive.getmembers()[1]
    content[member.offset_data + member.size - 1] ^= 1
    (tmp_path / "set.tar").write_bytes(content)
    status, took = elsewhere.command(capsys, "import", tmp_path / "set.tar")
    assert (status, took["unusable_chunks"]) == (0, 1)
    assert elsewhere.registry.get("default", document["id"]).state == "registered"
    assert torch.equal(elsewhere.answer(document).logits, expected)


def rewritten(path, change):
    """The archive with its list changed."""
    with tarfile.open(path) as archive:
        members = [(m, archive.extractfile(m).read()) for m in archive.getmembers()]
    manifest = json.loads(members[0][1])
    change(manifest)
    members[0] = (members[0][0], json.dumps(manifest).encode())
    with tarfile.open(path, "w") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_an_import_takes_no_kv_under_a_key_that_is_not_its_namespace_s(
    machine, elsewhere, tmp_path, capsys
):
    document = machine.register(0)
    machine.command(capsys, "export", tmp_path / "set.tar")
    text = machine.registry.text("default", document["id"])
    moved = {"namespace": "other", "id": document_id("other", text)}
    rewritten(tmp_path / "set.tar", lambda m: m["documents"][0].update(moved))
    _, took = elsewhere.command(capsys, "import", tmp_path / "set.tar")
    assert (took["chunks"], took["unusable_chunks"]) == (0, document["num_chunks"])
    assert elsewhere.files() == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.update(fingerprint="0" * 64), "belongs to the model 0000000000000000"),
        (lambda m: m.update(format_version=9), "has version 9, this program reads 1"),
        (lambda m: m["documents"][0].update(text="Other."), "is not what its text gives"),
        (lambda m: m["documents"][0]["chunks"][0]["token_ids"].append(9), "is not what its text"),
        (lambda m: m["documents"][0].update(namespace="../x"), "a namespace is 1 to 64"),
        (lambda m: m["documents"][0].pop("text"), "its list is damaged"),
        (lambda m: m["documents"].append(7), "its list is damaged"),
    ],
)
def test_an_archive_that_is_not_true_to_itself_is_refused_whole(
    machine, elsewhere, tmp_path, capsys, change, reason
):
    machine.register(0)
    machine.command(capsys, "export", tmp_path / "set.tar")
    rewritten(tmp_path / "set.tar", change)
    status, said = elsewhere.command(capsys, "import", tmp_path / "set.tar")
    assert status == 1
    assert reason in said
    assert elsewhere.registry.namespaces() == ()


@pytest.mark.parametrize("content", [b"", b"no archive at all" * 100])
def test_a_file_that_is_no_archive_is_refused(machine, tmp_path, capsys, content):
    (tmp_path / "set.tar").write_bytes(content)
    status, said = machine.command(capsys, "import", tmp_path / "set.tar")
    assert (status, "is no archive of documents" in said) == (1, True)


def test_a_file_that_is_not_there_or_cannot_be_written_is_named(machine, tmp_path, capsys):
    for kind in ("import", "export"):
        status, said = machine.command(capsys, kind, tmp_path / "nowhere" / "set.tar")
        assert (status, "set.tar cannot be" in said) == (1, True)


@pytest.mark.parametrize("kind", ["stats", "verify", "clear", "export"])
def test_a_folder_that_is_no_cache_is_refused_and_nothing_is_made(machine, tmp_path, capsys, kind):
    mistyped, file = tmp_path / "mistyped", tmp_path / "set.tar"
    machine.options[-1] = mistyped
    status, said = machine.command(capsys, kind, *([file] if kind == "export" else []))
    assert status == 1
    assert f"{mistyped} is no cache of the engine {machine.engine_folder}" in said
    assert "give --cache-dir the folder that `legokv serve` has" in said
    assert not mistyped.exists()
    assert not file.exists()


def test_an_import_makes_the_folder_it_is_given(machine, elsewhere, tmp_path, capsys):
    machine.register(0)
    machine.command(capsys, "export", tmp_path / "set.tar")
    elsewhere.options[-1] = tmp_path / "new"
    status, took = elsewhere.command(capsys, "import", tmp_path / "set.tar")
    assert (status, took["documents"]) == (0, 1)
    assert elsewhere.command(capsys, "stats")[1]["namespaces"]["default"]["documents"] == 1


@pytest.mark.parametrize("kind", ["clear", "export"])
def test_a_namespace_of_which_nothing_is_kept_is_refused_with_those_there_are(
    machine, tmp_path, capsys, kind
):
    machine.register(0)
    machine.register(1, namespace="other")
    number, file = len(machine.files()), tmp_path / "set.tar"
    asked = ("--namespace", "other", "--namespace", "nosuch")
    status, said = machine.command(capsys, kind, *asked, *([file] if kind == "export" else []))
    assert status == 1
    assert "nothing is kept of the namespace 'nosuch'; there are default, other" in said
    assert len(machine.files()) == number
    assert not file.exists()

"""Imports into a cache: held to what `create` takes, whole or not at all."""

import io
import json
import tarfile
from dataclasses import replace

import pytest
import torch
from small_tokenizer import small_tokenizer

from legokv.built.folder import registry_file
from legokv.built.settings import EngineSettings
from legokv.chunks.chunk import chunk_key
from legokv.chunks.stored_form import encode_chunk
from legokv.documents.cut import cut, document_token_ids
from legokv.documents.document import DocumentLimits, NamespaceQuota, NewDocument, State
from legokv.documents.exchange import Cache, export_documents, import_documents
from legokv.errors import Busy, InvalidRequest, LegokvError
from legokv.model.config import ModelConfig, RopeConfig
from legokv.stores.local.registry import Registry
from legokv.stores.tiers import open_disk_tier

FINGERPRINT = "f" * 64
MODEL = ModelConfig(
    *("llama", 512, 16, 32, 2, 2, 1, 8, 1e-5, 128, RopeConfig(10000.0)),
    *(False, False, False, False, True, None, (0,)),
)
LIMITS = DocumentLimits(max_document_bytes=500, max_document_tokens=400)
TEXTS = ("The first lighthouse. " * 5, "The second lighthouse. " * 5)


def opened(root, limits=LIMITS):
    registry = Registry.open(registry_file(root))
    tier = open_disk_tier(root, registry, EngineSettings())
    return Cache(FINGERPRINT, MODEL, registry, (tier,), small_tokenizer(), limits)


def kv_of(ids, shape=(2, 1, 8)):
    layers, groups, size = shape
    generator = torch.Generator().manual_seed(sum(ids))
    return torch.randn(layers, 2, len(ids), groups, size, generator=generator)


def registered(cache, text, namespace="default", head=()):
    """A ready document with its KV on disk, compiled behind a head or each chunk alone."""
    ids = document_token_ids(text.strip(), cache.codec)
    new = NewDocument(namespace, text.strip(), cut(ids, 64, cache.codec), head)
    cache.registry.register(new, {}, 0)
    claim = cache.registry.take_claim(namespace, new.id, 60.0)
    behind = chunk_key(FINGERPRINT, "float32", namespace, head) if head else None
    for position, span in enumerate(new.chunks):
        key = chunk_key(FINGERPRINT, "float32", namespace, span, behind)
        behind = key if head else None
        cache.tiers[0].write_encoded(key, namespace, encode_chunk(key, span, kv_of(span)))
        cache.registry.record_chunk(claim, position, key)
    return cache.registry.finish_claim(claim)


@pytest.fixture(name="archive")
def archive_fixture(tmp_path):
    cache = opened(tmp_path / "here")
    for text in TEXTS:
        registered(cache, text)
    export_documents(cache, tmp_path / "set.tar", ("default",), print)
    return tmp_path / "set.tar"


@pytest.fixture(name="elsewhere")
def elsewhere_fixture(tmp_path):
    return opened(tmp_path / "elsewhere")


def rewritten(path, change_list=lambda manifest: None, change_chunk=lambda key, content: content):
    with tarfile.open(path) as archive:
        members = {m.name: archive.extractfile(m).read() for m in archive.getmembers()}
    manifest = json.loads(members.pop("documents.json"))
    change_list(manifest)
    with tarfile.open(path, "w") as archive:
        add(archive, "documents.json", json.dumps(manifest).encode())
        for name, content in members.items():
            add(archive, name, change_chunk(name.split(".")[0], content))


def add(archive, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def test_an_archive_is_imported_ready(archive, elsewhere):
    took = import_documents(elsewhere, archive, print)
    assert (took.documents, took.unusable_chunks) == (2, 0)
    documents = elsewhere.registry.page("default").documents
    assert [document.state for document in documents] == [State.READY] * 2
    assert took.chunks == elsewhere.tiers[0].stats().num_chunks > 2


def test_an_archive_carries_what_its_documents_are_compiled_behind(tmp_path, elsewhere):
    here = opened(tmp_path / "here")
    document = registered(here, TEXTS[0], head=(5, 6, 7))
    chunks = here.registry.chunks("default", document.id)
    export_documents(here, tmp_path / "set.tar", ("default",), print)
    took = import_documents(elsewhere, tmp_path / "set.tar", print)
    assert (took.chunks, took.unusable_chunks) == (len(chunks), 0)
    assert elsewhere.registry.chunks("default", document.id) == chunks
    assert elsewhere.registry.get("default", document.id).state == State.READY


def test_an_archive_of_before_there_were_heads_is_of_documents_compiled_alone(archive, elsewhere):
    rewritten(archive, lambda manifest: [item.pop("head") for item in manifest["documents"]])
    assert import_documents(elsewhere, archive, print).unusable_chunks == 0
    (one, _) = elsewhere.registry.page("default").documents
    assert {chunk.head for chunk in elsewhere.registry.chunks("default", one.id)} == {()}


def test_kv_that_is_said_to_be_behind_another_head_is_left_out(tmp_path, elsewhere):
    here = opened(tmp_path / "here")
    registered(here, TEXTS[0], head=(5, 6, 7))
    path = tmp_path / "set.tar"
    export_documents(here, path, ("default",), print)
    rewritten(path, lambda manifest: manifest["documents"][0].update(head=[5, 6]))
    took = import_documents(elsewhere, path, print)
    # Its first chunk alone: the others name the one before them by key.
    assert took.unusable_chunks == 1


def test_a_document_that_is_here_behind_another_head_keeps_it(tmp_path, elsewhere):
    here = opened(tmp_path / "here")
    document = registered(here, TEXTS[0], head=(5, 6, 7))
    export_documents(here, tmp_path / "set.tar", ("default",), print)
    ids = document_token_ids(TEXTS[0].strip(), elsewhere.codec)
    spans = cut(ids, 64, elsewhere.codec)
    elsewhere.registry.register(NewDocument("default", TEXTS[0].strip(), spans, (8, 9)), {}, 0)
    import_documents(elsewhere, tmp_path / "set.tar", print)
    chunks = elsewhere.registry.chunks("default", document.id)
    assert {(chunk.head, chunk.key) for chunk in chunks} == {((8, 9), None)}


@pytest.mark.parametrize(
    ("head", "reason"),
    [([512], "token id 512 in its head, the model's are below 512"), ([5] * 129, "with its head")],
)
def test_a_head_that_no_prompt_of_the_model_could_have_is_refused(archive, elsewhere, head, reason):
    rewritten(archive, lambda manifest: manifest["documents"][1].update(head=head))
    with pytest.raises(InvalidRequest, match=reason):
        import_documents(elsewhere, archive, print)
    assert elsewhere.registry.namespaces() == ()


SECOND = {
    "name": "x" * 257,
    "namespace": "a/b",
    "id": "doc-other",
    "text": "Something else.",
    "ttl_seconds": -1e300,
}


@pytest.mark.parametrize(("field", "value"), SECOND.items(), ids=SECOND)
def test_a_second_document_that_create_would_refuse_leaves_none_registered(
    archive, elsewhere, field, value
):
    rewritten(archive, lambda manifest: manifest["documents"][1].update({field: value}))
    with pytest.raises(InvalidRequest):
        import_documents(elsewhere, archive, print)
    assert elsewhere.registry.namespaces() == ()
    assert elsewhere.tiers[0].stats().num_chunks == 0


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (replace(LIMITS, max_document_bytes=112), "has 114 bytes, at most 112 fit"),
        (replace(LIMITS, max_document_tokens=20), "tokens, at most 20 fit"),
    ],
)
def test_an_import_is_held_to_the_server_s_bounds_of_a_document(archive, tmp_path, limits, reason):
    elsewhere = opened(tmp_path / "elsewhere", limits)
    with pytest.raises(InvalidRequest, match=reason):
        import_documents(elsewhere, archive, print)
    assert elsewhere.registry.namespaces() == ()


def test_an_import_past_its_namespace_s_quota_is_refused_whole(archive, tmp_path):
    quota = NamespaceQuota(max_bytes=2000, token_bytes=1)
    elsewhere = opened(tmp_path / "elsewhere", replace(LIMITS, namespace_quota=quota))
    kept = registered(elsewhere, "Kept.")
    with pytest.raises(Busy, match=r"\(namespace_bytes\); delete documents first"):
        import_documents(elsewhere, archive, print)
    assert [d.id for d in elsewhere.registry.page("default").documents] == [kept.id]


def test_a_chunk_longer_than_the_model_s_context_is_refused(archive, elsewhere):
    small = replace(elsewhere, model=replace(MODEL, max_positions=16))
    with pytest.raises(InvalidRequest, match=r"has \d+ tokens in a chunk, at most 16 fit"):
        import_documents(small, archive, print)


@pytest.mark.parametrize("shape", [(1, 1, 8), (2, 2, 8), (2, 1, 16)], ids=str)
def test_kv_that_is_not_of_the_model_s_shape_is_left_out(archive, elsewhere, shape):
    document = opened(archive.parent / "here").registry.page("default").documents[0]
    spans = {
        chunk.key: chunk.token_ids
        for chunk in opened(archive.parent / "here").registry.chunks("default", document.id)
    }

    def other_shape(key, content):
        if key not in spans:
            return content
        encoded = encode_chunk(key, spans[key], kv_of(spans[key], shape))
        return encoded.header + bytes(encoded.data)

    rewritten(archive, change_chunk=other_shape)
    took = import_documents(elsewhere, archive, print)
    assert took.unusable_chunks == len(spans)
    assert elsewhere.registry.get("default", document.id).state == State.REGISTERED


def test_a_chunk_with_numbers_that_are_none_is_left_out(archive, elsewhere):
    def spoilt(key, content):
        chunks = {
            chunk.key: chunk.token_ids
            for document in opened(archive.parent / "here").registry.page("default").documents
            for chunk in opened(archive.parent / "here").registry.chunks("default", document.id)
        }
        kv = kv_of(chunks[key])
        kv[1, 0, 0, 0, 3] = float("nan")
        encoded = encode_chunk(key, chunks[key], kv)
        return encoded.header + bytes(encoded.data)

    rewritten(archive, change_chunk=spoilt)
    assert import_documents(elsewhere, archive, print).chunks == 0


def test_an_archive_that_was_cut_short_registers_nothing(archive, elsewhere):
    content = archive.read_bytes()
    for size in (100, 700, len(content) // 2, len(content.rstrip(b"\0")) - 1):
        archive.write_bytes(content[:size])
        with pytest.raises(LegokvError):
            import_documents(elsewhere, archive, print)
        assert elsewhere.registry.namespaces() == ()

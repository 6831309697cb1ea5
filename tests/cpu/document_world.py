"""A documents service over a registry file, whose chunks are compiled into a dictionary."""

import pytest
from fakes import Clock
from small_tokenizer import small_tokenizer

from legokv.chunks.chunk import chunk_key
from legokv.documents.compiling import Compiler
from legokv.documents.document import DocumentLimits
from legokv.errors import PoolFull
from legokv.serving.documents import DocumentService
from legokv.stores.local.registry import Registry

LIMITS = DocumentLimits(
    max_document_bytes=2000,
    max_document_tokens=1000,
    max_chunk_tokens=64,
    max_pinned_tokens=300,
    claim_seconds=30.0,
    wait_seconds=10.0,
)


TEXT = "The lighthouse keeper counts ships. " * 6


class Store:
    """Chunk storage that is a dictionary; what it was asked to compile and drop is kept."""

    def __init__(self):
        self.compiled, self.dropped = [], []
        self.failure = None
        self.failures_after = None

    def compile(self, namespace, chunks):
        token_ids = chunks[-1].token_ids
        if self.failure is not None:
            raise self.failure
        if len(self.compiled) == self.failures_after:
            raise PoolFull("full")
        self.compiled.append(tuple(token_ids))
        return chunk_key("f" * 64, "float32", namespace, token_ids)

    def drop(self, keys):
        self.dropped.extend(keys)


@pytest.fixture(name="clock")
def clock_fixture():
    return Clock()


@pytest.fixture(name="registry")
def registry_fixture(tmp_path, clock):
    with Registry.open(tmp_path / "registry.sqlite", clock) as registry:
        yield registry


@pytest.fixture(name="store")
def store_fixture():
    return Store()


@pytest.fixture(name="jobs")
def jobs_fixture():
    return []


@pytest.fixture(name="service")
def service_fixture(registry, store, jobs):
    compiler = Compiler(registry, store.compile, store.drop, LIMITS)
    return DocumentService(registry, small_tokenizer(), compiler, LIMITS, jobs.append)


def create(service, text=TEXT, **fields):
    return service.reply({"operation": "create", "text": text, **fields})


def listed(service, **fields):
    return service.reply({"operation": "list", **fields})["documents"]

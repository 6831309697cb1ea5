"""A document asked to be warm is in that tier, or a faster one, before a request uses it."""

import dataclasses
import shutil
import subprocess
import sys
import threading
import time

import pytest
from crash_worker import LIMITS, TEXTS
from paths import CLIENT

from legokv import Engine, EngineSettings
from legokv.built.folder import cache_root
from legokv.documents.compiling import Compiler
from legokv.errors import InvalidRequest, PoolFull
from legokv.serving.documents import WARM_TIERS, DocumentService
from legokv.serving.engine_service import EngineService
from legokv.serving.messages import Compile, Drop, Find, Rank, Warm
from legokv.serving.pieces import segments_as_registered
from legokv.stores.local.registry import Registry


class Machine:
    """A documents service with the engine's process behind it, but for Triton between them."""

    def __init__(self, engine_folder, cache_dir, **settings):
        self.engine = Engine.open(
            engine_folder,
            settings=EngineSettings(cache_dir=cache_dir, attention="torch", **settings),
        )
        self.process = EngineService(self.engine)
        self.jobs = []
        root = cache_root(cache_dir, self.engine.facts)
        registry = Registry.open(root / "registry.sqlite")
        compiler = Compiler(
            registry, self.compile, self.drop, LIMITS, self.warm, self.find, self.rank
        )
        tokenizer = self.engine.tokenizer
        self.service = DocumentService(registry, tokenizer, compiler, LIMITS, self.jobs.append)

    def compile(self, namespace, chunks):
        (event,) = self.process.events(Compile(namespace, self.segments(namespace, chunks)))
        return event.key

    def drop(self, keys):
        self.process.events(Drop(tuple(keys)))

    def warm(self, namespace, chunks, tier):
        self.process.events(Warm(namespace, self.segments(namespace, chunks), tier))

    def find(self, keys):
        (event,) = self.process.events(Find(tuple(keys)))
        return event.tiers

    def rank(self, namespace, chunks):
        self.process.events(Rank(namespace, self.segments(namespace, chunks)))

    def segments(self, namespace, chunks):
        return segments_as_registered(self.engine._naming, chunks, namespace)

    def register(self, number, **fields):
        return self.service.reply({"operation": "create", "text": TEXTS[number], **fields})

    def tier(self, name):
        return {stats.tier: stats for stats in self.engine.cache_stats()}[name]


@pytest.fixture
def start(tiny_engine_folder, tmp_path):
    machines = []

    def started(**settings):
        settings.setdefault("pool_tokens", 1024)
        machines.append(Machine(tiny_engine_folder(), tmp_path, **settings))
        return machines[-1]

    yield started
    for machine in machines:
        machine.process.close()


def test_a_document_compiled_before_a_restart_is_where_it_was_asked_to_be(start):
    number = start().register(0)["document"]["num_chunks"]
    for tier, held in (("disk", (0, 0)), ("host", (number, 0)), ("pool", (number, number))):
        machine = start()
        reply = machine.register(0, warm=tier)
        assert (reply["created"], reply["warmed_chunks"]) == (False, number)
        assert (machine.tier("host").num_chunks, machine.tier("pool").num_chunks) == held
        assert machine.engine.executor.counters.compiled_chunks == 0


def rankings(machine):
    return [resident.ranking for resident in machine.engine.cache.residents]


def test_a_document_is_ranked_when_it_is_registered_or_later_and_stays_so(start):
    number = start().register(0)["document"]["num_chunks"]
    later = start()
    assert "ranked_chunks" not in later.register(0)
    reply = later.register(0, rank=True, warm="host")
    assert (reply["created"], reply["ranked_chunks"], reply["warmed_chunks"]) == (
        *(False, number),
        number,
    )
    machine = start()
    machine.register(0, warm="pool")
    assert [len(ranking) for ranking in rankings(machine)] == [
        resident.chunk.num_tokens for resident in machine.engine.cache.residents
    ]
    assert machine.register(0, rank=True)["ranked_chunks"] == number
    assert machine.engine.executor.counters.steps == 0


def test_documents_are_ranked_by_the_server_s_default_unless_they_say(start):
    machine = start()
    machine.service._limits = dataclasses.replace(LIMITS, rank=True)
    assert machine.register(0)["ranked_chunks"] == machine.tier("pool").num_chunks
    assert "ranked_chunks" not in machine.register(1, rank=False)
    assert "ranked_chunks" not in machine.register(1, wait=False)
    machine.jobs[0]()
    assert all(ranking is not None for ranking in rankings(machine))


def test_without_a_tier_asked_for_nothing_is_read(start):
    start().register(0)
    machine = start()
    assert "warmed_chunks" not in machine.register(0)
    assert machine.tier("disk").hits == 0


@pytest.mark.parametrize("tier", WARM_TIERS)
def test_what_no_tier_has_any_more_is_compiled(start, tmp_path, tier):
    number = start().register(0)["document"]["num_chunks"]
    for folder in tmp_path.glob("*/chunks"):
        shutil.rmtree(folder)
    machine = start()
    assert machine.register(0, warm=tier)["warmed_chunks"] == number
    assert machine.engine.executor.counters.compiled_chunks == number


def test_a_tier_that_the_server_does_not_have_is_stood_in_for_by_the_pool(start):
    number = start().register(0)["document"]["num_chunks"]
    machine = start(host_bytes=0)
    assert machine.register(0, warm="host")["warmed_chunks"] == number
    assert machine.tier("pool").num_chunks == number


def test_a_document_registered_without_waiting_is_warmed_when_it_is_compiled(start):
    machine = start()
    machine.register(0)
    later = start()
    assert "warmed_chunks" not in later.register(0, wait=False, warm="pool")
    assert later.tier("pool").num_chunks == 0
    (job,) = later.jobs
    job()
    assert later.tier("pool").num_chunks == machine.tier("disk").num_chunks


def test_a_document_deleted_before_it_is_warmed_leaves_nothing(start):
    machine = start()
    document = machine.register(0, wait=False, warm="pool")["document"]
    machine.service.reply({"operation": "delete", "id": document["id"]})
    (job,) = machine.jobs
    job()
    assert machine.tier("pool").num_chunks == 0


def test_a_document_that_another_compiles_is_warmed_here_when_it_is_ready(start):
    here, other = start(), start()
    here.register(0, wait=False, warm="pool")
    warming = threading.Thread(target=here.jobs[0])
    compile_chunk = other.service._compiler._compile_chunk

    def slowly(namespace, chunks):
        if not warming.is_alive():
            warming.start()
            time.sleep(0.2)  # it finds the document claimed
        return compile_chunk(namespace, chunks)

    other.service._compiler._compile_chunk = slowly
    number = other.register(0)["document"]["num_chunks"]
    warming.join(60)
    assert here.tier("pool").num_chunks == number
    assert here.engine.executor.counters.compiled_chunks == 0


def test_a_document_that_cannot_be_warmed_whole_says_how_many_of_its_chunks_are(start):
    machine = start()
    number = machine.register(0)["document"]["num_chunks"]
    done = []

    def full_after_one(namespace, chunks, tier):
        if done:
            raise PoolFull("3 pages are needed, 0 of 8 are free")
        done.append(tier)

    machine.service._compiler._warm_chunk = full_after_one
    assert machine.register(0, warm="pool")["warmed_chunks"] == 1 < number


def test_a_tier_that_cannot_be_asked_for_is_refused_before_anything_is_registered(start):
    machine = start()
    with pytest.raises(InvalidRequest, match="'warm' is one of pool, host, disk, not 'remote'"):
        machine.register(0, warm="remote")
    assert machine.service.reply({"operation": "list"})["documents"] == []


def test_the_client_offers_the_tiers_that_the_server_takes():
    script = CLIENT / "documents.py"
    command = [sys.executable, script, "add", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"--warm {{{','.join(WARM_TIERS)}}}" in shown


def test_a_document_is_shown_with_the_tiers_in_which_its_chunks_are_read_fastest(start):
    machine = start()
    document = machine.register(0)["document"]
    num_chunks = document["num_chunks"]
    get = {"operation": "get", "id": document["id"], "tiers": True}
    assert machine.service.reply(get)["document"]["tiers"] == {"pool": num_chunks}
    machine.process.close()
    machine = start()
    assert machine.service.reply(get)["document"]["tiers"] == {"disk": num_chunks}
    listed = machine.service.reply({"operation": "list", "tiers": True})["documents"]
    assert [shown["tiers"] for shown in listed] == [{"disk": num_chunks}]
    assert "tiers" not in machine.service.reply({"operation": "list"})["documents"][0]

"""Two processes share a cache and are killed at random moments; files are damaged meanwhile.

LEGOKV_CRASH_SECONDS=600 makes it a soak of ten minutes; LEGOKV_CRASH_SEED another course of events.
"""

import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from crash_worker import DISK_BYTES, NUM_DOCUMENTS, QUESTIONS, Worker, answers, is_close, run
from paths import TESTS

from legokv.chunks.header import STORED_DTYPES
from legokv.chunks.tier import Repair
from legokv.stores.local.repair import mend, verify

SECONDS = float(os.environ.get("LEGOKV_CRASH_SECONDS", "25"))
SEED = int(os.environ.get("LEGOKV_CRASH_SEED", "20241"))


class Crew:
    """Two workers at a time, one for each form of KV at first.

    Whoever is killed is replaced by one with the next seed.
    """

    def __init__(
        self, engine_folder: Path, cache_dir: Path, right: dict[str, torch.Tensor], log: Path
    ):
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["crash_worker"])
        self._arguments = (engine_folder, cache_dir), (right, log)
        self._started = 0
        self._log = log
        self.workers = [self._start(), self._start()]

    def wait_until_opened(self, number: float) -> None:
        """Return when workers have opened the cache so often."""
        deadline = time.monotonic() + 180
        while not self._log.exists() or self._log.read_text().count("opened") < number:
            assert time.monotonic() < deadline, f"the cache was not opened {number:g} times in time"
            time.sleep(0.05)

    def _start(self):
        self._started += 1
        before, after = self._arguments
        worker = self._context.Process(
            target=run, args=(*before, SEED + self._started, *after), daemon=True
        )
        worker.start()
        return worker

    def kill(self, index: int) -> None:
        """Kill -9, and start another in its place."""
        self._end(self.workers[index])
        self.workers[index] = self._start()

    def end(self) -> None:
        for worker in self.workers:
            self._end(worker)

    def _end(self, worker) -> None:
        assert worker.is_alive(), "a worker ends only when it is killed"
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()


def damage(cache_dir: Path, rng: random.Random) -> int:
    """Damage one stored file in one of five ways; how many were."""
    files = sorted(cache_dir.rglob("*.safetensors"))
    if not files:
        return 0
    file = rng.choice(files)
    try:
        content = bytearray(file.read_bytes())
        if not content:
            return 0  # emptied before, and not noticed yet
        kind = rng.randrange(5)
        if kind == 0:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del content[rng.randrange(len(content)) :]
        elif kind == 2:
            content.clear()
        elif kind == 3:
            content = bytearray(rng.choice(files).read_bytes())
        else:
            file.unlink()
            return 1
        file.write_bytes(content)
    except FileNotFoundError:
        return 0  # evicted meanwhile
    return 1


@pytest.fixture
def crew(tiny_engine_folder, tmp_path, monkeypatch):
    tests = str(TESTS)
    monkeypatch.setenv("PYTHONPATH", tests)  # for the fork server
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    right = {form: answers(tiny_engine_folder(), form) for form in STORED_DTYPES}
    crew = Crew(tiny_engine_folder(), tmp_path / "cache", right, tmp_path / "log")
    yield crew
    for worker in crew.workers:
        worker.kill()


@pytest.mark.timeout(SECONDS + 300)
def test_killed_at_any_moment_the_cache_starts_answers_right_and_leaks_nothing(
    crew, tiny_engine_folder, tmp_path, record_property
):
    rng = random.Random(SEED)
    kills = damaged = 0
    crew.wait_until_opened(2)  # the fork server itself takes seconds to start
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        time.sleep(rng.uniform(0.02, 1.0))
        crew.kill(rng.randrange(2))
        kills += 1
        # On a machine too busy to open a cache in a second, else none would ever do any work.
        crew.wait_until_opened(kills / 3)
        damaged += damage(tmp_path / "cache", rng)
    crew.end()
    lines = (tmp_path / "log").read_text().splitlines()
    seen = Counter(line.split()[0] for line in lines)
    counts = f"{kills} kills survived, {damaged} files damaged in {SECONDS:g} s"
    answered = seen["right"] + seen["wrong"]
    record_property("fact", f"{counts}, {answered} answers, {seen['wrong']} wrong answers")
    print(f"\nsteps: {dict(seen)}")
    assert [line for line in lines if line.startswith(("wrong", "failed"))] == []
    assert seen["right"] > kills / 2
    assert seen["opened"] > kills / 4
    assert_sound_and_right(tiny_engine_folder(), tmp_path / "cache")


def assert_sound_and_right(engine_folder: Path, cache_dir: Path) -> None:
    worker = Worker(engine_folder, cache_dir)
    disk = worker.engine.tiers.tiers[-1]
    assert mend(disk, worker.registry.named) == Repair(), "opening has mended all there was"
    verify(disk, lambda files, num_bytes: None)
    assert verify(disk, lambda files, num_bytes: None).num_found == 0
    on_disk = sum(path.stat().st_size for path in disk.folder.root.rglob("*") if path.is_file())
    assert on_disk == disk.stats().num_bytes <= DISK_BYTES
    for form in STORED_DTYPES:
        worker = Worker(engine_folder, cache_dir, form)
        right = answers(engine_folder, form)
        for question, expected in zip(QUESTIONS, right, strict=True):
            assert is_close(worker.answer(question), expected, form), (form, question)
    for number in range(NUM_DOCUMENTS):
        worker.delete(number)
    assert worker.engine.cache.num_leases == 0
    assert worker.registry.page("default").documents == ()

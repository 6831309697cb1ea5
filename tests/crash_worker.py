"""What a process of the crash loop does until it is killed: register, evict, answer, delete.

Its engine, registry and folder are real and far too small, so that every step evicts something.
"""

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path

import torch
import torch._dynamo  # what a first model takes two seconds to import; forked workers have it
from engine_chunks import chunks_of, compile_last

from legokv import Engine, EngineSettings
from legokv.built.folder import cache_root, read_engine_folder
from legokv.chunks.chunk import Chunk
from legokv.chunks.header import STORED_DTYPES
from legokv.documents.compiling import Compiler
from legokv.documents.cut import cut, document_token_ids
from legokv.documents.document import DocumentLimits, StoredChunk
from legokv.errors import Busy, LegokvError
from legokv.serving.documents import DocumentService
from legokv.stores.local.registry import Registry

NUM_DOCUMENTS = 7
TEXTS = tuple(
    f"Lighthouse number {n} of Vellin was built in {1700 + n} and is {30 + n} metres high. " * 3
    for n in range(NUM_DOCUMENTS)
)
QUESTIONS = tuple(permutations(range(NUM_DOCUMENTS), 2))
POOL_TOKENS = 16 * 56
HOST_BYTES = 200_000
DISK_BYTES = 600_000
LIMITS = DocumentLimits(
    max_chunk_tokens=64, max_pinned_tokens=300, claim_seconds=0.5, wait_seconds=20.0
)
# float32 sums of a linked prompt differ by rounding with what else was computed in the step, and a
# value on the edge then rounds to another int8. The two forms' answers are 0.04 and more apart.
TOLERANCES = {"model": 5e-4, "int8": 2e-2}


class Worker:
    """A registry, a documents service and an engine over one cache folder, without a server."""

    def __init__(self, engine_folder: Path, cache_dir: Path, form: str = "model") -> None:
        self.form = form
        root = cache_root(cache_dir, read_engine_folder(engine_folder))
        self.registry = Registry.open(root / "registry.sqlite")
        self.engine = Engine.open(
            engine_folder,
            settings=EngineSettings(
                pool_tokens=POOL_TOKENS,
                cache_dir=cache_dir,
                attention="torch",
                num_threads=1,
                host_bytes=HOST_BYTES,
                disk_bytes=DISK_BYTES,
                kv_stored_dtype=form,
            ),
            pinned_keys=self.registry.pinned_chunk_keys,
        )
        compiler = Compiler(self.registry, self._compile, self._drop, LIMITS)
        self.service = DocumentService(self.registry, self.engine.tokenizer, compiler, LIMITS)

    def register(self, number: int, **fields: object) -> str:
        """The id of a document that is ready."""
        request = {"operation": "create", "text": TEXTS[number], **fields}
        return str(self.service.reply(request)["document"]["id"])

    def answer(self, question: tuple[int, ...]) -> torch.Tensor:
        """The next token's logits behind the question's documents, which are registered for it."""
        ids = [self.register(number) for number in question]
        chunks = chunks_of(self.engine, self.registry.chunks("default", *ids))
        return self.engine.prefill([*chunks, [5, 6, 7]]).logits

    def delete(self, number: int) -> None:
        document = self.register(number)
        self.service.reply({"operation": "delete", "id": document})

    def _compile(self, namespace: str, chunks: Sequence[StoredChunk]) -> str:
        return compile_last(self.engine, chunks, namespace)

    def _drop(self, keys: tuple[str, ...]) -> None:
        for key in keys:
            self.engine.drop(key)


def answers(engine_folder: Path, form: str = "model") -> torch.Tensor:
    """What is right: the logits of all QUESTIONS, by an engine that keeps nothing."""
    engine = Engine.open(
        engine_folder,
        settings=EngineSettings(
            pool_tokens=8192, attention="torch", num_threads=1, kv_stored_dtype=form
        ),
    )
    return torch.stack([_answer_alone(engine, question) for question in QUESTIONS])


def _answer_alone(engine: Engine, question: tuple[int, ...]) -> torch.Tensor:
    chunks: list[Chunk] = []
    for number in question:
        ids = document_token_ids(TEXTS[number].rstrip(), engine.tokenizer)
        for place, span in enumerate(cut(ids, LIMITS.max_chunk_tokens, engine.tokenizer)):
            chunks.append(engine.compile(span, behind=chunks[-1] if place else ()))
    return engine.prefill([*chunks, [5, 6, 7]]).logits


def run(
    engine_folder: Path, cache_dir: Path, seed: int, right: dict[str, torch.Tensor], log: Path
) -> None:
    """Work until killed; every step leaves one line in `log`. KV is kept in either form by turns.

    right: `answers` of each form.
    """
    torch.set_num_threads(1)
    form = STORED_DTYPES[seed % len(STORED_DTYPES)]
    rng = random.Random(seed)
    with _lines(log) as say:
        try:
            worker = Worker(engine_folder, cache_dir, form)
            say("opened")
            while True:
                say(_step(worker, rng, right[form]))
        except Exception as error:
            say(f"failed {type(error).__name__}: {error}".replace("\n", " "))
            raise


def _step(worker: Worker, rng: random.Random, right: torch.Tensor) -> str:
    number = rng.randrange(NUM_DOCUMENTS)
    kind = rng.choices(("answer", "register", "pin", "delete"), (6, 2, 1, 1))[0]
    try:
        if kind == "answer":
            index = rng.randrange(len(QUESTIONS))
            logits = worker.answer(QUESTIONS[index])
            is_right = is_close(logits, right[index], worker.form)
            return "right" if is_right else f"wrong {QUESTIONS[index]}"
        if kind == "delete":
            worker.delete(number)
        else:
            worker.register(number, pinned=kind == "pin", ttl_seconds=rng.choice((0.2, 60.0, None)))
    except Busy:
        return "busy"  # pins are full: said so, and nothing done
    except LegokvError as error:
        if error.code == "NOT_FOUND":
            return "gone"  # the other worker deleted it in between
        raise
    return kind


def is_close(logits: torch.Tensor, right: torch.Tensor, form: str) -> bool:
    return bool((logits - right).abs().max() <= TOLERANCES[form])


@contextmanager
def _lines(log: Path) -> Iterator[object]:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        yield lambda text: os.write(handle, f"{text}\n".encode())
    finally:
        os.close(handle)

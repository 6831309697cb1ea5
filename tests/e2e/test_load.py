"""More than a server can do at once: its answers are right, its refusals clear, all is freed."""

import random
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from processes import soon
from scrape import at_rest
from server import RunningServer, refusal, replies, serving
from server_texts import TEXTS
from tritonclient.utils import InferenceServerException

QUESTION = "Who keeps the oldest lighthouse?"
NUM_SHORT_REQUESTS = 2000
SETTLED_REQUESTS = 300
"""After these, what Python and Triton allocate once is allocated."""
ALLOWED_GROWTH_BYTES = 32 * 2**20


def test_64_requests_at_once_answer_as_each_does_alone(
    server: RunningServer, documents: list[str], library: Callable[..., str]
) -> None:
    dice = random.Random(64)
    orders = [dice.sample(range(4), dice.randint(1, 4)) for _ in range(64)]
    lengths = [dice.randint(4, 40) for _ in orders]
    alone = [
        library(f"{QUESTION} ({n})", order, max_tokens=length)
        for n, (order, length) in enumerate(zip(orders, lengths, strict=True))
    ]

    def ask(number: int) -> str:
        streamed = server.stream(
            text_input=f"{QUESTION} ({number})",
            document_ids=[documents[place] for place in orders[number]],
            max_tokens=lengths[number],
        )
        return "".join(reply["text_output"] for reply in streamed)

    with ThreadPoolExecutor(64) as threads:
        at_once = list(threads.map(ask, range(64)))
    assert at_once == alone


def test_a_pool_far_too_small_answers_all_in_turn_and_refuses_only_what_never_fits(
    engine_folder: Path, tmp_path: Path, library: Callable[..., str]
) -> None:
    alone = {place: library(QUESTION, [place], max_tokens=9) for place in range(4)}
    with serving(engine_folder, tmp_path, pool_tokens=480, max_chunk_tokens=64) as server:
        ids = server.register(*TEXTS)

        def ask(number: int) -> tuple[int, str]:
            place = number % 4
            if number % 8 == 7:
                with pytest.raises(InferenceServerException) as refused:
                    server.ask(text_input=QUESTION, document_ids=ids, max_tokens=400)
                return place, refusal(refused.value)[1]
            reply = server.ask(text_input=QUESTION, document_ids=[ids[place]], max_tokens=9)
            return place, reply["text_output"]

        with ThreadPoolExecutor(16) as threads:
            answers = list(threads.map(ask, range(32)))
    for number, (place, text) in enumerate(answers):
        if number % 8 == 7:
            assert re.search(r"needs \d+ pages of 16 tokens, the pool has 30", text)
        else:
            assert text == alone[place]


def test_a_full_queue_refuses_with_the_numbers_and_answers_those_in_it(
    engine_folder: Path, tmp_path: Path, library: Callable[..., str]
) -> None:
    alone = library(QUESTION, [], max_tokens=120)
    long = {"max_tokens": 1900, "return_log_probs": True, "num_top_log_probs": 20}
    with (
        serving(engine_folder, tmp_path, pool_tokens=2048, max_queue_requests=2) as server,
        closing(server.client()) as client,
    ):

        def ask(_: int) -> str:
            try:
                return str(server.ask(text_input=QUESTION, max_tokens=120)["text_output"])
            except InferenceServerException as error:
                return str(error)

        # While one answer has most of the pool, which leaves too little for another.
        holding = replies(client, text_input="Who?", min_tokens=1900, stream=True, **long)
        next(holding)
        with ThreadPoolExecutor(16) as threads:
            asked = [threads.submit(ask, number) for number in range(16)]
            soon(lambda: sum(answer.done() for answer in asked) >= 14)
            holding.close()
            answers = [answer.result() for answer in asked]
        after = ask(0)
    refused = [text for text in answers if "max_queue_requests allows 2" in text]
    assert len(refused) >= 14
    assert len(refused) < len(answers)
    assert {text for text in answers if text not in refused} == {alone} == {after}


def test_thousands_of_short_requests_leave_memory_pages_and_shared_memory_as_they_were(
    engine_folder: Path, tmp_path: Path
) -> None:
    pool_tokens = 1024
    with serving(engine_folder, tmp_path, pool_tokens=pool_tokens) as server:
        (document_id,) = server.register(TEXTS[0])
        body = b'{"text_input": "Who?", "max_tokens": 2, "document_ids": ["%s"]}'

        def ask(number: int) -> int:
            # Each fifth over a document nobody has: a refusal frees what it held too.
            known = document_id if number % 5 else "0" * len(document_id)
            return server.post("/v2/models/generate/generate", body % known.encode())[0]

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(ask, range(SETTLED_REQUESTS)))
            shown = at_rest(server)
            before = footprint(server)
            statuses = list(threads.map(ask, range(NUM_SHORT_REQUESTS)))
        after, shown_after = footprint(server), at_rest(server)
        assert statuses.count(200) == NUM_SHORT_REQUESTS * 4 // 5
        assert after[1] == before[1]
        assert after[0] - before[0] < ALLOWED_GROWTH_BYTES
        for gauge in ("legokv_pool_pages_used", "legokv_active_leases", "legokv_requests_running"):
            assert shown_after(gauge) == shown(gauge)
        # Every page of the pool is free again, or this would wait for ever.
        whole = server.ask(text_input="Who?", max_tokens=pool_tokens - 64, stop_words=["\0"])
    assert whole["generated_tokens"] > 0


def footprint(server: RunningServer) -> tuple[int, set[tuple[str, int]]]:
    """Bytes of memory of the models' processes, and the shared-memory files with their sizes."""
    page_bytes = 4096
    resident = 0
    for pid in server.processes():
        # Without what is mapped from files and shared memory, counted below.
        _, total, shared, *_ = map(int, Path("/proc", str(pid), "statm").read_text().split())
        resident += (total - shared) * page_bytes
    files = Path("/dev/shm").glob(f"legokv_{server.process.pid}_*")
    return resident, {(file.name, file.stat().st_size) for file in files}

"""Clients that leave at any moment, many at once, beside clients that stay."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from server import RunningServer, replies

QUESTION = "Who keeps the oldest lighthouse?"
NUM_CLIENTS = 60
MAX_TOKENS = 24


def test_clients_that_stay_get_every_token_while_others_leave_at_any_moment(
    server: RunningServer, documents: list[str], library: Callable[..., str]
) -> None:
    def leave(number: int) -> None:
        num_pieces = random.Random(number).randrange(12)
        ids = documents[number % 4 :]
        with closing(server.client()) as client:
            answer = replies(
                client, text_input=QUESTION, document_ids=ids, max_tokens=300, stream=True
            )
            for _ in range(num_pieces):
                next(answer)
            answer.close()

    def stay(number: int) -> tuple[int, str]:
        first = number % 4
        streamed = server.stream(
            text_input=QUESTION, document_ids=documents[first:], max_tokens=MAX_TOKENS
        )
        return first, "".join(reply["text_output"] for reply in streamed)

    with ThreadPoolExecutor(8) as threads:
        leaving = [threads.submit(leave, number) for number in range(NUM_CLIENTS)]
        staying = [threads.submit(stay, number) for number in range(NUM_CLIENTS // 2)]
        for left in leaving:
            left.result()
        answers = {stayed.result() for stayed in staying}
    expected = {
        (first, library(QUESTION, list(range(first, 4)), max_tokens=MAX_TOKENS))
        for first in range(4)
    }
    assert answers == expected

"""Clients that leave at any moment, many at once, beside clients that stay."""

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import grpc
from scrape import at_rest
from server import RunningServer, inputs, replies
from tritonclient.grpc import service_pb2, service_pb2_grpc

QUESTION = "Who keeps the oldest lighthouse?"
NUM_CLIENTS = 60
MAX_TOKENS = 24
NUM_STREAMS = 100


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


def test_clients_that_leave_with_several_requests_on_a_stream_end_nothing(
    server: RunningServer,
) -> None:
    """Triton ends by itself where such a stream is cancelled."""
    processes, before = server.processes(), at_rest(server)
    lengths = random.Random(0)
    num_tokens = [[lengths.choice((2, 5, 300)) for _ in range(3)] for _ in range(NUM_STREAMS)]

    def leave(number: int) -> None:
        dice = random.Random(number)
        asked = [question(max_tokens=n, min_tokens=n) for n in num_tokens[number]]
        over = threading.Event()
        with grpc.insecure_channel(server.grpc) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            answers = stub.ModelStreamInfer(and_no_end(asked, over))
            for _ in range(dice.randrange(6)):
                next(answers)
            answers.cancel()
        over.set()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(leave, range(NUM_STREAMS)))
    grown = at_rest(server).since(before)
    # If nobody heard of who left, it would be all of them.
    assert grown("legokv_generated_tokens_total") < sum(map(sum, num_tokens)) / 2
    assert server.processes() == processes


def question(**fields: object) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name="generate")
    for made in inputs({"text_input": QUESTION, "stream": True, **fields}):
        request.inputs.append(made._get_tensor())
        request.raw_input_contents.append(made._get_content())
    return request


def and_no_end(
    asked: list[service_pb2.ModelInferRequest], over: threading.Event
) -> Iterator[object]:
    """These messages, and no end of them while the client is there."""
    yield from asked
    over.wait()

"""A legokv server as the other scripts see it: its documents and its answers, over gRPC."""

import argparse
import json
import os
import queue
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

DEFAULT_URL = "127.0.0.1:8001"
FINAL = "triton_final_response"
# What a balancer in front of several servers tells them apart by (docs/fleet.md).
DOCUMENT_HEADER = "x-legokv-document"


class Refused(Exception):
    """The server's reason why it did not do what was asked, or why it was not reached."""


class Server:
    """One server and one namespace of its documents."""

    def __init__(self, url: str, namespace: str) -> None:
        self._triton = triton.InferenceServerClient(url)
        self._namespace = namespace

    def documents(self, operation: str, **fields: object) -> dict[str, Any]:
        """The reply of the documents model to one operation."""
        request = {"operation": operation, "namespace": self._namespace, **fields}
        body = np.array(
            [json.dumps(request, ensure_ascii=False, allow_nan=False).encode()], np.object_
        )
        try:
            result = self._triton.infer("documents", [_input("request", body)])
        except InferenceServerException as error:
            raise Refused(error.message()) from None
        return json.loads(result.as_numpy("reply")[0])

    def all_documents(self, name: str | None = None) -> Iterator[dict[str, Any]]:
        """All documents, or those called `name`, in order of registration."""
        after = 0
        while after is not None:
            page = self.documents("list", after=after, name=name)
            yield from page["documents"]
            after = page["next_after"]

    def document_id(self, name: str) -> str:
        """The id of the one document called `name`; an id stands for itself."""
        if name.startswith("doc-"):
            return name
        ids = [document["id"] for document in self.all_documents(name)]
        if len(ids) != 1:
            raise Refused(
                f"{len(ids)} documents are called {name!r} in namespace {self._namespace!r}: "
                "give an id that `documents.py list` shows"
            )
        return ids[0]

    def answers(self, fields: dict[str, object]) -> Iterator[dict[str, Any]]:
        """The generate model's replies as they come, outputs by name; the last has the usage.

        Leaving the iterator early cancels the request.
        """
        inputs = self._inputs({"namespace": self._namespace, **fields})
        replies: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self._triton.start_stream(
            lambda result, error: replies.put((result, error)), headers=_headers(fields)
        )
        final = False
        try:
            self._triton.async_stream_infer("generate", inputs)
            while not final:
                result, error = replies.get()
                if error is not None:
                    final = True
                    raise Refused(error.message())
                final = result.get_response().parameters[FINAL].bool_param
                yield _outputs(result)
        finally:
            # Cancelling a request that has ended makes the server wait ten seconds when it stops.
            self._triton.stop_stream(cancel_requests=not final)

    def _inputs(self, fields: dict[str, object]) -> list[triton.InferInput]:
        types = self._input_types
        return [_input(name, _array(name, value, types[name])) for name, value in fields.items()]

    @cached_property
    def _input_types(self) -> dict[str, str]:
        """Triton's types of the generate model's inputs, as the model's own config names them."""
        try:
            config = self._triton.get_model_config("generate", as_json=True)["config"]
        except InferenceServerException as error:
            raise Refused(error.message()) from None
        return {item["name"]: item["data_type"].removeprefix("TYPE_") for item in config["input"]}


def _headers(fields: dict[str, object]) -> dict[str, str] | None:
    documents = fields.get("document_ids")
    return {DOCUMENT_HEADER: documents[0]} if isinstance(documents, list) and documents else None


def _array(name: str, value: object, triton_type: str) -> Any:
    """`value` or a list of values as a batch of one; Refused for a number the type can't hold."""
    values = value if isinstance(value, list) else [value]
    dtype = triton_to_np_dtype("BYTES" if triton_type == "STRING" else triton_type)
    if np.issubdtype(dtype, np.integer):
        least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
        for number in values:
            if not least <= number <= most:
                raise Refused(f"{name} is {number}, outside {least} to {most}")
    plain = [item.encode() if isinstance(item, str) else item for item in values]
    return np.array(plain, dtype).reshape(1, -1)


def _input(name: str, array: Any) -> triton.InferInput:
    made = triton.InferInput(name, array.shape, triton.np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array)
    return made


def _outputs(result: triton.InferResult) -> dict[str, Any]:
    """Outputs by name without their batch dimension; one value stands for a list of one."""
    names = [output.name for output in result.get_response().outputs]
    values = {name: _text(result.as_numpy(name)[0].tolist()) for name in names}
    return {n: v[0] if len(v) == 1 and not isinstance(v[0], list) else v for n, v in values.items()}


def _text(values: list[Any]) -> list[Any]:
    return [value.decode() if isinstance(value, bytes) else value for value in values]


def add_connection_options(parser: argparse.ArgumentParser) -> None:
    """The options that every script has."""
    parser.add_argument("--url", default=DEFAULT_URL, help="gRPC address (default: %(default)s)")
    parser.add_argument("--namespace", default="default", help="whose documents")
    parser.add_argument("--format", choices=("text", "json"), default="text")


def exit_status(run: Callable[[], int]) -> int:
    """What `run` gives; 1 with a printed reason if the server refused, 130 on Ctrl-C."""
    try:
        return run()
    except Refused as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read the output has enough; the interpreter must not write to it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0

"""A legokv server as the other scripts see it: its documents and its answers, over gRPC."""

import argparse
import json
import math
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

DEFAULT_URL = "127.0.0.1:8001"
WAIT_SECONDS = 630.0
"""Longer than a server's own limits, unless its settings are others."""
SLACK_SECONDS = 10.0
"""What a server may take to end a request whose time is over, and the network to say so."""
SHOWN_IDS = 4
"""Of documents that have one name."""
END_SECONDS = 5.0
"""So long the end of a stream may take whose answer is there, or which was refused."""
FINAL = "triton_final_response"
# What a balancer in front of several servers tells them apart by (docs/fleet.md).
DOCUMENT_HEADER = "x-legokv-document"
_URL = re.compile(r"[^/]+:(\d{1,5})")
_DOCUMENT_ID = re.compile(r"doc-[0-9a-f]{24}")
# What gRPC says where no server of its kind was reached; a server's own refusals say none of it.
_NOT_REACHED = ("failed to connect", "errors resolving", "Failed to create channel")
_NOT_OURS = ("Method not found", "unknown service")
_CUT_OFF = ("Socket closed", "Connection reset", "recvmsg", "GOAWAY", "Stream removed")


class Refused(Exception):
    """The server's reason why it did not do what was asked, or why it was not reached."""


class Server:
    """One server and one namespace of its documents."""

    def __init__(self, url: str, namespace: str, wait_seconds: float = WAIT_SECONDS) -> None:
        """Refused for an address that is none. Nothing waits longer than `wait_seconds`."""
        self._triton = triton.InferenceServerClient(_checked(url))
        self._url = url
        self._namespace = namespace
        self._wait_seconds = wait_seconds

    def documents(self, operation: str, **fields: object) -> dict[str, Any]:
        """The reply of the documents model to one operation."""
        request = {"operation": operation, "namespace": self._namespace, **fields}
        text = json.dumps(request, ensure_ascii=False, allow_nan=False).encode()
        body = [_input("request", np.array([text], np.object_))]
        with self._waiting_for(f"the reply to {operation!r}"):
            result = self._triton.infer("documents", body, client_timeout=self._wait_seconds)
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
        if _DOCUMENT_ID.fullmatch(name):
            return name
        ids = [document["id"] for document in self.all_documents(name)]
        if len(ids) == 1:
            return ids[0]
        where = f"called {name!r} in namespace {self._namespace!r}"
        if not ids:
            raise Refused(
                f"no document is {where}: give a name or an id that `documents.py list` shows"
            )
        shown = ", ".join(ids[:SHOWN_IDS]) + (" …" if len(ids) > SHOWN_IDS else "")
        raise Refused(f"{len(ids)} documents are {where}: give an id in its place, {shown}")

    def answers(self, fields: dict[str, object]) -> Iterator[dict[str, Any]]:
        """The generate model's replies as they come, outputs by name; the last has the usage.

        Leaving the iterator early cancels the request. Refused if the server says nothing for the
        longest wait, or in all for longer than the request's own time limit allows.
        """
        inputs = self._inputs({"namespace": self._namespace, **fields})
        replies: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        deadline = _Deadline(self._wait_seconds, fields.get("timeout_seconds"))
        self._triton.start_stream(
            lambda result, error: replies.put((result, error)), headers=_headers(fields)
        )
        final, what = False, "the answer's first word"
        try:
            self._triton.async_stream_infer("generate", inputs)
            while not final:
                with self._waiting_for(what):
                    result, error = deadline.next_of(replies)
                    final = error is not None
                    if final:
                        raise error
                what = "the answer's next word"
                final = result.get_response().parameters[FINAL].bool_param
                yield _outputs(result)
        finally:
            # Cancelling a request that has ended makes the server wait ten seconds when it stops.
            self._end_stream(cancel=not final)

    def _end_stream(self, *, cancel: bool) -> None:
        """Have the stream end. tritonclient waits for that without end: here END_SECONDS."""
        ending = threading.Thread(
            target=self._triton.stop_stream, kwargs={"cancel_requests": cancel}, daemon=True
        )
        ending.start()
        ending.join(END_SECONDS)

    @contextmanager
    def _waiting_for(self, what: str) -> Iterator[None]:
        """Say of a failure in the block what was waited for, and from whom."""
        try:
            yield
        except _Overdue as over:
            raise Refused(self._silence(what, over.seconds)) from None
        except InferenceServerException as error:
            raise Refused(self._reason(what, error)) from None

    def _reason(self, what: str, error: InferenceServerException) -> str:
        message = error.message()
        if "DEADLINE_EXCEEDED" in str(error.status()):
            return self._silence(what, self._wait_seconds)
        if any(words in message for words in _NOT_REACHED):
            return (
                f"cannot connect to a server at {self._url}: {message}. "
                "--url takes the gRPC address that `legokv serve` says when it is ready"
            )
        if any(words in message for words in _NOT_OURS):
            return f"who answers at {self._url} is no legokv server: {message}"
        if any(words in message for words in _CUT_OFF):
            return f"{self._url} ended the connection before {what} came: {message}"
        return message

    def _silence(self, what: str, seconds: float) -> str:
        return (
            f"{self._url} said nothing for {seconds:g} s while {what} was due; "
            "--wait-seconds waits longer"
        )

    def _inputs(self, fields: dict[str, object]) -> list[triton.InferInput]:
        types = self._input_types
        return [_input(name, _array(name, value, types[name])) for name, value in fields.items()]

    @cached_property
    def _input_types(self) -> dict[str, str]:
        """Triton's types of the generate model's inputs, as the model's own config names them."""
        with self._waiting_for("the list of the server's fields"):
            config = self._triton.get_model_config(
                "generate", as_json=True, client_timeout=self._wait_seconds
            )["config"]
        return {item["name"]: item["data_type"].removeprefix("TYPE_") for item in config["input"]}


class _Overdue(Exception):
    """Nothing came for so many seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class _Deadline:
    """How long one answer's replies are waited for: each, and with a time limit all together."""

    def __init__(self, wait_seconds: float, timeout_seconds: object) -> None:
        self._wait_seconds = wait_seconds
        self._all_seconds = (
            timeout_seconds + SLACK_SECONDS if isinstance(timeout_seconds, float) else math.inf
        )
        self._started = time.monotonic()

    def next_of(self, replies: "queue.SimpleQueue[tuple[Any, Any]]") -> tuple[Any, Any]:
        """The next reply; _Overdue if it does not come in time."""
        rest = self._all_seconds - (time.monotonic() - self._started)
        seconds = max(0.0, min(self._wait_seconds, rest))
        try:
            return replies.get(timeout=seconds)
        except queue.Empty:
            raise _Overdue(min(self._wait_seconds, self._all_seconds)) from None


def _checked(url: str) -> str:
    port = _URL.fullmatch(url)
    if port is None or not 0 < int(port[1]) < 2**16:
        raise Refused(
            f"--url is HOST:PORT of the server's gRPC, as in {DEFAULT_URL}, not {url[:200]!r}"
        )
    return url


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


def add_connection_options(parser: argparse.ArgumentParser, *, again: bool = False) -> None:
    """The options that every script has; `again` behind a command, where they may stand too."""

    def add(name: str, default: object, **settings: Any) -> None:
        # Behind the command an option that is not given leaves what stands before it.
        chosen = argparse.SUPPRESS if again else default
        parser.add_argument(f"--{name}", default=chosen, **settings)

    add("url", DEFAULT_URL, help=f"gRPC address (default: {DEFAULT_URL})")
    add("namespace", "default", help="whose documents")
    add("format", "text", choices=("text", "json"))
    longest = f"longest silence of the server (default: {WAIT_SECONDS:g})"
    add("wait-seconds", WAIT_SECONDS, type=_seconds, metavar="S", help=longest)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no time in seconds of more than 0")
    return seconds


def server_of(arguments: argparse.Namespace) -> Server:
    """The server that the options name; Refused if they name none."""
    return Server(arguments.url, as_text(arguments.namespace), arguments.wait_seconds)


def as_text(word: str) -> str:
    """A command's word as text in UTF-8, whatever the locale made of it."""
    return os.fsencode(word).decode("utf-8", "replace")


def exit_status(run: Callable[[], int]) -> int:
    """What `run` gives; 1 with a printed reason if the server refused, 130 on Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        # Answers are in UTF-8, also where the locale is C, and files' names are as they are.
        stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    try:
        return run()
    except Refused as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has enough; the interpreter must not write to it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # of the output: it is on a full disk
        print(f"error: {error.strerror or error}", file=sys.stderr)
        return 1


def leave(status: int) -> NoReturn:
    """End the process, at once: what gRPC would still wait for at its end is nobody's any more."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass  # whoever read the output has enough
    except OSError as error:
        status = status or 1
        with suppress(OSError):
            print(f"error: {error.strerror or error}", file=sys.stderr)
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(status)

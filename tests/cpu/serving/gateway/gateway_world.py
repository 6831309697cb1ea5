"""A gateway in this process, over a real documents service and a `generate` that is told its lines.

What it asks of `generate` is read by the server's own table of fields, and refused as there.
"""

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
from document_world import LIMITS, Store
from paths import ROOT
from small_tokenizer import small_tokenizer
from tritonclient.grpc import service_pb2

from legokv.documents.compiling import Compiler
from legokv.errors import LegokvError
from legokv.serving.documents import DocumentService
from legokv.serving.doors import serve_http
from legokv.serving.fields import parse_request
from legokv.serving.front.bounds import Bounds
from legokv.serving.front.state import State
from legokv.serving.front.tensor_check import check_request, models_in
from legokv.serving.gateway.app import Gateway
from legokv.serving.gateway.library import Library, Uploads
from legokv.serving.gateway.models import Models
from legokv.serving.gateway.tool_reading import ToolForm
from legokv.serving.gateway.world import World
from legokv.serving.question import question_from_fields
from legokv.serving.settings import Settings
from legokv.stores.local.registry import Registry

FORMS = models_in(ROOT / "model_repo")
KINDS = {"FP32": "f", "INT32": "i", "UINT64": "Q", "BOOL": "?", "FP64": "d"}
COUNTS = {
    "prompt_tokens": 100,
    "cached_tokens": 80,
    "recomputed_tokens": 5,
    "fresh_tokens": 15,
    "reused_tokens": 4,
    "compiled_tokens": 30,
    "documents_linked": 2,
}
TIMES = {"time_to_first_token_seconds": 0.25, "total_seconds": 0.5}


@dataclass
class FakeModels:
    """The two models. `pieces` are each answer's text, `failure` what `generate` ends with."""

    service: DocumentService
    settings: Settings
    pieces: list[str] = field(default_factory=lambda: ["Orrin ", "keeps it."])
    finish_reason: str = "stop"
    failure: LegokvError | None = None
    fails_after: int = 0
    log_probs: str | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    num_left: int = 0
    num_counted: int = 0
    documents: list[dict[str, Any]] = field(default_factory=list)
    endless: bool = False
    gone: threading.Event = field(default_factory=threading.Event)

    async def ask(self, request: Any) -> Any:
        request = service_pb2.ModelInferRequest.FromString(request.SerializeToString())
        check_request(request, FORMS)
        values = read(request)
        if request.model_name == "documents":
            body = parse_request(values["request"])
            self.documents.append(body)
            reply = await asyncio.to_thread(self.service.reply, body)
            yield response({"reply": json.dumps(reply)})
            return
        question = question_from_fields(values, self.settings)
        if question.count_only:
            self.num_counted += 1
            counts = {"prompt_tokens": COUNTS["prompt_tokens"], "generated_tokens": 0}
            yield response({"text_output": "", "finish_reason": "stop", **counts})
            return
        self.asked.append({name: text_of(value) for name, value in values.items()})
        for document_id in question.document_ids:
            self.service.reply({"operation": "get", "id": document_id})
        try:
            async for values in self._replies(question):
                yield response(values)
        except (GeneratorExit, asyncio.CancelledError):
            self.num_left += 1
            self.gone.set()
            raise

    async def _replies(self, question: Any) -> Any:
        count = question.answering.num_return_sequences
        if self.failure is not None and not self.fails_after:
            raise self.failure
        extra = {} if self.log_probs is None else {"token_log_probs": self.log_probs}
        if question.stream:
            for number, piece in enumerate(self.pieces):
                if self.failure is not None and number == self.fails_after:
                    raise self.failure
                for index in range(count):
                    yield {"text_output": piece, "sequence_index": index, **extra}
            while self.endless:
                await asyncio.sleep(0)
                yield {"text_output": "word " * 200, "sequence_index": 0}
        texts = ["" if question.stream else "".join(self.pieces)] * count
        whole = {} if question.stream else {n: [v] * count for n, v in extra.items()}
        yield {
            "text_output": texts,
            "finish_reason": [self.finish_reason] * count,
            "generated_tokens": [7] * count,
            **whole,
            **COUNTS,
            "head": "own",
            **TIMES,
        }


def text_of(value: Any) -> Any:
    if isinstance(value, list):
        return [text_of(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value


def read(request: Any) -> dict[str, Any]:
    """Inputs by name as Triton's stub hands them on."""
    values: dict[str, Any] = {}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        items = texts_in(raw) if tensor.datatype == "BYTES" else numbers_in(tensor.datatype, raw)
        form = FORMS[request.model_name].inputs[tensor.name]
        values[tensor.name] = items if form.dims[-1] < 0 else items[0]
    return values


def numbers_in(datatype: str, raw: bytes) -> list[Any]:
    return [value for (value,) in struct.iter_unpack(f"<{KINDS[datatype]}", raw)]


def texts_in(raw: bytes) -> list[bytes]:
    texts = []
    while raw:
        length = int.from_bytes(raw[:4], "little")
        texts.append(raw[4 : 4 + length])
        raw = raw[4 + length :]
    return texts


def response(values: dict[str, Any]) -> Any:
    made = service_pb2.ModelInferResponse()
    for name, value in values.items():
        items = value if isinstance(value, list) else [value]
        if isinstance(items[0], str):
            kind = "BYTES"
            parts = [item.encode() for item in items]
            raw = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
        else:
            kind = "FP64" if isinstance(items[0], float) else "INT32"
            raw = struct.pack(f"<{len(items)}{KINDS[kind]}", *items)
        made.outputs.add(name=name, datatype=kind, shape=[1, len(items)])
        made.raw_output_contents.append(raw)
    return made


@dataclass(frozen=True)
class RunningGateway:
    """A gateway that listens, and what it stands on."""

    port: int
    models: FakeModels
    store: Store
    state: State
    uploads: Uploads
    world: World

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def openai(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="none", **{"max_retries": 0, **options}
        )


@contextmanager
def running_gateway(
    folder: Path,
    tool_form: ToolForm | None = None,
    wrap: Callable[[Any], Any] = lambda app: app,
    **options: Any,
) -> Iterator[RunningGateway]:
    """A gateway over fakes; `options` are settings."""
    settings = Settings(engine=folder, cache_dir=folder, max_document_bytes=2000, **options)
    store, state = Store(), State(answering=True)
    uploads = Uploads(folder / "uploads")
    bound = socket.create_server(("127.0.0.1", 0))
    with Registry.open(folder / "registry.sqlite") as registry:
        compiler = Compiler(registry, store.compile, store.drop, LIMITS)
        service = DocumentService(registry, small_tokenizer(), compiler, LIMITS)
        fake = FakeModels(service, settings)
        models = Models(FORMS, fake.ask)

        async def show_metrics() -> tuple[int, str, bytes]:
            return 200, "text/plain", b"legokv_requests_running 0\n"

        facts: Any = SimpleNamespace(name="tiny", model=SimpleNamespace(context_len=2048))
        world = World(
            settings=settings,
            facts=facts,
            created=1_700_000_000,
            tokenizer=small_tokenizer(),
            models=models,
            library=Library(models),
            uploads=uploads,
            readiness=state,
            show_metrics=show_metrics,
            tool_form=tool_form,
        )
        with running_app(wrap(Gateway(world)), bound, settings, state):
            yield RunningGateway(bound.getsockname()[1], fake, store, state, uploads, world)


@contextmanager
def running_app(app: Any, bound: socket.socket, settings: Settings, state: State) -> Iterator[None]:
    loop = asyncio.new_event_loop()
    begun = threading.Event()

    def main() -> None:
        asyncio.set_event_loop(loop)

        async def run() -> None:
            serving = serve_http(app, Bounds.by_settings(settings), state, bound)
            begun.set()
            await serving

        task = loop.create_task(run())
        task.add_done_callback(lambda _: loop.stop())
        loop.run_forever()

    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    begun.wait()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
        thread.join(10)
        bound.close()

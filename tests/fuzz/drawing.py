"""Draws requests of `generate` and `documents`: mostly right ones with one or two things wrong."""

import struct
from collections.abc import Callable, Sequence
from typing import Any

from fuzz import values
from fuzz.request import Grpc, Http, RawHttp, Request, Tensor
from fuzz.values import Dice

GENERATE = {
    "text_input": "BYTES", "document_ids": "BYTES", "namespace": "BYTES", "system_text": "BYTES",
    "mode": "BYTES", "stop_words": "BYTES", "link_tokens": "INT32", "max_tokens": "INT32",
    "top_k": "INT32", "min_tokens": "INT32", "num_return_sequences": "INT32",
    "num_top_log_probs": "INT32", "temperature": "FP32", "top_p": "FP32", "min_p": "FP32",
    "repetition_penalty": "FP32", "presence_penalty": "FP32", "frequency_penalty": "FP32",
    "timeout_seconds": "FP32", "seed": "UINT64", "logit_bias": "BYTES",
    "response_format": "BYTES", "return_log_probs": "BOOL", "stream": "BOOL",
    "count_only": "BOOL",
}  # fmt: skip
OPERATIONS = ("create", "get", "list", "delete", "update", "stats", "warm", "pin", "x", "")
DOCUMENT_FIELDS = ("text", "name", "id", "ids", "namespace", "ttl_seconds", "metadata", "limit",
                   "after", "pinned", "wait", "colour")  # fmt: skip
_PACKED = {"INT32": "<i", "INT64": "<q", "UINT64": "<Q", "FP32": "<f", "FP64": "<d", "BOOL": "<?"}
_PATHS = (
    "generate/generate", "generate/generate_stream", "generate/infer", "documents/infer",
    "documents/generate", "engine/infer", "engine/generate", "none/infer", "generate", "",
)  # fmt: skip


class Drawing:
    """Requests from one seed; `document_ids` are those of documents that are there."""

    def __init__(self, seed: int, document_ids: Sequence[str]) -> None:
        self.dice = Dice(seed)
        self._ids = list(document_ids)

    def request(self) -> Request:
        return self.dice.choices(_KINDS, _WEIGHTS)[0](self)

    def fields(self) -> dict[str, Any]:
        """A question with up to three odd fields."""
        dice = self.dice
        fields: dict[str, Any] = {"text_input": "Who?", "max_tokens": dice.randint(1, 6)}
        if dice.random() < 0.4:
            fields["document_ids"] = dice.sample(self._ids, dice.randint(1, len(self._ids)))
        for _ in range(dice.choice((0, 1, 1, 2, 3))):
            fields[dice.choice((*GENERATE, *GENERATE, "id", "beam_width", values.text(dice)))] = (
                self._field()
            )
        if isinstance(fields.get("max_tokens"), int) and fields["max_tokens"] > 64:
            fields["timeout_seconds"] = 2
        return fields

    def _field(self) -> Any:
        dice = self.dice
        kinds: list[Callable[[], Any]] = [
            lambda: values.text(dice),
            lambda: values.number(dice),
            lambda: dice.choice((0.5, 1, 3, True)),
            lambda: [values.text(dice) for _ in range(dice.choice((0, 1, 3, 50)))],
            lambda: values.json_value(dice),
        ]
        return dice.choices(kinds, (3, 3, 3, 1, 1))[0]()

    def http(self) -> Request:
        dice = self.dice
        fields = self.fields()
        if dice.random() < 0.2:
            fields = {"text_input": fields.pop("text_input", "x"), "parameters": fields}
        body = values.as_json(fields)
        if dice.random() < 0.15:
            body = values.damaged(dice, body)
        verb = dice.choice(("generate", "generate_stream"))
        return Http(f"/v2/models/generate/{verb}", body, leaves=dice.random() < 0.05)

    def odd_http(self) -> Request:
        """Another path, header, framing or depth than any client's."""
        dice = self.dice
        body = dice.choice((values.deep(dice), values.raw(dice), values.as_json(self.fields()),
                            values.as_json(values.json_value(dice, 5))))  # fmt: skip
        headers = dice.choice(
            ({}, {"Inference-Header-Content-Length": str(values.number(dice))},
             {"Content-Type": dice.choice(("text/plain", "application/octet-stream", "\x01"))},
             {"Content-Encoding": dice.choice(("gzip", "deflate", "br"))},
             {"X-" + "a" * dice.choice((10, 9_000)): "b"})
        )  # fmt: skip
        chunk = dice.choice((None, None, None, 1, 7, 5_000))
        if chunk == 1:
            body = body[:5_000]
        path = dice.choice(_PATHS)
        return Http(
            f"/v2/models/{path}" if path else "/v2/" + values.raw(dice).hex(), body, headers, chunk
        )

    def raw_http(self) -> Request:
        dice = self.dice
        whole = (
            b"POST /v2/models/generate/generate HTTP/1.1\r\nHost: x\r\nContent-Length: 35\r\n\r\n"
        )
        whole += b'{"text_input":"Who?","max_tokens":1}'
        return RawHttp(values.damaged(dice, whole) if dice.random() < 0.7 else values.raw(dice))

    def document(self) -> dict[str, Any]:
        dice = self.dice
        fields: dict[str, Any] = {"operation": dice.choice(OPERATIONS)}
        # Nothing that is there for the bystanders is taken away.
        names = [n for n in DOCUMENT_FIELDS if n not in ("id", "ids")]
        for name in dice.sample(names, dice.randint(0, 3)):
            fields[name] = values.text(dice) if dice.random() < 0.6 else values.json_value(dice)
        if fields["operation"] not in ("create", "list"):
            fields["id"] = dice.choice((values.text(dice), values.json_value(dice)))
        if fields["operation"] == "create":
            fields.setdefault("ttl_seconds", dice.choice((1, 20, 20, 20)))
            fields["namespace"] = fields.get("namespace", dice.choice(("fuzz", "fuzz-2")))
        return fields

    def documents_http(self) -> Request:
        dice = self.dice
        content = values.as_json(self.document()).decode("utf-8", "replace")
        tensor = {"name": "request", "shape": [1], "datatype": "BYTES", "data": [content]}
        for _ in range(dice.choice((0, 0, 1, 2))):
            tensor[dice.choice((*tensor, "parameters"))] = values.json_value(dice)
        body = values.as_json({"inputs": [tensor]})
        return Http(
            "/v2/models/documents/infer",
            values.damaged(dice, body) if dice.random() < 0.1 else body,
        )

    def documents_grpc(self) -> Request:
        dice = self.dice
        content = values.as_json(self.document())
        if dice.random() < 0.3:
            content = values.damaged(dice, content)
        tensor = self._tensor("request", "BYTES", [content], batch=False)
        return Grpc(
            "documents", (tensor,), self._parameters(), values.text(dice)[:200], streams=False
        )

    def grpc(self) -> Request:
        dice = self.dice
        fields = self.fields()
        tensors = [
            self._tensor(
                name, GENERATE.get(name, "BYTES"), value if isinstance(value, list) else [value]
            )
            for name, value in fields.items()
        ]
        request_id = values.text(dice) if dice.random() < 0.2 else ""
        if dice.random() < 0.02:
            tensors.clear()
        version = dice.choice(("1", "7", "x")) if dice.random() < 0.05 else ""
        parameters, streams = self._parameters(), dice.random() < 0.9
        leaves = dice.random() < 0.05
        return Grpc(
            "generate",
            tuple(tensors),
            parameters,
            request_id,
            streams,
            leaves,
            version,
            # Triton ends by itself where a client leaves a stream with several.
            times=3 if leaves else 1,
        )

    def engine(self) -> Request:
        """What only the two other models may send."""
        command = {"type": self.dice.choice(("Drop", "Generate", "Cancel", "Next", "Compile", "x"))}
        command["keys"] = ["0" * 64]
        tensor = self._tensor("command", "BYTES", [values.as_json(command)], batch=False)
        return Grpc("engine", (tensor,), streams=False)

    def _parameters(self) -> dict[str, Any]:
        dice = self.dice
        if dice.random() < 0.8:
            return {}
        names = [*GENERATE, "priority", "timeout", "sequence_id", "shared_memory_region"]
        kinds: list[Callable[[], Any]] = [
            lambda: values.text(dice), lambda: dice.randint(-(2**63), 2**63 - 1),
            lambda: dice.choice((0.5, 1e-320, float("nan"))), lambda: dice.random() < 0.5,
        ]  # fmt: skip
        return {dice.choice(names): dice.choice(kinds)() for _ in range(dice.randint(1, 3))}

    def _tensor(
        self, name: str, datatype: str, elements: list[Any], *, batch: bool = True
    ) -> Tensor:
        dice = self.dice
        if dice.random() < 0.05:
            datatype = dice.choice((*_PACKED, "BYTES", "FP16", "x"))
        content = b"".join(_element(datatype, element) for element in elements)
        shape: tuple[int, ...] = (1, len(elements)) if batch else (len(elements),)
        if dice.random() < 0.05:
            shape = dice.choice(((2, 1), (1, 2), (), (0,), (1, 1, 1), (-1, 1), (2**40, 1), (1, 0)))
        if dice.random() < 0.05:
            content = dice.choice(
                (content[:-1], content + b"\0", values.raw(dice), b"", content * 2)
            )
        return Tensor(name, datatype, shape, content)


def _element(datatype: str, value: Any) -> bytes:
    if datatype not in _PACKED:
        content = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
        return struct.pack("<I", len(content)) + content
    try:
        return struct.pack(_PACKED[datatype], value)
    except (struct.error, OverflowError, TypeError):
        return struct.pack(_PACKED[datatype], 1)


_KINDS = (Drawing.http, Drawing.grpc, Drawing.documents_http, Drawing.documents_grpc,
          Drawing.odd_http, Drawing.raw_http, Drawing.engine)  # fmt: skip
_WEIGHTS = (30, 25, 12, 12, 10, 8, 3)

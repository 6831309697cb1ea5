"""One request of the fuzzer as data, so that what did harm is kept as a file and sent again."""

import base64
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Http:
    """A request with a body, sent as a client library does, or in chunks of these sizes."""

    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    chunk_bytes: int | None = None
    leaves: bool = False
    """The client closes the connection when the first bytes of an answer are there."""


@dataclass(frozen=True)
class RawHttp:
    """Bytes on a connection to the HTTP port, whatever they are."""

    content: bytes


@dataclass(frozen=True)
class Tensor:
    """`content` are the bytes of the wire: BYTES elements have their lengths before them."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    content: bytes


@dataclass(frozen=True)
class Grpc:
    """An inference request by protobuf; `streams` by ModelStreamInfer."""

    model: str
    tensors: tuple[Tensor, ...]
    parameters: dict[str, Any] = field(default_factory=dict)
    request_id: str = ""
    streams: bool = True
    leaves: bool = False
    version: str = ""
    times: int = 1
    """How often it is sent, on one stream."""


Request = Http | RawHttp | Grpc
_KINDS = {kind.__name__: kind for kind in (Http, RawHttp, Grpc)}


def saved(request: Request, why: str) -> str:
    """The request as JSON, with the reason to keep it."""
    content = {"why": why, "kind": type(request).__name__, **asdict(request)}
    return json.dumps(content, default=_encoded, indent=1)


def read(file: Path) -> Request:
    """A saved request; `why`, if the file has it, is for its readers."""
    content = _decoded(json.loads(file.read_text()))
    content.pop("why", None)
    kind = _KINDS[content.pop("kind")]
    if kind is Grpc:
        tensors = [{**t, "shape": tuple(t["shape"])} for t in content["tensors"]]
        content["tensors"] = tuple(Tensor(**tensor) for tensor in tensors)
    return kind(**content)


def _encoded(value: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(value).decode()}


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(each) for each in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"base64"}:
        return base64.b64decode(value["base64"])
    if set(value) == {"text", "times"}:  # by hand, where base64 would hide what it is
        return value["text"].encode() * value["times"]
    return {name: _decoded(each) for name, each in value.items()}

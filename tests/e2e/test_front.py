"""What ends, opens or silences a bare Triton does nothing to one behind the front, and harms
nobody else."""

import http.client
import json
import os
import re
import socket
import urllib.parse
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import tritonclient.grpc as triton
from paths import ROOT
from processes import soon
from server import RunningServer, refusal, replies, tensor
from tritonclient.utils import InferenceServerException

GENERATE = "/v2/models/generate/generate"
INFER = "/v2/models/documents/infer"


@contextmanager
def answer_under_way(server: RunningServer) -> Iterator[None]:
    """A bystander whose streamed answer must come to its end as if nothing had happened."""
    with closing(server.client()) as client:
        answer = replies(client, text_input="Who?", max_tokens=40, min_tokens=40, stream=True)
        next(answer)
        yield
        *_, last = answer
    assert last["generated_tokens"] == 40


@pytest.mark.parametrize("path", [INFER, GENERATE, f"{GENERATE}_stream"])
@pytest.mark.parametrize(
    "body", [b"[" * 150_000, b"[" * 60_000, b'{"parameters":' * 60_000], ids=["long", "deep", "obj"]
)
def test_json_that_ends_triton_is_refused_and_a_stranger_s_answer_goes_on(
    server: RunningServer, path: str, body: bytes
) -> None:
    with answer_under_way(server):
        status, reply = server.post(path, body)
    assert status == 400
    assert re.search("members, at most|inside one another, at most", json.loads(reply)["error"])


def test_one_byte_chunks_are_refused_and_a_stranger_s_answer_goes_on(server: RunningServer) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    address = urllib.parse.urlsplit(server.http)
    with answer_under_way(server), socket.create_connection((address.hostname, address.port)) as c:
        c.settimeout(60)
        try:
            for _ in range(600):
                c.sendall(b"1\r\nA\r\n" * 1000 if head is None else head)
                head = None
            answer = c.recv(4000)
        except ConnectionError:
            answer = b"reset"
    assert answer == b"reset" or b" 400 " in answer


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/systemsharedmemory/region/evil/register", {"key": "/x", "offset": 0, "byte_size": 8}),
        ("/v2/cudasharedmemory/region/evil/register", {"raw_handle": {"b64": "a"}}),
        ("/v2/logging", {"log_error": False}),
        ("/v2/trace/setting", {"trace_level": ["TIMESTAMPS"]}),
        ("/v2/repository/index", {}),
        ("/v2/repository/models/generate/unload", {}),
        ("/v2/models/engine/infer", {}),
    ],
)
def test_what_nobody_needs_of_triton_is_closed_at_the_front_and_behind_it(
    server: RunningServer, path: str, body: dict[str, object]
) -> None:
    sent = json.dumps(body).encode()
    status, reply = server.post(path, sent)
    assert status == 403
    assert "closed" in json.loads(reply)["error"]
    if "/engine/" in path:  # its commands need a secret
        return
    with closing(SocketConnection(sockets(server) / "http")) as behind:
        behind.request("POST", path, sent)
        response = behind.getresponse()
        assert (response.status, b"restricted" in response.read()) == (403, True)


def test_the_same_over_grpc(server: RunningServer) -> None:
    for address, reason in (
        (server.grpc, "closed on this server"),
        (f"unix:{next(sockets(server).glob('grpc*'))}", "restricted"),
    ):
        with closing(triton.InferenceServerClient(address)) as client:
            for call in (
                lambda c: c.register_system_shared_memory("evil", "/x", 8),
                lambda c: c.get_system_shared_memory_status(),
                lambda c: c.update_log_settings({"log_error": False}),
                lambda c: c.get_trace_settings(),
                lambda c: c.get_inference_statistics(),
                lambda c: c.unload_model("generate"),
            ):
                with pytest.raises(InferenceServerException, match=reason):
                    call(client)


def test_wrong_shapes_over_grpc_leave_no_descriptor(server: RunningServer) -> None:
    before = descriptors(server)
    for _ in range(20):
        with closing(server.client()) as client:
            wrong = tensor("text_input", "BYTES", ["a", "b"], batch=False)
            wrong.set_shape([2, 1])
            arrived: list[InferenceServerException] = []
            client.start_stream(lambda result, error, into=arrived: into.append(error))
            client.async_stream_infer("generate", [wrong])
            soon(lambda arrived=arrived: arrived)
            client.stop_stream()
            assert "has shape [2, 1], [1, 1] is taken" in refusal(arrived[0])[1]
    soon(lambda: descriptors(server) <= before + 2)
    assert server.ask(text_input="Who?", max_tokens=2)["generated_tokens"] == 2


def test_other_models_are_not_reached_over_grpc(server: RunningServer) -> None:
    with closing(server.client()) as client:
        with pytest.raises(InferenceServerException, match="no model 'engine' here"):
            client.infer("engine", [tensor("command", "BYTES", ["{}"], batch=False)])
        with pytest.raises(InferenceServerException, match="no model 'engine' here"):
            client.get_model_config("engine")


def test_a_request_that_is_too_long_is_refused_before_triton_holds_it(
    server: RunningServer,
) -> None:
    text = "a" * 16_000_000
    status, reply = server.post(GENERATE, json.dumps({"text_input": text}).encode())
    assert (status, "--max-request-bytes" in json.loads(reply)["error"]) == (413, True)
    with pytest.raises(InferenceServerException) as refused:
        server.ask(text_input=text)
    assert "RESOURCE_EXHAUSTED" in refusal(refused.value)[0]


def test_triton_itself_listens_at_no_port_and_lets_no_other_user_in(server: RunningServer) -> None:
    triton_pid = server.processes()[0]
    inodes = {os.readlink(f) for f in Path(f"/proc/{triton_pid}/fd").iterdir() if f.is_symlink()}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{triton_pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            listens = fields[3] == "0A"
            assert not (listens and f"socket:[{fields[9]}]" in inodes)
    assert sockets(server).stat().st_mode & 0o077 == 0


def test_the_documents_name_the_version_of_triton_that_runs(server: RunningServer) -> None:
    with closing(server.client()) as client:
        version = client.get_server_metadata().version
    assert f"Triton {version}" in (ROOT / "README.md").read_text()
    assert f"Triton {version}" in (ROOT / "docs" / "security.md").read_text()


class SocketConnection(http.client.HTTPConnection):
    """HTTP to Triton itself, as only the server's own user can speak it."""

    def __init__(self, path: Path) -> None:
        super().__init__("triton")
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def sockets(server: RunningServer) -> Path:
    """The folder with Triton's sockets."""
    command = Path(f"/proc/{server.processes()[0]}/cmdline").read_text()
    found = re.search(r"--http-address=unix:(\S+?)/http", command)
    assert found is not None
    return Path(found[1])


def descriptors(server: RunningServer) -> int:
    """How many descriptors Triton has open."""
    return len(os.listdir(f"/proc/{server.processes()[0]}/fd"))

"""What outlives a request, a client and a server: documents do, jobs and files of ours do not."""

import signal
import socket
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from processes import has_ended
from scrape import at_rest
from server import RunningServer, command, replies, serving
from server_texts import TEXTS

from legokv.built.folder import FORMAT_VERSION
from legokv.serving.triton.processes import child_processes


def test_documents_survive_a_restart_and_are_not_compiled_again_whatever_the_next_head_is(
    engine_folder: Path, tmp_path: Path
) -> None:
    fields = {"text_input": "Who keeps it?", "max_tokens": 12}
    with serving(engine_folder, tmp_path, compile_behind="head") as first:
        ids = first.register(*TEXTS)
        before = first.ask(document_ids=ids, **fields)
        exact = first.ask(document_ids=ids[:1], **fields)
        full = first.ask(document_ids=ids[:1], mode="full", **fields)
    assert (exact["head"], exact["recomputed_tokens"]) == ("own", 0)
    assert exact["text_output"] == full["text_output"]
    with serving(engine_folder, tmp_path, system_text="Be brief.") as second:
        other = second.ask(document_ids=ids, **fields)
        assert (other["head"], other["recomputed_tokens"]) == ("other", 16 * len(ids))
        # Its own words alone are new, and a request without a system text of the server's has them.
        head_tokens = second.ask(text_input="Who?", max_tokens=1)["cached_tokens"]
        assert other["compiled_tokens"] <= head_tokens
    with serving(engine_folder, tmp_path) as third:
        listed = third.document("list")["documents"]
        after = third.ask(document_ids=ids, **fields)
        again = third.register(*TEXTS)
    assert [document["id"] for document in listed] == ids == again
    assert {document["state"] for document in listed} == {"ready"}
    assert after["text_output"] == before["text_output"]
    assert after["compiled_tokens"] == 0
    assert after["load_seconds"] > 0


def test_a_damaged_file_of_int8_kv_is_compiled_again_and_the_answer_is_the_same(
    engine_folder: Path, tmp_path: Path
) -> None:
    fields = {"text_input": "Who keeps it?", "max_tokens": 12}
    with serving(engine_folder, tmp_path, kv_stored_dtype="int8") as first:
        (document_id,) = first.register(TEXTS[0])
        before = first.ask(document_ids=[document_id], **fields)
    for file in tmp_path.rglob("*.safetensors"):
        content = bytearray(file.read_bytes())
        content[-9] ^= 64
        file.write_bytes(content)
    with serving(engine_folder, tmp_path, kv_stored_dtype="int8") as second:
        after = second.ask(document_ids=[document_id], **fields)
    assert after["compiled_tokens"] > 0
    assert after["text_output"] == before["text_output"]


def test_a_document_warmed_into_memory_is_answered_though_its_files_are_lost(
    engine_folder: Path, tmp_path: Path
) -> None:
    fields = {"text_input": "Who keeps it?", "max_tokens": 12}
    with serving(engine_folder, tmp_path) as first:
        before = first.ask(document_ids=first.register(*TEXTS[:2]), **fields)
    with serving(engine_folder, tmp_path) as second:
        warm, cold = (
            second.document("create", text=text, **asked)
            for text, asked in ((TEXTS[0], {"warm": "host"}), (TEXTS[1], {}))
        )
        for file in tmp_path.rglob("*.safetensors"):
            file.unlink()
        ids = [reply["document"]["id"] for reply in (warm, cold)]
        after = second.ask(document_ids=ids, **fields)
    assert warm["warmed_chunks"] == warm["document"]["num_chunks"]
    assert "warmed_chunks" not in cold
    assert after["text_output"] == before["text_output"]
    # The prompt's head is a chunk too, and nobody warmed it.
    lost = before["cached_tokens"] + before["recomputed_tokens"] - warm["document"]["num_tokens"]
    assert after["compiled_tokens"] == lost


LONG = {"text_input": "Who?", "max_tokens": 1900, "min_tokens": 1900, "num_return_sequences": 8}


def test_a_client_that_goes_away_frees_its_request(engine_folder: Path, tmp_path: Path) -> None:
    with serving(engine_folder, tmp_path, pool_tokens=16384) as server:
        server.ask(text_input="Who?", max_tokens=1)
        before = at_rest(server)
        with closing(server.client()) as client:
            leaving = replies(client, stream=True, temperature=1.0, **LONG)
            next(leaving)
            leaving.close()
        grown = at_rest(server).since(before)
    assert 0 < grown("legokv_generated_tokens_total") < 8 * 1900 / 2
    assert grown("legokv_pool_pages_used") == 0


def test_a_request_too_large_for_the_pool_is_refused_with_the_numbers(
    engine_folder: Path, tmp_path: Path
) -> None:
    with serving(engine_folder, tmp_path, pool_tokens=160) as server:
        with pytest.raises(Exception, match=r"needs \d+ pages of 16 tokens, the pool has 10"):
            server.ask(text_input="Who?", max_tokens=400)
        assert server.ask(text_input="Who?", max_tokens=2)["generated_tokens"] == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_with_nothing_left_behind(
    engine_folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with serving(engine_folder, tmp_path) as server:
        server.register(TEXTS[0])
        children = descendants(server.process.pid)
        files = shared_memory(server)
        server.process.send_signal(number)
        assert server.process.wait(120) == 0
    assert len(children) >= 4
    assert all(has_ended(pid) for pid in children)
    assert files
    assert not [file for file in files if file.exists()]


def test_a_port_that_is_taken_is_named_before_anything_starts(
    engine_folder: Path, tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run(command(engine_folder, tmp_path, grpc_port=port))
    assert result.returncode == 1
    assert f"{port}" in result.stderr
    assert "grpc" in result.stderr


def test_an_engine_folder_of_another_version_is_refused_with_both(
    engine_folder: Path, tmp_path: Path
) -> None:
    facts = (engine_folder / "engine.json").read_text()
    other = tmp_path / "engine"
    other.mkdir()
    version = f'"format_version": {FORMAT_VERSION}'
    assert version in facts
    (other / "engine.json").write_text(facts.replace(version, '"format_version": 99'))
    result = run(command(other, tmp_path))
    assert result.returncode == 1
    assert f"engine format 99, this legokv reads format {FORMAT_VERSION}" in result.stderr


def run(arguments: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=60)


def descendants(pid: int) -> list[int]:
    """Process numbers below `pid`."""
    children = child_processes(pid)
    return [*children, *(below for child in children for below in descendants(child))]


def shared_memory(server: RunningServer) -> list[Path]:
    return list(Path("/dev/shm").glob(f"legokv_{server.process.pid}_*"))

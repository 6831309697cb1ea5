"""A server that does not answer says so and is started again, whatever of it is lost or stops."""

import os
import signal
import time
from pathlib import Path

from killing import next_events
from processes import has_ended, soon
from server import RunningServer, serving
from test_readiness import health

from legokv.serving.triton.processes import child_processes, model_of

SEEN_SECONDS = 120
# A machine with other work may be as late as this without being deaf.
PROBE_SECONDS, DEAF_SECONDS = 4, 6


def wait_for_ready(server: RunningServer, status: int) -> None:
    deadline = time.monotonic() + SEEN_SECONDS
    while health(server.http, "ready") != status:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_front(pid: int) -> bool:
    return "legokv.serving.doors" in Path(f"/proc/{pid}/cmdline").read_text()


def test_whatever_is_lost_or_stops_is_told_and_started_again(
    engine_folder: Path, tmp_path: Path
) -> None:
    patience = {"probe_seconds": PROBE_SECONDS, "deaf_seconds": DEAF_SECONDS}
    with serving(engine_folder, tmp_path, **patience) as server:
        triton, *_ = server.processes()
        (front,) = (pid for pid in child_processes(server.process.pid) if is_front(pid))

        os.kill(front, signal.SIGKILL)
        soon(lambda: has_ended(front))
        wait_for_ready(server, 200)
        assert server.ask(text_input="Who?", max_tokens=2)["generated_tokens"] == 2
        assert server.processes()[0] == triton

        os.kill(triton, signal.SIGKILL)
        lost, again = next_events(server.process, 2)
        assert (lost["event"], again["event"]) == ("restarting", "ready")
        assert "ended" in lost["reason"]
        assert server.ask(text_input="Who?", max_tokens=2)["generated_tokens"] == 2

        engine = next(pid for pid in server.processes() if model_of(pid) == "engine")
        os.kill(engine, signal.SIGSTOP)
        wait_for_ready(server, 503)
        deaf, again = next_events(server.process, 2)
        assert (deaf["event"], again["event"]) == ("restarting", "ready")
        assert deaf["reason"].startswith("no question was answered for ")
        assert health(server.http, "ready") == 200
        assert server.ask(text_input="Who?", max_tokens=2)["generated_tokens"] == 2

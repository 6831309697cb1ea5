"""A peer's process as the harness sees it: asked in its turn, stopped between turns."""

import json
import os
import signal
import subprocess
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.engines import Engine
from benchmarks.record.about import RAW

END_SECONDS = 20


class PeerFailed(Exception):
    """A peer's process ended or said something else than a number; its log says why."""


@dataclass
class PeerProcess:
    """One running peer; between `turn`s it is stopped and takes no core."""

    engine: Engine
    process: "subprocess.Popen[str]"
    version: str = ""

    @classmethod
    def start(cls, engine: Engine, place: dict[str, str]) -> "PeerProcess":
        """The peer with its model loaded, stopped until its first turn."""
        RAW.mkdir(parents=True, exist_ok=True)
        threads = place["num_threads"]
        environment = os.environ | {"OMP_NUM_THREADS": threads} | engine.environment
        with (RAW / f"peer-{engine.name}.log").open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                [str(engine.python), str(engine.script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
                start_new_session=True,
            )
        started = cls(engine, process)
        started.version = str(started._ask(place)["version"])
        started.stop()
        return started

    def seconds(self, prompts: list[dict[str, object]], num_tokens: int, reuse: str) -> float:
        """How long the peer took, by its own clock around its own call."""
        return self.times(prompts, num_tokens, reuse)[1]

    def times(
        self, prompts: list[dict[str, object]], num_tokens: int, reuse: str
    ) -> tuple[float, float]:
        """As `seconds`, but those of CPU time too, which come first."""
        request = {"prompts": prompts, "num_tokens": num_tokens, "reuse": reuse}
        reply = self._ask(request)
        return float(reply["cpu_seconds"]), float(reply["seconds"])

    def wake(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGSTOP)

    def end(self) -> None:
        """End the process and its children, stopped or not."""
        assert self.process.stdin is not None, "it was started with pipes"
        if self.process.poll() is None:
            self.wake()
            self.process.stdin.close()
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None, "it was started with pipes"
        assert self.process.stdout is not None, "it was started with pipes"
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._failed() from None
        line = self.process.stdout.readline()
        if not line:
            raise self._failed()
        return dict(json.loads(line))

    def _failed(self) -> PeerFailed:
        log = RAW / f"peer-{self.engine.name}.log"
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        status = self.process.wait(END_SECONDS)
        words = lines[-1] if lines else "no word"
        return PeerFailed(f"{self.engine.name} ended with status {status}: {words} ({log})")

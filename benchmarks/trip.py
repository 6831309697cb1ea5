"""How many files a request passes, and how often it changes from one to another, in one process.

out/venv/bin/python benchmarks/trip.py [--runs 5] [--walk]

A change is a call into another file, or in another thread, than the call before it. The model is a
tiny one with random weights: what is counted is the way, not the time. The changes into the
forward's own rooms grow with the model's layers, so they are told apart from the way around it.
"""

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from tiny_checkpoints import make_tiny_checkpoint  # noqa: E402

from legokv.build.engine import BuildSettings, build_engine_folder  # noqa: E402
from legokv.serving.answering import Reply  # noqa: E402
from legokv.serving.documents import open_document_service  # noqa: E402
from legokv.serving.engine_service import EngineService  # noqa: E402
from legokv.serving.generate import GenerateService  # noqa: E402
from legokv.serving.log import RequestLine  # noqa: E402
from legokv.serving.messages import decode_events, encode_command  # noqa: E402
from legokv.serving.settings import Settings  # noqa: E402

FORWARD = ("runners/", "model/", "kernels/", "ops/")
LIBRARY = str(ROOT / "src" / "legokv") + "/"
QUIET_SECONDS = 0.2
FURTHER = 20
NAMES = ("first token", "all tokens", "a document of one chunk")
FIELDS = {"text_input": b"Who?", "stream": True}


@dataclass
class Trip:
    """The calls of one stretch of the way: (thread, file), in order."""

    calls: list[tuple[int, str]] = field(default_factory=list)

    @property
    def files(self) -> int:
        return len({file for _, file in self.calls})

    @property
    def num_calls(self) -> int:
        return len(self.calls)

    @property
    def changes(self) -> int:
        return len(self._entered)

    @property
    def in_forward(self) -> int:
        """Changes into a file of the forward, from another of its files or from outside."""
        return sum(file.startswith(FORWARD) for file in self._entered)

    @property
    def outside(self) -> int:
        return self.changes - self.in_forward

    @property
    def files_outside(self) -> int:
        return len({file for _, file in self.calls if not file.startswith(FORWARD)})

    @property
    def threads(self) -> int:
        return len({thread for thread, _ in self.calls})

    @property
    def _entered(self) -> list[str]:
        """The file of each change, in order."""
        pairs = zip(self.calls, self.calls[1:], strict=False)
        return [other[1] for one, other in pairs if one != other]


class Recorder:
    """Notes the calls of all threads that begin after it was made, while a trip is under way."""

    def __init__(self) -> None:
        self._trip: Trip | None = None
        threading.setprofile(self._note)
        sys.setprofile(self._note)

    @contextmanager
    def trip(self) -> Iterator[Trip]:
        """The calls of the block; what others do for it a moment later is waited for."""
        trip = self._trip = Trip()
        yield trip
        time.sleep(QUIET_SECONDS)
        self._trip = None

    def _note(self, frame: FrameType, event: str, argument: object) -> None:
        trip = self._trip
        file = frame.f_code.co_filename
        if trip is not None and event == "call" and file.startswith(LIBRARY):
            trip.calls.append((threading.get_ident(), file.removeprefix(LIBRARY)))


class World:
    """The three services in one process, what passes between them encoded as on the wire."""

    def __init__(self, folder: Path, cache: Path) -> None:
        settings = Settings(engine=folder, cache_dir=cache, pool_tokens=4096, kept_tokens=0)
        self.engine = EngineService.open(settings)
        self.generate = GenerateService.open(settings, self._ask)
        self.documents = open_document_service(settings, self._ask)

    def _ask(self, command):  # type: ignore[no-untyped-def]
        (reply,) = self.engine.replies(encode_command(command))
        return decode_events(reply.values["events"])

    def register(self, text: str) -> str:
        """A document of one chunk, compiled; its id."""
        request = {"operation": "create", "text": text, "wait": True}
        return str(self.documents.reply(request)["document"]["id"])

    def answer(self, ids: list[str], max_tokens: int) -> Iterator[Reply]:
        fields = {**FIELDS, "document_ids": [i.encode() for i in ids], "max_tokens": max_tokens}
        return self.generate.replies(fields, lambda: False, RequestLine("generate"))


def measure(world: World, recorder: Recorder, runs: int) -> dict[str, list[Trip]]:
    """Trips by what they are of, after one of each that is not counted."""
    ids = [world.register(f"Document {number} is about the harbour.") for number in (1, 2)]
    trips: dict[str, list[Trip]] = {name: [] for name in NAMES}
    for run in range(runs + 1):
        found = []
        for max_tokens in (1, 1 + FURTHER):
            with recorder.trip() as trip:
                list(world.answer(ids, max_tokens))
            found.append(trip)
        with recorder.trip() as trip:
            world.register(f"Document of run {run}, which is new and short.")
        if run:
            for name, one in zip(NAMES, (*found, trip), strict=True):
                trips[name].append(one)
    return trips


def report(trips: dict[str, list[Trip]]) -> None:
    """A line for each stretch: files, calls, changes and threads, medians of the runs."""

    def median(name: str, what: str) -> float:
        return statistics.median(getattr(trip, what) for trip in trips[name])

    counted = ("num_calls", "changes", "in_forward", "outside", "threads")
    rows = [
        (name, *(median(name, what) for what in ("files", "files_outside", *counted)))
        for name in NAMES
    ]
    more = [(median(NAMES[1], what) - median(NAMES[0], what)) / FURTHER for what in counted]
    rows[1] = ("each further token", *rows[1][1:3], *more)
    columns = ("files", "outside", "calls", "changes", "forward", "outside", "threads")
    print(" " * 26 + "".join(f"{column:>9}" for column in columns))
    for name, *numbers in rows:
        print(f"{name:26}" + "".join(f"{number:9.1f}" for number in numbers))
    print(f"forward: changes into a file of {', '.join(FORWARD)}; outside: all but these")


def walk(trip: Trip) -> None:
    """The trip itself: each file with its thread, calls that follow each other in one as one."""
    before = None
    names = {
        thread: number for number, thread in enumerate(dict.fromkeys(t for t, _ in trip.calls))
    }
    for thread, file in trip.calls:
        if (thread, file) != before:
            print(f"{names[thread]} {file}")
        before = (thread, file)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--walk", choices=NAMES, help="print the last trip of this kind instead")
    arguments = parser.parse_args()
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as name:
        checkpoint = make_tiny_checkpoint("llama", Path(name) / "checkpoint")
        build_engine_folder(
            checkpoint, Path(name) / "engine", BuildSettings("tiny", dtype="float32")
        )
        world = World(Path(name) / "engine", Path(name) / "cache")
        trips = measure(world, recorder, arguments.runs)
        world.engine.close()
        world.generate.close()
    if arguments.walk:
        walk(trips[arguments.walk][-1])
    else:
        report(trips)
    return 0


if __name__ == "__main__":
    sys.exit(main())

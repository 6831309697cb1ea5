"""Events between two processes of one machine: in order, to whom they are for, and nobody waits."""

import queue
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from legokv.engine.request import Token
from legokv.engine.sampling import TokenLogProbs
from legokv.errors import EngineGone, InvalidRequest, ServerError
from legokv.serving import event_stream
from legokv.serving.event_stream import FOLDER_VARIABLE, EventInbox, EventOutlet, Events
from legokv.serving.messages import Done, Event, Failed, error_of


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A socket's path has at most 107 characters, which pytest's own folders nearly fill."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def inbox() -> Iterator[EventInbox]:
    made = EventInbox()
    yield made
    made.close()


def ignore() -> None:
    """Nothing is done about a loss."""


def taken(events: Events, count: int) -> list[Event]:
    return [events.get(timeout=60) for _ in range(count)]


@pytest.mark.parametrize("request_id", ["r", "a\tb\nc", 'Größe "東京" \u2028', ""])
def test_a_request_s_events_come_in_order_whatever_its_id_and_their_text(
    inbox: EventInbox, request_id: str
) -> None:
    sent = [Token(n, f"a\tb\n{n} \u2028東") for n in range(500)]
    outlet = EventOutlet(inbox.address, ignore)
    with inbox.expect(request_id) as events, inbox.expect("other") as others:
        for number, event in enumerate(sent):
            outlet.send(request_id, event)
            if number % 100 == 0:
                outlet.send("other", Done())
        assert taken(events, 500) == sent
        assert taken(others, 5) == [Done()] * 5


def test_events_that_nobody_expects_disturb_nobody(inbox: EventInbox) -> None:
    outlet = EventOutlet(inbox.address, ignore)
    with inbox.expect("gone"):
        pass
    outlet.send("gone", Done())
    outlet.send("never was", Done())
    with inbox.expect("r") as events:
        outlet.send("r", Done())
        assert taken(events, 1) == [Done()]


def test_who_waits_hears_that_the_engine_s_process_has_ended(inbox: EventInbox) -> None:
    with inbox.expect("r") as events:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(inbox.address)
        connection.close()
        (event,) = taken(events, 1)
    assert isinstance(event, Failed)
    error = error_of(event)
    assert (type(error), error.code) == (EngineGone, "UNAVAILABLE")
    assert str(error).startswith("the engine ended before the answer did, since the server stops")


def test_who_sends_never_waits_and_hears_of_a_reader_that_takes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(event_stream, "MAX_BACKLOG", 2000)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(tmp_path / "socket"))
    listener.listen()
    lost = threading.Event()
    outlet = EventOutlet(str(tmp_path / "socket"), lost.set)
    started = time.monotonic()
    for number in range(20_000):
        outlet.send("r", Token(number, "x" * 100))
    assert time.monotonic() - started < 60
    assert lost.wait(60)
    listener.close()


def test_a_reader_that_is_gone_is_told_of_once(inbox: EventInbox) -> None:
    told: queue.SimpleQueue[bool] = queue.SimpleQueue()
    outlet = EventOutlet(inbox.address, lambda: told.put(True))
    inbox.close()
    while told.empty():
        outlet.send("r", Done())
        time.sleep(0.01)
    outlet.send("r", Done())
    time.sleep(0.1)
    assert told.qsize() == 1


def test_only_this_user_may_enter_the_folder_which_goes_with_the_inbox(
    monkeypatch: pytest.MonkeyPatch, short_folder: Path
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(short_folder))
    inbox = EventInbox()
    (folder,) = short_folder.iterdir()
    assert Path(inbox.address).parent == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    inbox.close()
    assert not list(short_folder.iterdir())


def test_a_folder_with_too_long_a_name_is_refused_with_the_next_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    monkeypatch.setenv(FOLDER_VARIABLE, str(deep))
    with pytest.raises(ServerError, match=r"\(\d+ characters\): .*Set TMPDIR to a folder with a"):
        EventInbox()


@pytest.mark.parametrize("address", ["", "/nowhere/socket", "/\0", "x" * 300])
def test_nobody_there_is_an_error_that_names_the_address(address: str) -> None:
    with pytest.raises(InvalidRequest, match="no events can be sent to"):
        EventOutlet(address, ignore)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_line_that_is_no_event_ends_the_connection_and_who_waits_hears_it(
    inbox: EventInbox,
) -> None:
    with inbox.expect("r") as events, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as engine:
        engine.connect(inbox.address)
        engine.sendall(b"garbage\n")
        (event,) = taken(events, 1)
    assert isinstance(event, Failed)
    assert event.kind == "EngineGone"


@pytest.mark.parametrize(
    "event",
    [
        Token(1, "\ud800"),
        Token(1, "a", log_probs=TokenLogProbs(float("nan"))),
        Token(1, "a", log_probs=TokenLogProbs(-1.0, ((5, float("inf")),))),
        Token(1, b"bytes"),  # type: ignore[arg-type]
    ],
    ids=["half a character", "NaN", "infinity", "bytes"],
)
def test_an_event_that_cannot_be_written_is_an_error_of_its_request_alone(
    inbox: EventInbox, event: Token
) -> None:
    outlet = EventOutlet(inbox.address, ignore)
    with inbox.expect("r") as events, inbox.expect("other") as others:
        outlet.send("r", event)
        outlet.send("other", Token(2, "b"))
        (failure,) = taken(events, 1)
        assert taken(others, 1) == [Token(2, "b")]
    assert isinstance(failure, Failed)
    assert failure.message.startswith("the answer cannot be sent: ")


def test_the_loss_of_a_reader_is_told_at_once_though_nothing_is_sent(inbox: EventInbox) -> None:
    lost = threading.Event()
    outlet = EventOutlet(inbox.address, lost.set)
    with inbox.expect("r") as events:
        outlet.send("r", Done())
        taken(events, 1)
    assert not lost.wait(0.2)
    inbox.close()
    assert lost.wait(60)


LISTENER = """
from legokv.serving.event_stream import EventInbox
inbox = EventInbox()
print(inbox.address, flush=True)
input()
"""


def test_the_folder_of_a_killed_process_goes_with_the_next_start_and_a_live_one_s_stays(
    monkeypatch: pytest.MonkeyPatch, short_folder: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(short_folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    start = [sys.executable, "-c", LISTENER]
    both = [
        subprocess.Popen(start, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    killed, used = (Path(one.stdout.readline().strip()).parent for one in both if one.stdout)
    both[0].kill()
    both[0].communicate()
    assert killed.is_dir()
    own = EventInbox()
    assert set(short_folder.iterdir()) == {used, Path(own.address).parent}
    own.close()
    both[1].communicate("\n")
    assert not list(short_folder.iterdir())

"""Messages between the models arrive as they were sent, errors with their class."""

import pytest

from legokv import errors
from legokv.engine.request import AnswerOptions, Finished, Token, Usage
from legokv.engine.sampling import SamplingOptions, TokenLogProbs
from legokv.errors import InvalidRequest, LegokvError
from legokv.serving.command_reading import decode_command
from legokv.serving.messages import (
    Cancel,
    Command,
    Compile,
    Compiled,
    Done,
    Drop,
    Event,
    Failed,
    Find,
    Generate,
    Places,
    PromptSegment,
    Unknown,
    Warm,
    decode_events,
    decode_line,
    encode_command,
    encode_events,
    encode_line,
    error_of,
    failed,
)

SEGMENTS = (
    PromptSegment([1, 2], "ab", persistent=False),
    PromptSegment([], "cd", behind="ab", in_prompt=False),
    PromptSegment([4]),
)
SAMPLING = SamplingOptions(0.5, 3, 0.25, 2**63 + 1, 0.125, 1.5, -0.5, 0.75)
ANSWERING = AnswerOptions(3, 4, True, 2, 1.5)
COMMANDS = (
    Generate(
        *("r1", "/tmp/socket", "default", SEGMENTS, 8, "legolink", 16),
        *(SAMPLING, ("\n", "Größe 東京"), ANSWERING),
    ),
    Compile("tenant", SEGMENTS[:2]),
    Warm("tenant", SEGMENTS[:2], "host"),
    Drop(("a", "b")),
    Find(("a", "b")),
    Cancel("r1"),
)
USAGE = Usage(9, 4, 2, 3, 2, chunks_found=1, compiled_tokens=4, link_seconds=0.125)
EVENTS = (
    Token(7, "東 \u2028 \U0001f468"),
    Token(8, "a", "timeout", 2, TokenLogProbs(-0.1, ((8, -0.1), (9, -3.25)))),
    Finished("stop", USAGE),
    Unknown(("ab", "cd")),
    Compiled("ab"),
    Places(("pool", "")),
    Done(),
    Failed("NotFound", "no"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
def test_a_command_arrives_as_it_was_sent(command: Command) -> None:
    assert decode_command(encode_command(command)) == command


def test_events_arrive_as_they_were_sent_and_in_order() -> None:
    assert decode_events(encode_events(EVENTS)) == EVENTS
    assert decode_events(encode_events([])) == ()


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_arrives_in_one_line_with_its_request(event: Event) -> None:
    request_id = 'a\n\t"é'
    line = encode_line(request_id, event)
    assert line.index(b"\n") == len(line) - 1
    assert decode_line(line) == (request_id, event)


@pytest.mark.parametrize("line", [b"", b"\xff", b"{}", b'["a"]', b'["a",{"type":"Fly"}]'])
def test_what_is_no_line_with_an_event_is_refused(line: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not a line with an event"):
        decode_line(line)


@pytest.mark.parametrize(
    "kind",
    [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, LegokvError)],
)
def test_an_error_arrives_with_its_class_code_and_sentence(kind: type[LegokvError]) -> None:
    event: Event = failed(kind("5 > 3"))
    (arrived,) = decode_events(encode_events([event]))
    assert isinstance(arrived, Failed)
    error = error_of(arrived)
    assert (type(error), error.code, str(error)) == (kind, kind.code, "5 > 3")


def test_an_error_of_another_version_still_has_its_sentence() -> None:
    error = error_of(Failed("TooClever", "5 > 3"))
    assert type(error) is LegokvError
    assert str(error) == "TooClever: 5 > 3"

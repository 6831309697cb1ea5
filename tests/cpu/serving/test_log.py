"""Lines in a server's log that nobody's text can forge."""

import io
import json
import logging
import os
import select
import sys

import pytest

from legokv.errors import InvalidRequest
from legokv.serving import log as request_log
from legokv.serving.log import MAX_SENTENCE_BYTES, RequestLine, SafeFormatter, WholeLines, tell


class Writes(io.StringIO):
    """Remembers what each write had."""

    def __init__(self):
        super().__init__()
        self.parts = []

    def write(self, text):
        self.parts.append(text)
        return len(text)


def line(message, *arguments, error=None):
    info = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord("legokv", logging.WARNING, "x.py", 1, message, arguments, info)
    return SafeFormatter("%(levelname)s %(message)s").format(record)


@pytest.mark.parametrize(
    "text", ["a\nb", "a\r\nb", "\x1b[31mred", "\x85", "\u2028", "\x9bx", "\x7f"]
)
def test_control_characters_of_an_id_are_escaped(text):
    written = line("nobody waits for %s any more", text)
    assert written.isprintable()
    assert written == f"WARNING nobody waits for {repr(text)[1:-1]} any more"


def test_text_of_any_script_and_json_are_written_as_they_are():
    text = '{"request_id": "Größe \\\\n 東京 👩"}'
    assert line("%s", text) == f"WARNING {text}"


def test_an_error_s_text_begins_no_line():
    try:
        raise ValueError('x\n{"request_id": "FORGED"}\x1b[0m')
    except ValueError as error:
        first, *rest = line("a request failed", error=error).split("\n")
    assert first == "WARNING a request failed"
    assert all(written.startswith("  ") and written.isprintable() for written in rest)
    assert any("FORGED" in written for written in rest)


def test_a_line_begins_a_line_where_triton_has_not_ended_its_own():
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as pipe:
        lines = WholeLines(pipe, fresh=True)
        os.write(pipe.fileno(), b"E1129 14:38:06.2 937 server.cc:241] not yet")
        lines.write('{"request_id": "a"}\n')
        os.write(pipe.fileno(), b"\n")
        lines.write('{"request_id": "b"}\n')
    with os.fdopen(reader) as log:
        told = [line for line in log.read().split("\n") if line]
    assert told[1:] == ['{"request_id": "a"}', '{"request_id": "b"}']


def test_every_line_is_one_write_that_a_pipe_takes_whole():
    out = Writes()
    lines = WholeLines(out, fresh=True)
    lines.write('{"request_id": "a"}\n')
    lines.write("a fault\n" + "  somewhere in a file\n" * 500)
    lines.write("é" * 10_000 + "\n")
    first, *rest, last = out.parts
    assert first == '\n{"request_id": "a"}\n'
    assert rest == ["\na fault\n", *["\n  somewhere in a file\n"] * 500]
    assert (last[0], last[-1], len(last.encode())) == ("\n", "\n", select.PIPE_BUF)


def test_what_the_server_says_itself_is_one_write_too(monkeypatch):
    out = Writes()
    monkeypatch.setattr(sys, "stderr", out)
    tell("legokv: the front ended")
    assert out.parts == ["legokv: the front ended\n"]


@pytest.mark.parametrize("letter", ["x", "é", "👩", "\x00"])
def test_an_error_s_line_of_any_length_is_json_that_a_pipe_takes_whole(letter, monkeypatch):
    out = Writes()
    handler = logging.StreamHandler(WholeLines(out, fresh=True))
    handler.setFormatter(SafeFormatter("%(message)s"))
    monkeypatch.setattr(request_log.log, "handlers", [handler])
    monkeypatch.setattr(request_log.log, "disabled", False)
    line = RequestLine("generate", request_id="👩" * 200, facts={"namespace": "n" * 64})
    line.failed(InvalidRequest(f"unknown field {letter * 100_000}"))
    (written,) = out.parts
    assert len(written.encode()) <= select.PIPE_BUF
    sentence = json.loads(written)["error"]["message"]
    assert sentence.startswith(f"unknown field {letter}")
    assert sentence.endswith(" …")
    assert len(json.dumps(sentence)) > MAX_SENTENCE_BYTES // 2

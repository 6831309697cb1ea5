"""Lines in a server's log that nobody's text can forge."""

import logging

import pytest

from legokv.serving.log import SafeFormatter


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

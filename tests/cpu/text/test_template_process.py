"""A checkpoint's template is a program of others': it gives a text, or one sentence, in time."""

import re
import time
from collections.abc import Sequence
from datetime import date

import pytest

from legokv.errors import InvalidRequest, UnsupportedModel
from legokv.text.chat_template import Chat, ChatTemplate
from legokv.text.template_process import Rendering, TemplateProcess, render_apart

ASKED = ({"role": "user", "content": "Why?"},)


def rendered(source: str, *chats: Chat) -> Sequence[Rendering]:
    return render_apart(ChatTemplate(source), {"bos_token": "<s>"}, chats or [Chat(ASKED)])


def test_each_chat_has_its_text() -> None:
    source = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}{{ end }}"
    other = Chat((*ASKED, *ASKED), switches={"end": "."})
    assert rendered(source, Chat(ASKED), other) == ["<s>Why?", "<s>Why?Why?."]


def test_the_clock_shows_the_day_and_no_hour() -> None:
    source = "{{ strftime_now('%d %b %Y %H:%M:%S') }}"
    chat = Chat(ASKED, day=date(2024, 7, 26))
    assert rendered(source, chat) == ["26 Jul 2024 00:00:00"]
    assert ChatTemplate(source).is_dated
    assert not ChatTemplate("{{ messages }}").is_dated


def test_a_refusal_in_the_templates_words_is_one() -> None:
    (refused,) = rendered("{{ raise_exception('roles\nmust alternate') }}")
    assert isinstance(refused, InvalidRequest)
    assert str(refused) == "the chat template refuses the messages: roles must alternate"


def test_a_switch_that_the_template_does_not_read_is_refused_with_those_it_reads() -> None:
    source = "{% if not style is defined %}{% set style = 'plain' %}{% endif %}{{ style }}{{ x }}"
    with pytest.raises(InvalidRequest, match="does not read 'stile'; what it reads: style, x"):
        rendered(source, Chat(ASKED, switches={"stile": "grand"}))


@pytest.mark.parametrize("name", ["messages", "bos_token", "strftime_now", "range"])
def test_what_the_template_is_given_is_no_switch(name: str) -> None:
    source = "{{ messages }}{{ bos_token }}{{ strftime_now('%d') }}{{ range(3) }}"
    with pytest.raises(InvalidRequest, match=f"does not read '{name}'; what it reads: none"):
        rendered(source, Chat(ASKED, switches={name: "x"}))


FAILING = {
    "text added to a number": ("{{ 'x' + 1 }}", "fails: TypeError"),
    "division by zero": ("{{ 1 / 0 }}", "fails: ZeroDivisionError"),
    "endless recursion": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "fails: Recursion"),
    "half a surrogate pair": ("{{ '\\ud800' }}", "fails: UnicodeEncodeError"),
    "half a pair to the clock": ("{{ strftime_now('\\ud800') }}", "the chat template fails"),
    "an unknown filter": ("{{ messages | nothing }}", "not valid Jinja, line 1"),
    "a large text": ("{{ 'a' * 20000000000 }}", "fails: MemoryError"),
    "a large text by a filter": ("{{ 'a' | center(20000000000) }}", "fails: MemoryError"),
    "a large number": ("{{ 10 ** (10 ** 10) }}", "(signal|fails: )"),
    "much text": (
        "{% for i in range(99999) %}{{ messages }}{% endfor %}",
        "writes more than 262144 characters",
    ),
}


@pytest.mark.parametrize("name", FAILING)
def test_what_a_template_does_wrong_is_one_sentence(name: str) -> None:
    source, reason = FAILING[name]
    try:
        (failed,) = rendered(source)
    except UnsupportedModel as error:
        failed = error
    assert isinstance(failed, UnsupportedModel)
    assert re.search(reason, str(failed))
    assert "\n" not in str(failed)


def test_a_template_that_takes_no_end_is_ended() -> None:
    started = time.monotonic()
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    # By the clock where the machine has no time for it.
    with pytest.raises(UnsupportedModel, match=r"may take 5 seconds and 1024 MiB|after 60 seconds"):
        rendered(loops)
    assert time.monotonic() - started < 90


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% if %}", "not valid Jinja, line 1"),
        ("(" * 3 + "{{" + "(" * 5000 + ")" * 5000 + "}}", "nested too deep"),
        ("a" * ((1 << 20) + 1), "has 1048577 characters, at most 1048576 are taken"),
    ],
)
def test_a_source_that_is_no_template_is_refused_before_it_runs(source: str, reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        ChatTemplate(source)


def test_one_process_renders_chats_after_chats_and_one_that_died_is_replaced() -> None:
    source = (
        "{% if n is defined %}{{ 10 ** (10 ** n) }}{% else %}{{ messages[0].content }}{% endif %}"
    )
    chat = Chat(ASKED)
    with TemplateProcess(ChatTemplate(source), {}) as process:
        assert process.render([chat]) == ["Why?"]
        first = process._process
        assert process.render([chat]) == ["Why?"]
        assert process._process is first
        with pytest.raises(UnsupportedModel, match=r"ended the process that rendered it"):
            process.render([Chat(ASKED, switches={"n": 10})])
        assert process.render([chat]) == ["Why?"]
    assert process._process is None

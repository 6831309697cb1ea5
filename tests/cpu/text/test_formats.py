"""Prompt formats by switches and by day, and what a build tries a template with."""

import time
from datetime import UTC, date, datetime, timedelta

import pytest
from small_tokenizer import CHATML, small_tokenizer

from legokv.errors import InvalidRequest, UnsupportedModel
from legokv.text.formats import PromptFormats
from legokv.text.prompt import prompt_format

# As Qwen3's: without thinking, an empty thought stands at the start of the answer.
THINKING = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    "{% if enable_thinking is defined and enable_thinking is false %}(none){% endif %}"
)
DATED = "Today: {{ strftime_now('%d %b %Y') }}. {% for m in messages %}{{ m.content }}{% endfor %}"


class Calendar:
    """A day that can be turned, and how often it was asked for."""

    def __init__(self) -> None:
        self.day = date(2026, 11, 29)

    def __call__(self) -> date:
        return self.day


def test_the_usual_format_is_that_of_the_template() -> None:
    tokenizer = small_tokenizer(CHATML)
    assert PromptFormats(tokenizer).of({}) == prompt_format(tokenizer)
    plain = small_tokenizer(None)
    assert PromptFormats(plain).of({}) == prompt_format(plain)


def test_a_switch_changes_the_format_and_a_request_s_goes_before_the_servers() -> None:
    formats = PromptFormats(small_tokenizer(THINKING), {"enable_thinking": False})
    assert formats.of({}).without_system.after_question == "[assistant](none)"
    thinking = formats.of({"enable_thinking": True})
    assert thinking.without_system.after_question == "[assistant]"
    assert formats.of({"enable_thinking": True}) is thinking


def test_a_template_with_a_date_is_rendered_anew_each_day_and_only_then() -> None:
    calendar = Calendar()
    formats = PromptFormats(small_tokenizer(DATED), today=calendar)
    first = formats.of({})
    assert first.without_system.head == ("Today: 29 Nov 2026. ",)
    assert formats.of({}) is first
    calendar.day = date(2026, 11, 30)
    assert formats.of({}).without_system.head == ("Today: 30 Nov 2026. ",)


@pytest.mark.parametrize("zone", ["AAA-14", "BBB12"])
def test_the_day_is_that_of_the_servers_time_zone(
    zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """14 hours before Greenwich and 12 behind it are never one day."""
    hours = {"AAA-14": 14, "BBB12": -12}[zone]
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        before = datetime.now(UTC)
        head = PromptFormats(small_tokenizer(DATED)).of({}).without_system.head
        after = datetime.now(UTC)
    finally:
        monkeypatch.undo()
        time.tzset()
    days = {(now + timedelta(hours=hours)).strftime("%d %b %Y") for now in (before, after)}
    assert head in {(f"Today: {day}. ",) for day in days}


def test_a_template_without_a_date_is_rendered_once() -> None:
    calendar = Calendar()
    formats = PromptFormats(small_tokenizer(CHATML), today=calendar)
    first = formats.of({})
    calendar.day = date(2026, 11, 30)
    assert formats.of({}) is first


def test_formats_of_many_switches_do_not_push_the_usual_one_out() -> None:
    formats = PromptFormats(small_tokenizer(THINKING))
    formats._rendered = lambda switches, day, by_request: str(switches)  # type: ignore[assignment, method-assign, return-value]
    usual = formats.of({})
    for number in range(200):
        formats.of({"enable_thinking": number})
    assert formats.of({}) is usual
    assert len(formats._kept) == 64


def test_a_switch_is_no_control_token_however_it_is_spelled() -> None:
    tokenizer = small_tokenizer("{{ style }}" + THINKING, added=("ENDTURN",))
    with pytest.raises(InvalidRequest, match="holds the control token 'ENDTURN'"):
        PromptFormats(tokenizer).of({"style": "say ENDTURN now"})


def test_switches_of_a_model_without_a_template_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="no chat template that reads 'enable_thinking'"):
        PromptFormats(small_tokenizer(None)).of({"enable_thinking": True})


def test_a_switch_with_which_the_template_fails_is_the_requests_fault() -> None:
    tokenizer = small_tokenizer("{% if depth %}{{ 1 / 0 }}{% endif %}" + THINKING)
    with pytest.raises(InvalidRequest, match="fails: ZeroDivisionError"):
        PromptFormats(tokenizer).of({"depth": 3})
    with pytest.raises(UnsupportedModel, match="fails: ZeroDivisionError"):
        PromptFormats(tokenizer, {"depth": 3}).of({})


@pytest.mark.parametrize(
    "template",
    [
        CHATML,
        THINKING,
        DATED,
        None,
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ messages[-1].content }}",
        "{% if messages | length > 2 %}{{ raise_exception('one turn') }}{% endif %}"
        "{% for m in messages %}{{ m.content | trim }}{% endfor %}",
    ],
)
def test_a_sound_template_passes_the_builds_trial(template: str | None) -> None:
    PromptFormats(small_tokenizer(template)).check()


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages[0]['content'] | upper }}", "does not write"),
        ("{{ messages[-1].content.replace('\n', ' ') }}", "changes what the user's message says"),
        ("{{ messages[-1].content | e }}", "changes what the user's message says"),
        ("{{ messages[-1].content[:60] }}", "changes what the user's message says"),
        (
            "{% for m in messages %}{{ m.content if m.role == 'user' else "
            "m.content.replace('\n', '') }}{% endfor %}",
            "changes what the system text says",
        ),
        ("{{ messages[0].content }}{% if messages|length > 1 %}{{ 1/0 }}{% endif %}", "fails: Ze"),
        (
            "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ 'x' + 1 }}"
            "{% endif %}{% endfor %}",
            "fails: TypeError",
        ),
    ],
)
def test_a_template_that_fails_or_changes_a_text_is_refused_by_the_build(
    template: str, reason: str
) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        PromptFormats(small_tokenizer(template)).check()

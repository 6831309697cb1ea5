"""From a request's fields to the engine and back, over a real registry and a real engine."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import CHAT_TEMPLATE

from legokv import Engine, EngineSettings
from legokv.built.folder import read_engine_folder
from legokv.documents.document import NewDocument
from legokv.engine.naming import ChunkNaming
from legokv.errors import Cancelled, InvalidRequest, LegokvError, NotFound, RankingMissing
from legokv.serving.answering import Reply, answer
from legokv.serving.engine_service import EngineService
from legokv.serving.generate import GenerateService
from legokv.serving.log import PROBE_VARIABLE, RequestLine
from legokv.serving.messages import (
    Cancel,
    Command,
    Drop,
    Event,
    Generate,
    Probe,
    PromptSegment,
    Rank,
    Warm,
)
from legokv.serving.question import Question, check_reply_size, question_from_fields
from legokv.serving.settings import Settings
from legokv.stores.local.registry import Registry
from legokv.text.formats import PromptFormats
from legokv.text.prompt import head_ids
from legokv.text.tokenizer import Tokenizer

TEXT = "The keeper of the lighthouse is called Orrin.\n\n"


@dataclass
class World:
    """The service, the engine behind it, and all commands that passed between them."""

    service: GenerateService
    registry: Registry
    tokenizer: Tokenizer
    naming: ChunkNaming
    commands: list[Command] = field(default_factory=list)
    line: RequestLine = field(default_factory=lambda: RequestLine("generate"))

    def register(
        self, *chunks: str, namespace: str = "default", head: tuple[int, ...] = ()
    ) -> bytes:
        """A document's id, as a tensor has it; its chunks are the given texts."""
        ids = tuple(tuple(self.tokenizer.encode(chunk)) for chunk in chunks)
        new = NewDocument(namespace, "".join(chunks), ids, head)
        return self.registry.register(new, {}, 0)[0].id.encode()

    def replies(self, **fields: object) -> list[Reply]:
        """All replies to a request whose client stays."""
        given = {"text_input": b"Who?", **fields}
        if given["text_input"] is None:
            del given["text_input"]
        return list(self.service.replies(given, lambda: False, self.line))

    def result(self, **fields: object) -> dict[str, object]:
        (reply,) = self.replies(**fields)
        assert reply.final
        return dict(reply.values)

    def sent(self) -> Generate:
        """The last command that asked a question; it is sent once more with what was unknown."""
        return next(c for c in reversed(self.commands) if isinstance(c, Generate))

    def ids(self, piece: PromptSegment) -> tuple[int, ...]:
        """A segment's token ids, by whichever command they came with."""
        if piece.key is None:
            return tuple(piece.token_ids)
        asked = (c for c in self.commands if isinstance(c, Generate))
        pieces = (other for command in asked for other in command.segments)
        return next(tuple(p.token_ids) for p in pieces if p.key == piece.key and p.token_ids)

    @property
    def head(self) -> tuple[int, ...]:
        """The head of prompts without words of their own."""
        formats = PromptFormats(self.tokenizer)
        return head_ids(self.tokenizer, formats.of({}))

    def warmed(self) -> list[Warm]:
        """What was asked to be compiled beside answers, each once."""
        warms = [c for c in self.commands if isinstance(c, Warm)]
        return list({c.segments[-1].key: c for c in warms}.values())


@pytest.fixture
def world(tiny_engine_folder: Callable[[], Path], tmp_path: Path) -> Iterator[World]:
    yield from world_over(tiny_engine_folder(), tmp_path)


@pytest.fixture
def thinking_world(tiny_engine_folder: Callable[[], Path], tmp_path: Path) -> Iterator[World]:
    """The same with a template that has a switch, which the server's settings set."""
    folder = Path(shutil.copytree(tiny_engine_folder(), tmp_path / "engine"))
    switch = "{% if enable_thinking is false %}(none){% endif %}"
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE + switch)
    facts = json.loads((folder / "engine.json").read_text())
    (template,) = (file for file in facts["files"] if file["name"] == "chat_template.jinja")
    template["size_bytes"] += len(switch)
    (folder / "engine.json").write_text(json.dumps(facts))
    yield from world_over(folder, tmp_path, chat_template_kwargs='{"enable_thinking": false}')


@pytest.fixture
def compiling_world(tiny_engine_folder: Callable[[], Path], tmp_path: Path) -> Iterator[World]:
    """A server that compiles documents behind a head that comes three times."""
    changes = {
        "compile_behind": "head",
        "other_heads": "compile",
        "other_heads_after": 3,
        "other_heads_bytes": 600_000,
    }
    for world in world_over(tiny_engine_folder(), tmp_path, **changes):
        # At once, so that a test knows when it is done.
        world.service._other_heads._run_in_background = lambda job: job()
        yield world


def world_over(folder: Path, tmp_path: Path, **changes: Any) -> Iterator[World]:
    settings = Settings(engine=folder, cache_dir=tmp_path, max_question_bytes=200, **changes)
    own = EngineSettings(pool_tokens=4096, kept_tokens=2048)
    engine = EngineService(Engine.open(folder, settings=own))
    commands: list[Command] = []

    def ask(command: Command) -> tuple[Event, ...]:
        commands.append(command)
        return tuple(engine.events(command))

    naming = ChunkNaming.by_settings(read_engine_folder(folder), settings)
    tokenizer = Tokenizer.open(folder)
    with Registry.open(tmp_path / "registry.sqlite") as registry:
        service = GenerateService(settings, registry, tokenizer, naming, ask)
        yield World(service, registry, tokenizer, naming, commands)
        service.close()
    engine.close()


def test_without_a_template_the_prompt_is_the_text_alone_with_its_blanks(world: World) -> None:
    document = world.register("One.\n\n")
    world.result(text_input=b" The oldest ", apply_chat_template=False, max_tokens=1)
    (piece,) = world.sent().segments
    assert world.tokenizer.decode(piece.token_ids) == " The oldest "
    world.result(document_ids=[document], apply_chat_template=False, max_tokens=1)
    texts = [world.tokenizer.decode(world.ids(piece)) for piece in world.sent().segments]
    assert texts == ["One.\n\n", "Who?"]
    with pytest.raises(InvalidRequest, match="'system_text' needs the chat template"):
        world.result(system_text=b"Briefly.", apply_chat_template=False)
    with pytest.raises(InvalidRequest, match="'text_input' is empty"):
        world.result(text_input=b"", apply_chat_template=False)


def test_the_prompt_is_head_documents_in_the_order_asked_and_a_fresh_question(
    world: World,
) -> None:
    first, second = world.register("One.\n\n", "Two.\n\n"), world.register("Three.\n\n")
    world.result(document_ids=[second, first], max_tokens=1)
    pieces = world.sent().segments
    decode = world.tokenizer.decode
    texts = [decode(world.ids(piece), skip_special_tokens=False) for piece in pieces]
    assert texts[0].endswith("user\n")
    assert texts[1:4] == ["Three.\n\n", "One.\n\n", "Two.\n\n"]
    assert texts[4].startswith("Who?")
    assert [piece.key is None for piece in pieces] == [False, False, False, False, True]


def test_token_ids_go_to_the_engine_once_and_keys_from_then_on(world: World) -> None:
    document = world.register(TEXT)
    answers = [world.result(document_ids=[document], max_tokens=4) for _ in range(2)]
    asked = [c for c in world.commands if isinstance(c, Generate)]
    ids = [[len(piece.token_ids) > 0 for piece in command.segments] for command in asked]
    assert ids == [[False, False, True], [True, True, True], [False, False, True]]
    assert answers[0]["text_output"] == answers[1]["text_output"]
    assert answers[1]["compiled_tokens"] == 0


def test_streamed_pieces_join_to_the_answer_that_comes_whole_without_a_stream(
    world: World,
) -> None:
    whole = world.result(max_tokens=30)
    *pieces, last = world.replies(max_tokens=30, stream=True)
    assert len(pieces) > 3
    assert not any(piece.final for piece in pieces)
    assert {tuple(piece.values) for piece in pieces} == {("text_output", "sequence_index")}
    joined = "".join(str(piece.values["text_output"]) for piece in pieces)
    assert joined == whole["text_output"]
    assert last.final
    assert last.values["finish_reason"] == whole["finish_reason"] == "length"


def test_a_request_may_set_the_templates_variables(tmp_path: Path, thinking_world: World) -> None:
    def tail() -> str:
        return world.tokenizer.decode(world.sent().segments[-1].token_ids)

    world = thinking_world
    world.result(max_tokens=1)
    assert tail().endswith("(none)")  # as the server's setting has it
    assert world.sent().segments[0].persistent
    world.result(max_tokens=1, chat_template_kwargs=b'{"enable_thinking": true}')
    assert tail().endswith("assistant\n")
    assert not world.sent().segments[0].persistent
    with pytest.raises(InvalidRequest, match="does not read 'thinking'; what it reads: enable_th"):
        world.result(chat_template_kwargs=b'{"thinking": true}')


def test_the_counts_add_up_and_the_times_follow_one_another(world: World) -> None:
    ids = [world.register(TEXT * 3), world.register(TEXT * 4)]
    result = world.result(document_ids=ids, max_tokens=5, link_tokens=4)
    assert result["recomputed_tokens"] == 8
    assert result["prompt_tokens"] == sum(
        int(str(result[f"{kind}_tokens"])) for kind in ("cached", "recomputed", "fresh")
    )
    assert (result["documents_linked"], result["generated_tokens"]) == (2, 5)
    times = [
        float(str(result[name]))
        for name in (
            "lookup_seconds",
            "engine_time_to_first_token_seconds",
            "time_to_first_token_seconds",
            "total_seconds",
        )
    ]
    assert times[0] > 0
    assert times == sorted(times)


def test_every_count_is_a_number_also_without_documents(world: World) -> None:
    result = world.result(max_tokens=1)
    counts = {name: value for name, value in result.items() if name.endswith("_tokens")}
    assert len(counts) == 7
    assert all(type(value) is int for value in counts.values())


def test_without_max_tokens_an_answer_ends_at_the_server_s_limit_or_the_context_s(
    world: World,
) -> None:
    assert world.result(stop_words=[b"e"])["finish_reason"] == "stop"
    assert world.sent().max_tokens == 256
    document = world.register("ab " * 600)
    world.result(document_ids=[document], stop_words=[b"e"])
    prompt_tokens = sum(len(world.ids(piece)) for piece in world.sent().segments)
    assert world.sent().max_tokens == min(256, 2048 - prompt_tokens)


def test_a_prompt_that_is_too_long_is_told_with_what_may_be_left_out(world: World) -> None:
    document = world.register("ab " * 700)
    tokens = world.result(document_ids=[document], count_only=True)["prompt_tokens"]
    many = [document] * (1 + 2048 // int(str(tokens)))
    counted = int(str(world.result(document_ids=many, count_only=True)["prompt_tokens"]))
    asked = len(world.commands)
    told = (
        rf"the prompt has {counted} tokens, \d+ of them in {len(many)} documents, and the model's "
        rf"context has 2048: leave out documents or messages of {counted - 2047} tokens or more"
    )
    for fields in ({}, {"max_tokens": 1}, {"max_tokens": 99}):
        with pytest.raises(InvalidRequest, match=told):
            world.result(document_ids=many, **fields)
    with pytest.raises(InvalidRequest, match=f"max_tokens 2048 .*: {2048 - int(str(tokens))} are"):
        world.result(document_ids=[document], max_tokens=2048)
    assert len(world.commands) == asked


def test_rankings_that_are_missing_are_told_by_the_documents_that_want_them(
    world: World,
) -> None:
    first, second, third = (world.register(f"{name} keeps the mill.\n\n") for name in "ABC")
    world.result(document_ids=[first, second], max_tokens=1)
    for piece in world.sent().segments:
        if "keeps" in world.tokenizer.decode(world.ids(piece)):
            world.service._ask_engine(
                Rank("default", (replace(piece, token_ids=world.ids(piece)),))
            )
    with pytest.raises(RankingMissing) as refused:
        world.result(document_ids=[first, third, second, third], mode=b"ranked")
    assert str(refused.value) == (
        "mode 'ranked' needs a ranking of each document, and 1 of 3 have none: "
        f"{third.decode()}. Register them again with 'rank' true, which ranks what is not ranked"
    )
    assert world.result(document_ids=[first, second], mode=b"ranked", max_tokens=1)


def test_a_user_s_system_text_is_in_the_head_which_then_leaves_no_file(world: World) -> None:
    world.result(max_tokens=1)
    assert world.sent().segments[0].persistent
    world.result(max_tokens=1, system_text=b"Sei kurz.")
    head = world.sent().segments[0]
    assert "Sei kurz." in world.tokenizer.decode(world.ids(head))
    assert not head.persistent


def test_greedy_unless_a_temperature_or_a_choice_among_tokens_is_asked_for(world: World) -> None:
    world.result(max_tokens=1)
    assert world.sent().sampling.temperature == 0
    world.result(max_tokens=1, top_p=1.0, top_k=0, min_p=0.0, num_return_sequences=1)
    assert world.sent().sampling.temperature == 0
    for drawing in ({"top_p": 0.5}, {"top_k": 5}, {"min_p": 0.1}, {"num_return_sequences": 2}):
        world.result(max_tokens=1, **drawing)
        assert world.sent().sampling.temperature == 1
    world.result(max_tokens=1, top_p=0.5, temperature=0.0)
    assert world.sent().sampling.temperature == 0


def test_a_request_has_the_server_s_time_limit_unless_it_has_its_own(world: World) -> None:
    world.result(max_tokens=1)
    assert world.sent().answering.timeout_seconds == 600
    world.result(max_tokens=1, timeout_seconds=7.5)
    assert world.sent().answering.timeout_seconds == 7.5


def test_log_probs_are_given_for_each_answer_only_where_they_are_asked_for(world: World) -> None:
    fields = {"max_tokens": 6, "num_return_sequences": 2, "seed": 3}
    plain = world.result(**fields)
    told = world.result(return_log_probs=True, num_top_log_probs=2, **fields)
    assert plain.keys() == told.keys() - {"cum_log_probs", "output_log_probs", "token_log_probs"}
    assert told["text_output"] == plain["text_output"]
    rows: Any = told["output_log_probs"]
    texts: Any = told["token_log_probs"]
    for whole, text in zip(told["text_output"], texts, strict=True):  # type: ignore[call-overload]
        assert "".join(token["text"] for token in json.loads(text)) == whole
    for row, text, whole in zip(rows, texts, told["cum_log_probs"], strict=True):  # type: ignore[call-overload]
        tokens = json.loads(text)
        assert [token["log_prob"] for token in tokens] + [0.0] * (len(row) - len(tokens)) == row
        assert sum(row) == whole
        for token in tokens:
            assert token["token"] == world.tokenizer.token_name(token["token_id"])
            assert len(token["top"]) == 2
            assert token["top"][0]["log_prob"] >= token["top"][1]["log_prob"]


def test_the_server_s_own_question_goes_to_the_engine_and_is_neither_counted_nor_told(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(PROBE_VARIABLE, "a5a5")
    world.line = RequestLine("generate", "a5a5")
    before = list(world.service.samples())
    (reply,) = world.replies()
    assert (reply.final, reply.values["text_output"]) == (True, "")
    assert world.commands == [Probe()]
    assert list(world.service.samples()) == before
    assert caplog.records == []


def test_a_client_that_goes_away_has_its_request_cancelled(world: World) -> None:
    gone = iter([False, False, True])
    fields = {"text_input": b"Who?", "max_tokens": 900, "stream": True}
    replies = world.service.replies(fields, lambda: next(gone), world.line)
    texts = []
    with pytest.raises(Cancelled):
        texts += list(replies)
    assert world.commands[-1] == Cancel(world.sent().request_id)
    assert len(texts) <= 2


def test_a_reader_that_stops_reading_has_its_request_cancelled(world: World) -> None:
    fields = {"text_input": b"Who?", "max_tokens": 900, "stream": True}
    replies = world.service.replies(fields, lambda: False, world.line)
    next(iter(replies))
    replies.close()  # type: ignore[attr-defined]
    assert world.commands[-1] == Cancel(world.sent().request_id)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text_input": b" \n"}, "question is empty"),
        ({"text_input": b"a\xff"}, "'text_input' is not UTF-8: byte 0xff at offset 1 of 2"),
        ({"text_input": b"x" * 201}, "'text_input' has 201 bytes, at most 200 are taken"),
        ({"system_text": b"\xc3"}, "'system_text' is not UTF-8: byte 0xc3 at offset 0 of 1"),
        ({"stop_words": [b"a", b""]}, "stop word 2 of 2 is empty"),
        ({"stop_words": [b"a"] * 129}, "stop_words has 129 words, at most 128 are taken"),
        (
            {"stop_words": ["é".encode() * 1024, b"a" * 2049]},
            "stop_words has 4097 bytes together, at most 4096 are taken",
        ),
        ({"stop_token_ids": [5, 384]}, "stop_token_ids has 384: token ids lie between 0 and 383"),
        ({"stop_token_ids": [-1]}, "'stop_token_ids' is -1, outside 0"),
        ({"stop_token_ids": 5}, "'stop_token_ids' is a list, not a whole number"),
        (
            {"stop_token_ids": [0.5]},
            "'stop_token_ids' is a list of whole numbers, one of them is a fraction",
        ),
        ({"stop_token_ids": [5] * 129}, "stop_token_ids has 129 ids, at most 128 are taken"),
        ({"max_tokens": 0}, "'max_tokens' is 0, outside 1 to"),
        ({"link_tokens": -1}, "'link_tokens' is -1, outside 0 to"),
        (
            {"mode": b"fast"},
            "'mode' is one of legolink, .*, full, not 'fast'",
        ),
        (
            {"mode": b"full", "link_tokens": 3},
            "'link_tokens' belongs to modes legolink, .*guided-drift, guided-ranked-drift",
        ),
        (
            {"link_tokens": 3, "recompute_percent": 2.5},
            "3 and recompute_percent 2.5 are both",
        ),
        ({"recompute_percent": 250.0}, "recompute_percent is 0 to 100, not 250"),
        (
            {"mode": b"full", "recompute_percent": 3.0},
            "belongs to modes legolink, spread, .*guided-drift, guided-ranked-drift",
        ),
        ({"temperature": float("nan")}, "temperature is 0 to 100, not nan"),
        ({"top_p": 0.0}, "top_p is above 0 and at most 1, not 0.0"),
        ({"min_p": "half"}, "'min_p' is a number, not a text"),
        ({"min_p": 1.5}, "min_p is 0 to 1, not 1.5"),
        ({"repetition_penalty": -1.0}, "repetition_penalty is 0.01 to 100, not -1.0"),
        ({"num_return_sequences": 200}, "'num_return_sequences' is 200, outside 1 to 128"),
        ({"num_top_log_probs": 21}, "'num_top_log_probs' is 21, outside 0 to 20"),
        ({"num_top_log_probs": 2}, "num_top_log_probs is 2 without return_log_probs"),
        ({"min_tokens": -1}, "'min_tokens' is -1, outside 0 to"),
        ({"timeout_seconds": 0.0}, "timeout_seconds is above 0, not 0.0"),
        ({"beams": 2}, "unknown field 'beams'; known are apply_chat_template, bad_words"),
        ({"namespace": b"a b"}, "a namespace is 1 to 64"),
        ({"namespace": b""}, r"a namespace is 1 to 64 .* not '' \(0 characters\)"),
        ({"namespace": b"default\n"}, "a namespace is 1 to 64"),
        ({"namespace": b"default\0"}, "a namespace is 1 to 64"),
        ({"namespace": None}, "'namespace' is a text, not null"),
        ({"namespace": [b"default"]}, "'namespace' is a text, not a list"),
        ({"document_ids": [b"doc-0"] * 257}, "'document_ids' names 257 documents, at most 256"),
        (
            {"document_ids": [b"a", b"d" * 65]},
            "id 2 of 2 in 'document_ids' has 65 bytes, at most",
        ),
    ],
)
def test_a_bad_field_is_refused_with_the_reason_and_the_engine_is_not_asked(
    world: World, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        world.replies(**fields)
    assert not world.commands


def test_a_document_of_another_namespace_is_not_found(world: World) -> None:
    document = world.register(TEXT, namespace="tenant-a")
    with pytest.raises(NotFound, match=f"no document '{document.decode()}' in namespace 'default'"):
        world.replies(document_ids=[document])
    linked = world.result(document_ids=[document], namespace=b"tenant-a", max_tokens=1)
    assert linked["documents_linked"] == 1


@dataclass
class Outcome:
    """What a request's client would get."""

    replies: list[Reply] = field(default_factory=list)
    errors: list[LegokvError] = field(default_factory=list)

    def send(self, reply: Reply) -> None:
        self.replies.append(reply)

    def fail(self, error: LegokvError) -> None:
        self.errors.append(error)


def test_an_error_on_purpose_is_the_request_s_last_reply() -> None:
    def replies() -> Iterator[Reply]:
        yield Reply({"text_output": "a"})
        raise NotFound("no document 'x'")

    outcome = Outcome()
    answer(replies(), outcome)
    assert outcome.replies == [Reply({"text_output": "a"})]
    assert [(type(e), str(e)) for e in outcome.errors] == [(NotFound, "no document 'x'")]


def test_a_fault_of_ours_is_logged_and_told_without_its_details(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def replies() -> Iterator[Reply]:
        yield Reply({"secret": [][0]})

    outcome = Outcome()
    answer(replies(), outcome)
    (error,) = outcome.errors
    assert error.code == "INTERNAL"
    fault_id = str(error).rsplit(" ", 1)[-1]
    assert fault_id in caplog.text
    assert "list index out of range" in caplog.text
    assert "list index" not in str(error)


def test_a_fault_of_ours_is_a_line_of_level_error_with_the_fault_s_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def replies() -> Iterator[Reply]:
        yield Reply({"text_output": "begun"})
        raise RuntimeError("a secret path")

    outcome = Outcome()
    answer(replies(), outcome, RequestLine("generate", "mine"))
    (line,) = [json.loads(r.message) for r in caplog.records if r.message.startswith("{")]
    assert (line["level"], line["request_id"]) == ("error", "mine")
    assert line["error"] == {"code": "INTERNAL", "message": str(outcome.errors[0])}
    assert "secret" not in json.dumps(line)


def messages(*turns: tuple[str, object]) -> bytes:
    return json.dumps([{"role": role, "content": said} for role, said in turns]).encode()


def test_messages_are_segments_in_order_with_a_document_wherever_one_stands(world: World) -> None:
    first, second = world.register("One.\n\n", "Two.\n\n"), world.register("Three.\n\n")
    parts = [{"type": "document", "id": id_.decode()} for id_ in (first, second)]
    said = messages(
        ("user", [parts[0], {"type": "text", "text": "Who?"}]),
        ("assistant", "Orrin."),
        ("user", [{"type": "text", "text": "And here: "}, parts[1]]),
    )
    result = dict(world.result(text_input=None, messages=said, max_tokens=1))
    decode = world.tokenizer.decode
    pieces = world.sent().segments
    texts = [decode(world.ids(piece), skip_special_tokens=False) for piece in pieces]
    assert texts[0].endswith("user\n")
    assert texts[1:3] == ["One.\n\n", "Two.\n\n"]
    assert texts[3].startswith("Who?<|im_end|>")
    assert texts[3].endswith("And here: ")
    assert texts[4] == "Three.\n\n"
    assert result["documents_linked"] == 2
    assert result["prompt_tokens"] == sum(len(world.ids(piece)) for piece in pieces)


@pytest.mark.parametrize("mode", [b"legolink", b"legolink-0", b"full"])
def test_a_prompt_is_counted_as_it_would_be_computed_and_the_engine_is_not_asked(
    world: World, mode: bytes
) -> None:
    first, second = world.register("One.\n\n", "Two.\n\n"), world.register("Three.\n\n")
    parts = [{"type": "document", "id": id_.decode()} for id_ in (first, second, first)]
    said = messages(("user", [*parts[:2], {"type": "text", "text": "Who?"}, parts[2]]))
    for asked in (
        {"text_input": None, "messages": said},
        {"text_input": b"Who?", "document_ids": [second, first], "system_text": b"Be brief."},
        {"text_input": b"Who?", "apply_chat_template": False, "document_ids": [first]},
    ):
        num_commands = len(world.commands)
        counted = world.result(**asked, mode=mode, count_only=True)
        assert len(world.commands) == num_commands
        assert (counted["text_output"], counted["generated_tokens"]) == ("", 0)
        answered = world.result(**asked, mode=mode, max_tokens=1)
        assert counted["prompt_tokens"] == answered["prompt_tokens"]


def test_a_prompt_that_was_counted_is_not_laid_out_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_laid_out = 0
    lay_out = world.service._prompt

    def laid_out(*asked: Any) -> Any:
        nonlocal num_laid_out
        num_laid_out += 1
        return lay_out(*asked)

    monkeypatch.setattr(world.service, "_prompt", laid_out)
    document = world.register("Orrin keeps the mill.")
    for asked in (
        {"text_input": b"Who?", "document_ids": [document]},
        {"text_input": b"Who?", "apply_chat_template": False},
        {"text_input": None, "messages": messages(("user", "Who?"))},
    ):
        num_laid_out = 0
        alone = world.result(**asked, max_tokens=1)["prompt_tokens"]
        assert num_laid_out == 1
        counted = world.result(**asked, count_only=True)["prompt_tokens"]
        answered = world.result(**asked, max_tokens=1)["prompt_tokens"]
        assert num_laid_out == 2
        assert counted == answered == alone
        # Once, for nothing is kept of what was asked; and another question has its own.
        world.result(**asked, max_tokens=1)
        world.result(**asked, count_only=True)
        world.result(**{**asked, "document_ids": []}, namespace=b"other", max_tokens=1)
        assert num_laid_out == 5


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"text_input": None}, "'text_input' is missing, or 'messages' in its place"),
        ({"messages": messages(("user", "Who?"))}, "'messages' and 'text_input' are both there"),
        (
            {"text_input": None, "messages": messages(("user", "Who?")), "system_text": b"Lie."},
            "'messages' and 'system_text' are both there",
        ),
        ({"tools": b"[]"}, "'tools' belong to 'messages'"),
        (
            {"text_input": None, "messages": messages(("user", "a" * 201))},
            "the messages' texts have 201 bytes together, at most 200 are taken",
        ),
        (
            {
                "text_input": None,
                "messages": messages(("user", [{"type": "document", "id": "no"}] * 257)),
            },
            "'messages' names 257 documents, at most 256 are taken",
        ),
    ],
)
def test_a_prompt_is_said_one_way(world: World, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        world.replies(**fields)


def test_the_second_turn_has_the_first_answer_s_tokens_as_drawn_and_computes_what_is_new(
    world: World,
) -> None:
    parts = [
        {"type": "document", "id": world.register(f"Light {n} is grey.\n\n").decode()}
        for n in range(8)
    ]
    turns: list[tuple[str, object]] = [("user", [*parts, {"type": "text", "text": "Who?"}])]
    first = world.result(text_input=None, messages=messages(*turns), max_tokens=30)
    turns += [("assistant", first["text_output"]), ("user", "Why?")]
    second = world.result(text_input=None, messages=messages(*turns), max_tokens=4)
    last = world.sent().segments[-1].token_ids
    answer = world.tokenizer.encode(str(first["text_output"]).strip())
    assert list(last) != [*last[: -len(answer)], *answer]
    encode = world.tokenizer.encode_template
    new = encode("<|im_end|>\n<|im_start|>user\n") + world.tokenizer.encode("Why?")
    new += encode("<|im_end|>\n<|im_start|>assistant\n")
    # And the answer's last token, which was drawn and never computed.
    assert (second["recomputed_tokens"], second["fresh_tokens"]) == (0, len(new) + 1)
    assert second["reused_tokens"] == (
        first["recomputed_tokens"] + first["fresh_tokens"] + first["generated_tokens"] - 1
    )
    assert second["prompt_tokens"] == (
        first["prompt_tokens"] + first["generated_tokens"] + len(new)
    )


def test_a_message_s_document_that_is_not_there_is_not_found(world: World) -> None:
    said = messages(("user", [{"type": "document", "id": "no"}]))
    with pytest.raises(NotFound):
        world.replies(text_input=None, messages=said)


def test_what_replies_may_have_is_looked_at_before_any_work(world: World) -> None:
    told = {"return_log_probs": True, "num_top_log_probs": 20, "temperature": 1.0}
    for fields, numbers in (
        ({"num_return_sequences": 100, "max_tokens": 2048, **told}, "21 log-prob.* are 4300800, "),
        ({"num_return_sequences": 128, **told}, "128 answers of 256 tokens .* are 688128, "),
        ({"num_return_sequences": 65, "max_tokens": 10**9, **told, "stream": True}, "are 133120, "),
    ):
        with pytest.raises(InvalidRequest, match=f"{numbers}at most 131072 are taken"):
            world.replies(**fields, document_ids=[b"nobody looks for it"])
    assert world.commands == []
    most = {"num_return_sequences": 2, "max_tokens": 3, **told}
    assert len(json.loads(world.result(**most)["token_log_probs"][0])) <= 3  # type: ignore[index]


def test_a_reply_has_answers_and_log_probs_up_to_its_bounds() -> None:
    def question(**fields: object) -> Question:
        return question_from_fields({"text_input": b"Who?", **fields}, Settings(engine=Path("e")))

    told = {"return_log_probs": True, "num_top_log_probs": 1}
    check_reply_size(question(**told), 2**16)
    check_reply_size(question(), 10**9)
    check_reply_size(question(num_return_sequences=128), 2**13)
    with pytest.raises(InvalidRequest, match=r"1 answers of 65537 tokens with 2 .* are 131074"):
        check_reply_size(question(**told), 2**16 + 1)
    with pytest.raises(InvalidRequest, match="128 answers of 8193 tokens are 1048704, at most"):
        check_reply_size(question(num_return_sequences=128), 2**13 + 1)


def test_a_text_may_be_as_long_as_the_context_that_scaling_extends(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound of a question is the context's, not that of the positions before scaling."""
    bounds: list[int] = []
    monkeypatch.setattr(
        "legokv.serving.generate.check_num_tokens", lambda _, __, most, ___: bounds.append(most)
    )
    monkeypatch.setattr(
        type(world.naming.facts.model), "context_len", 5 * world.naming.facts.model.max_positions
    )
    world.result(max_tokens=1)
    assert bounds == [5 * world.naming.facts.model.max_positions] * 2


def test_one_document_behind_the_server_s_head_is_answered_as_with_all_recomputed(
    world: World,
) -> None:
    document = world.register(TEXT * 3, TEXT * 2, head=world.head)
    linked = world.result(document_ids=[document], max_tokens=12, link_tokens=0)
    full = world.result(document_ids=[document], max_tokens=12, mode="full")
    assert linked["text_output"] == full["text_output"]
    assert (linked["head"], linked["recomputed_tokens"]) == ("own", 0)
    first, second = world.sent().segments[1:3]
    assert (first.behind, second.behind) == (world.sent().segments[0].key, first.key)


def test_a_second_document_behind_the_same_head_begins_a_seam(world: World) -> None:
    ids = [world.register(TEXT * 3, head=world.head), world.register(TEXT * 4, head=world.head)]
    result = world.result(document_ids=ids, max_tokens=1, link_tokens=4)
    assert (result["head"], result["recomputed_tokens"]) == ("own", 4)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_with_another_head_links_what_there_is_and_says_so(
    world: World, stream: bool
) -> None:
    document = world.register(TEXT * 3, head=world.head)
    own = world.result(document_ids=[document], max_tokens=1)
    told = {"document_ids": [document], "max_tokens": 2, "system_text": b"Sei kurz."}
    *_, reply = world.replies(**told, stream=stream)
    assert (own["head"], reply.values["head"]) == ("own", "other")
    assert reply.values["recomputed_tokens"] == 16
    # The head that it is compiled behind is named, and is no part of the prompt.
    (former,) = [piece for piece in world.sent().segments if not piece.in_prompt]
    assert world.ids(former) == world.head
    again = world.result(**told)
    assert (again["head"], again["compiled_tokens"]) == ("other", 0)
    # By default a head that comes again and again is compiled behind never.
    for _ in range(12):
        assert world.result(**told)["head"] == "other"
    assert world.warmed() == []
    counted = {s.labels: s.value for s in world.service.samples() if "by_head" in s.family.name}
    assert counted == {(("head", "own"),): 1, (("head", "other"),): 14}


def test_a_document_of_before_there_were_heads_is_linked_as_it_was_compiled(world: World) -> None:
    document = world.register(TEXT * 3)
    result = world.result(document_ids=[document], max_tokens=1)
    assert (result["head"], result["recomputed_tokens"]) == ("other", 16)
    assert world.sent().segments[1].behind is None
    assert [piece.in_prompt for piece in world.sent().segments] == [True] * 3


def test_nothing_is_linked_behind_another_head_without_documents_or_where_all_is_recomputed(
    world: World,
) -> None:
    assert world.result(max_tokens=1)["head"] == "own"
    document = world.register(TEXT * 3)
    assert world.result(document_ids=[document], max_tokens=1, mode="full")["head"] == "own"


def test_legolink_0_compiles_behind_dummies_what_stands_behind_the_server_s_head(
    world: World,
) -> None:
    told = {"max_tokens": 1, "mode": "legolink-0"}
    one = world.result(document_ids=[world.register(TEXT * 3, head=world.head)], **told)
    alone = world.result(document_ids=[world.register(TEXT * 3, "\n")], **told)
    assert one["head"] == alone["head"] == "other"
    assert world.sent().segments[1].behind is None


def test_a_head_that_comes_often_is_compiled_behind_once_and_is_exact_then(
    compiling_world: World,
) -> None:
    world = compiling_world
    document = world.register(TEXT * 3, TEXT * 2, head=world.head)
    told = {"document_ids": [document], "max_tokens": 8, "system_text": b"Sei kurz."}
    results = [world.result(**told) for _ in range(6)]
    # The third has it compiled beside its answer; the fourth finds it.
    assert [result["head"] for result in results] == ["other"] * 3 + ["own"] * 3
    assert [result["compiled_tokens"] for result in results[1:]] == [0] * 5
    assert len(world.warmed()) == 1
    full = world.result(**told, mode="full")
    assert results[-1]["text_output"] == full["text_output"]
    assert results[-1]["recomputed_tokens"] == 0
    copies = [piece for piece in world.sent().segments[1:] if piece.key is not None]
    assert not any(piece.persistent for piece in copies)


def test_heads_with_a_name_in_them_are_never_compiled_behind(compiling_world: World) -> None:
    world = compiling_world
    document = world.register(TEXT * 3, head=world.head)
    for number in range(12):
        told = {"document_ids": [document], "system_text": b"You serve guest %d." % (number // 2)}
        assert world.result(**told, max_tokens=1)["head"] == "other"
    assert world.warmed() == []


def test_what_is_compiled_behind_other_heads_keeps_to_its_budget_and_the_oldest_leaves(
    compiling_world: World,
) -> None:
    world = compiling_world
    num_bytes = world.service._other_heads._token_bytes
    document = world.register(TEXT * 10, head=world.head)
    large = world.register(TEXT * 60, head=world.head)
    texts = [b"Sei kurz.", b"Be brief.", b"Be long."]

    def heads(text: bytes, times: int, asked: bytes = document) -> list[object]:
        told = {"document_ids": [asked], "max_tokens": 1, "system_text": text}
        return [world.result(**told)["head"] for _ in range(times)]

    tokens = len(world.tokenizer.encode(TEXT * 10))
    assert 600_000 // 3 < tokens * num_bytes <= 600_000 // 2
    for text in texts[:2]:
        assert heads(text, 4)[-1] == "own"
    assert heads(texts[0], 1) == ["own"]
    assert heads(texts[2], 4)[-1] == "own"
    # The second was not used for longest: it has left, and is counted from the start.
    (drop,) = [c for c in world.commands if isinstance(c, Drop)]
    assert set(drop.keys) == {world.warmed()[1].segments[-1].key}
    assert heads(texts[0], 1) == ["own"]
    assert heads(texts[1], 2) == ["other", "other"]
    # What is larger than the budget never is compiled, and nothing leaves for it.
    assert heads(texts[0], 5, large) == ["other"] * 5
    assert heads(texts[0], 1) == ["own"]


def test_a_copy_that_was_lost_from_memory_is_compiled_by_one_request_and_counted_anew(
    compiling_world: World,
) -> None:
    world = compiling_world
    document = world.register(TEXT * 3, head=world.head)
    told = {"document_ids": [document], "max_tokens": 1, "system_text": b"Sei kurz."}
    for _ in range(4):
        world.result(**told)
    copy = world.warmed()[0].segments[-1].key
    world.service._ask_engine(Drop((str(copy),)))
    results = [world.result(**told) for _ in range(3)]
    assert [bool(result["compiled_tokens"]) for result in results] == [True, False, False]
    assert [result["head"] for result in results] == ["own", "other", "other"]


def test_the_server_s_system_text_is_in_the_head_of_requests_that_bring_none(
    tiny_engine_folder: Callable[[], Path], tmp_path: Path
) -> None:
    for world in world_over(tiny_engine_folder(), tmp_path, system_text="Sei kurz."):
        own = head_ids(world.tokenizer, PromptFormats(world.tokenizer).of({}), "Sei kurz.")
        document = world.register(TEXT * 3, head=own)
        assert world.result(document_ids=[document], max_tokens=1)["head"] == "own"
        head = world.sent().segments[0]
        assert "Sei kurz." in world.tokenizer.decode(world.ids(head))
        assert head.persistent
        told = {"document_ids": [document], "max_tokens": 1, "system_text": b"Be brief."}
        assert world.result(**told)["head"] == "other"


def test_a_server_may_have_another_mode_and_budget_for_requests_that_say_none(
    tiny_engine_folder: Callable[[], Path], tmp_path: Path
) -> None:
    changes = {"default_mode": "spread", "default_link_tokens": 7}
    for world in world_over(tiny_engine_folder(), tmp_path, **changes):
        document = world.register(TEXT * 3)
        for fields, mode, budget in (
            ({}, "spread", (7, None)),
            ({"mode": b"legolink"}, "legolink", (7, None)),
            ({"link_tokens": 3}, "spread", (3, None)),
            ({"recompute_percent": 10.0}, "spread", (None, 10.0)),
            ({"mode": b"full"}, "full", (None, None)),
        ):
            world.result(document_ids=[document], max_tokens=1, **fields)
            sent = world.sent()
            assert (sent.mode, (sent.link_tokens, sent.recompute_percent)) == (mode, budget)

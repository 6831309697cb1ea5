"""What the models refuse is told by the names that the client sent, OpenAI's and Anthropic's."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import anthropic
import openai
import pytest
from gateway_world import RunningGateway, running_gateway

from legokv.engine.request import (
    AnswerOptions,
    GenerateRequest,
    check_biased_ids,
    check_stop_token_ids,
)
from legokv.errors import ApiRefused, InvalidRequest, LegokvError, PathClosed, TimedOut
from legokv.serving.gateway import fields
from legokv.serving.gateway.refusals import renamed
from legokv.serving.gateway.tool_reading import ToolForm
from legokv.serving.question import INPUT_NAMES, check_reply_size
from legokv.serving.tensorrt_llm import TENSORRT_LLM_NAMES

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
FORM = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
BAD_FORM = {"type": "json_schema", "json_schema": {"name": "a b", "schema": SCHEMA}}
CONFIG: Any = SimpleNamespace(vocab_size=100, eos_token_ids=())
REFUSED = "the JSON schema of response_format is refused: no answer has it"
TIMED_OUT = "no token of the answer to 9 prompt tokens within timeout_seconds 5: it waited"
# What the engine or a model says in place of an answer; None: what the fake's own table of fields
# says, which is the server's.
Refusal = Callable[[], object] | None


def saying(sentence: str, kind: type[LegokvError] = InvalidRequest) -> Refusal:
    def refuse() -> None:
        raise kind(sentence)

    return refuse


def asked_of_engine(max_tokens: int = 8, **options: Any) -> Refusal:
    return lambda: GenerateRequest([[5]], max_tokens, answering=AnswerOptions(**options))


def many_log_probs() -> None:
    options = AnswerOptions(4, 128, True, 20)
    check_reply_size(SimpleNamespace(answering=options, stream=False), 2000)  # type: ignore[arg-type]


ASKED = [{"role": "user", "content": "Who?"}]
CHAT: list[tuple[dict[str, Any], Refusal, str, str | None]] = [
    ({"n": 4, "temperature": 0}, asked_of_engine(num_return_sequences=4), "^n 4 needs a temp", "n"),
    ({"max_tokens": 3}, asked_of_engine(3, min_tokens=5), "above max_tokens 3", "max_tokens"),
    ({"max_completion_tokens": 3}, asked_of_engine(3, min_tokens=5),
     "min_tokens 5 is above max_completion_tokens 3", "max_completion_tokens"),
    ({"stop": ["a" * 5000]}, None, "stop has 5000 bytes together", "stop"),
    ({"stop": ["a", ""]}, None, "stop word 2 of 2 is empty", "stop"),
    ({"extra_body": {"stop_token_ids": [100]}}, lambda: check_stop_token_ids([100], CONFIG),
     "stop_token_ids has 100", "stop_token_ids"),
    ({"logit_bias": {"200": 1}}, lambda: check_biased_ids([200], CONFIG), "logit_bias has 200",
     "logit_bias"),
    ({"logit_bias": {"x": 1}}, None, "'logit_bias' names 'x': a token's id is", "logit_bias"),
    ({"logit_bias": {"5": 101}}, None, "logit_bias of token 5 is -100 to 100", "logit_bias"),
    ({"response_format": {"type": "x"}}, None, "response_format's type is one of",
     "response_format"),
    ({"response_format": BAD_FORM}, None, "json_schema's name is 1 to 64", None),
    ({"response_format": FORM}, saying(REFUSED), "schema of response_format is",
     "response_format"),
    ({"tools": [TOOL], "tool_choice": "required"}, saying(REFUSED), "JSON schema of tools is",
     "tools"),
    ({"logprobs": True, "top_logprobs": 20}, many_log_probs, "answers, 'top_logprobs' or 'max",
     "top_logprobs"),
    ({"extra_body": {"chat_template_kwargs": {"messages": 1}}},
     saying("chat_template_kwargs: the chat template does not read 'messages'"), "does not read",
     "chat_template_kwargs"),
    ({"extra_body": {"timeout": 5}}, saying(TIMED_OUT, TimedOut), "within timeout 5: it", None),
    ({}, saying(TIMED_OUT, TimedOut), "within the server's default_timeout_seconds 5", None),
    ({"extra_body": {"link": {"mode": "full", "recompute_percent": 5}}}, None,
     "recompute_percent 5.0 belongs to modes", None),
]  # fmt: skip
COMPLETION: list[tuple[dict[str, Any], Refusal, str, str | None]] = [
    ({"prompt": "a" * 7000}, None, "'prompt' has 7000 bytes", "prompt"),
    ({"logprobs": 20}, many_log_probs, "for fewer answers, 'logprobs' or 'max_tokens'", "logprobs"),
    ({"n": 4, "temperature": 0}, asked_of_engine(num_return_sequences=4), "^n 4 needs", "n"),
    ({}, saying("this model has no chat template: ask with 'text_input'"), "with 'prompt'",
     "prompt"),
]  # fmt: skip
CHAT += [
    ({"messages": [*ASKED, {"role": "assistant", "content": ""}]}, None,
     r"^messages\[1\] is empty: nothing is asked", "messages[1]"),
    ({}, saying("message 1 of 1 has 9 tokens"), r"^messages\[0\] has 9 tokens", "messages[0]"),
    ({}, saying("the chat template does not write what message 1 (role user) says"),
     r"write what messages\[0\] \(role user\)", "messages[0]"),
]  # fmt: skip
ANTHROPIC: list[tuple[dict[str, Any], Refusal, str]] = [
    ({"stop_sequences": ["a" * 5000]}, None, "stop_sequences has 5000 bytes together"),
    ({"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}, saying(REFUSED),
     "the JSON schema of output_config.format is refused"),
    ({"output_config": {"format": {"type": "json_schema"}}}, None,
     "output_config.format.schema is a JSON object, not null"),
    ({"tools": [{"name": "weather", "input_schema": SCHEMA}], "tool_choice": {"type": "any"}},
     saying(REFUSED), "the JSON schema of tools is refused"),
    ({}, saying(TIMED_OUT, TimedOut), "within the server's default_timeout_seconds 5"),
    ({"system": "Be kind.", "messages": [*ASKED, {"role": "user", "content": " "}]}, None,
     r"^messages\[1\] is empty: nothing is asked"),
]  # fmt: skip


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("names")
    with running_gateway(folder, ToolForm.HERMES, max_question_bytes=6000) as one:
        yield one


def refuse(gateway: RunningGateway, refusal: Refusal) -> None:
    """Have `generate` end with what the refusal raises."""
    gateway.models.failure = None
    if refusal is not None:
        with pytest.raises(LegokvError) as said:
            refusal()
        gateway.models.failure = said.value


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "sent", "refusal", "sentence", "param"),
    [*(("chat", *row) for row in CHAT), *(("completion", *row) for row in COMPLETION)],
)
def test_an_openai_client_reads_its_own_names(  # noqa: PLR0913 - a row of the table
    gateway: RunningGateway,
    path: str,
    sent: dict[str, Any],
    refusal: Refusal,
    sentence: str,
    param: str | None,
    stream: bool,
) -> None:
    refuse(gateway, refusal)
    client = gateway.openai()
    asked: dict[str, Any] = {"model": "tiny", "stream": stream, "timeout": 60, **sent}
    ask: Any = client.chat.completions.create if path == "chat" else client.completions.create
    said = {"messages": ASKED}
    with pytest.raises(openai.APIStatusError) as refused:
        ask(**{**(said if path == "chat" else {"prompt": "Who?"}), **asked})
    message = str(refused.value.body["message"])  # type: ignore[index]
    assert refused.value.param == param
    assert_named(message, sentence)


@pytest.mark.parametrize(("sent", "refusal", "sentence"), ANTHROPIC)
def test_an_anthropic_client_reads_its_own_names(
    gateway: RunningGateway, sent: dict[str, Any], refusal: Refusal, sentence: str
) -> None:
    refuse(gateway, refusal)
    client = anthropic.Anthropic(base_url=gateway.url, api_key="none", max_retries=0)
    asked: Any = {"model": "tiny", "max_tokens": 9, "messages": ASKED, **sent}
    with pytest.raises(anthropic.APIStatusError) as refused:
        client.messages.create(**asked)
    assert_named(refused.value.body["error"]["message"], sentence)  # type: ignore[index]


def assert_named(message: str, sentence: str) -> None:
    assert re.search(sentence, message), message
    assert not [name for name in fields.CHAT_NAMES if re.search(rf"\b{name}\b", message)]


def test_words_that_are_the_client_s_own_stay_as_they_are() -> None:
    names = {"messages": "prompt", "mode": "link.mode", "text_input": "prompt", "n": "best"}
    said = "'mode' is one of two, not 'the mode of n messages': text_input, mode n"
    error = InvalidRequest(said)
    given = renamed(error, names)
    assert str(given) == "'link.mode' is one of two, not 'the mode of n messages': prompt, mode n"
    assert isinstance(given, ApiRefused)
    assert given.param == "link.mode"
    assert str(renamed(InvalidRequest("messages hold n"), names)) == "prompt hold n"
    assert str(error) == said


def test_an_error_that_is_renamed_stays_as_it_was() -> None:
    error = PathClosed("no text_input here, text", 405)
    given = renamed(error, {"text_input": "prompt"})
    assert (type(given), str(given)) == (PathClosed, "no prompt here, text")
    assert getattr(given, "status", None) == 405
    assert str(error) == "no text_input here, text"


def test_every_field_of_generate_is_the_client_s_own_or_has_a_name_there() -> None:
    # What the gateway makes of messages, `link` and who asks, and TensorRT-LLM's names.
    inner = {"document_ids", "namespace", "system_text", "apply_chat_template", "count_only"}
    inner |= {*fields.LINK, *TENSORRT_LLM_NAMES}
    for own, names, absent in (
        (fields.CHAT, fields.CHAT_NAMES, {"text_input"}),
        (fields.COMPLETION, fields.COMPLETION_NAMES, {"messages", "tools", "chat_template_kwargs"}),
    ):
        nameless = {n for n in INPUT_NAMES if n not in own and names.get(n) not in own}
        assert nameless - inner == absent


DOCUMENT = {"type": "text", "data": "The mill."}


def said_of(gateway: RunningGateway, path: str, body: object) -> str:
    """The sentence with which a body is refused."""
    request = urllib.request.Request(f"{gateway.url}{path}", json.dumps(body).encode())
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 400
    return str(json.load(refused.value)["error"]["message"])


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/messages/count_tokens"),
        *("/tokenize", "/detokenize"),
    ],
)
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (None, "null"),
        ([], "a list"),
        (3, "a whole number"),
        (1.5, "a fraction"),
        ("x", "a text"),
        (True, "true or false"),
    ],
)
def test_a_body_that_is_no_object_is_told_in_json_s_words(
    gateway: RunningGateway, path: str, body: object, kind: str
) -> None:
    assert said_of(gateway, path, body) == f"the body is a JSON object, not {kind}"


def of_user(content: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


def of_block(**changes: object) -> dict[str, Any]:
    return of_user([{"type": "document", "source": DOCUMENT, **changes}])


WRONG = {
    "/v1/chat/completions": [
        ({"messages": [None]}, "messages[0] is an object with a role and a content, not null"),
        ({"messages": [{"role": []}]}, "messages[0].role is one of system, developer, user, "
         "assistant, tool, not a list"),
        (of_user(None), "messages[0].content is a text or a list of parts, not null"),
        (of_user([]), "messages[0].content is a text or a list of parts, not an empty one"),
        (of_user([[]]), "messages[0].content[0] is an object with a type, not a list"),
        (of_user([{"type": "text"}]), "messages[0].content[0].text is a text, not null"),
        (of_user([{"type": []}]), "messages[0].content[0] is of type a list: parts are 'text' "
         "and 'file' here"),
        ({"logit_bias": {"5": None}}, "'logit_bias' of token '5' is a number, not null"),
        ({"logit_bias": []}, "'logit_bias' is an object, not a list"),
        ({"link": []}, "'link' is an object, not a list"),
        ({"link": {"recompute_percent": 100.0001}},
         "'recompute_percent' is 100.0001, outside 0 to 100"),
        ({"link": {"recompute_percent": -1e-9}}, "'recompute_percent' is -1e-09, outside 0 to 100"),
        ({"min_p": 1.0000001}, "'min_p' is 1.0000001, outside 0 to 1"),
        ({"timeout": 604800.001}, "'timeout' is 604800.001, outside 0 to 604800"),
        ({"stop_token_ids": [None]},
         "'stop_token_ids' is a list of whole numbers, one of them is null"),
        ({"stop": [[]]}, "'stop' is a list of texts, one of them is a list"),
        ({"seed": []}, "'seed' is a whole number, not a list"),
        ({"documents": [{"text": " "}]},
         "documents[0].text is empty: there is nothing but blanks in it"),
    ],
    "/v1/completions": [
        ({"messages": None}, "'prompt' is missing: one text"),
        ({"messages": None, "prompt": {}},
         "'prompt' is one text: others go into requests of their own"),
    ],
    "/v1/messages": [
        ({"messages": [[]]}, "messages[0] is an object with a role and a content, not a list"),
        ({"messages": [{"role": None}]}, "messages[0].role is one of user, assistant, system, not "
         "null"),
        (of_user(None), "messages[0].content is a text or a list of blocks, not null"),
        (of_user([None]), "messages[0].content[0] is an object with a type, not null"),
        (of_block(title=3), "messages[0].content[0].title is a text, not a whole number"),
        (of_block(source={"type": "file", "file_id": []}),
         "messages[0].content[0].source.file_id is a text, not a list"),
        (of_block(source={"type": "text", "data": " "}),
         "messages[0].content[0].source is empty: there is nothing but blanks in it"),
        ({"system": 3}, "system is a text or a list of blocks, not a whole number"),
        ({"tools": [{"name": "w"}], "tool_choice": {"type": "tool", "name": "v"}},
         "'tool_choice' of type tool names one of the tools, w, not 'v'"),
        ({"tools": [{"name": None}]}, "tools[0] has a name and an input_schema, an object"),
    ],
    "/detokenize": [
        ({}, "'tokens' is missing: a list of token ids"),
        ({"tokens": [None]}, "'tokens' is a list of whole numbers, one of them is null"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "sent", "sentence"),
    [(path, sent, sentence) for path, rows in WRONG.items() for sent, sentence in rows],
)
def test_a_field_that_is_something_else_is_told_in_json_s_words(
    gateway: RunningGateway, path: str, sent: dict[str, Any], sentence: str
) -> None:
    refuse(gateway, None)
    usual = {"model": "tiny", **of_user("Who?"), "max_tokens": 9}
    body = sent if path == "/detokenize" else {**usual, **sent}
    assert said_of(gateway, path, body) == sentence

"""The objects that the gateway answers with, as types: what makes one is typed with it, and
`/openapi.json` is made of them.
"""

from typing import Any, Literal, NotRequired, TypedDict

FinishReason = Literal["stop", "length", "tool_calls"]
StopReason = Literal["end_turn", "max_tokens", "tool_use"]
FileStatus = Literal["uploaded", "processed", "error"]


class PromptDetails(TypedDict):
    cached_tokens: int
    cache_write_tokens: int


class AnswerDetails(TypedDict):
    reasoning_tokens: int


class Usage(TypedDict):
    """OpenAI's counts; `legokv` has our own, and times in seconds."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: AnswerDetails
    legokv: dict[str, Any]


class Function(TypedDict):
    name: str
    arguments: str


class Call(TypedDict):
    """`index` in streams alone."""

    id: str
    type: Literal["function"]
    function: Function
    index: NotRequired[int]


class AssistantMessage(TypedDict):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: NotRequired[list[Call]]


class TokenChance(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class DrawnToken(TokenChance):
    top_logprobs: list[TokenChance]


class ChatLogProbs(TypedDict):
    content: list[DrawnToken]
    refusal: None


class CompletionLogProbs(TypedDict):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class ChatChoice(TypedDict):
    index: int
    message: AssistantMessage
    logprobs: ChatLogProbs | None
    finish_reason: FinishReason


class TextChoice(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogProbs | None
    finish_reason: FinishReason


class ChatCompletion(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: None
    choices: list[ChatChoice]
    usage: Usage


class TextCompletion(TypedDict):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: None
    choices: list[TextChoice]
    usage: Usage


class TextBlock(TypedDict):
    type: Literal["text"]
    text: str


class ToolUseBlock(TypedDict):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class MessageUsage(TypedDict):
    input_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int
    output_tokens: int


class AnthropicMessage(TypedDict):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextBlock | ToolUseBlock]
    stop_reason: StopReason | None
    stop_sequence: None
    usage: MessageUsage


class TokensCounted(TypedDict):
    input_tokens: int


class FileFacts(TypedDict):
    num_tokens: int
    num_chunks: int
    compiled_chunks: int
    last_used_at: float | None
    tiers: NotRequired[Any]


class File(TypedDict):
    """Times are Unix seconds."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: Literal["user_data"]
    status: FileStatus
    status_details: str | None
    legokv: FileFacts


class Files(TypedDict):
    object: Literal["list"]
    data: list[File]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileGone(TypedDict):
    id: str
    object: Literal["file"]
    deleted: Literal[True]


class Model(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class Models(TypedDict):
    object: Literal["list"]
    data: list[Model]


class Tokenized(TypedDict):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(TypedDict):
    prompt: str


class Status(TypedDict):
    status: Literal["ok", "ready"]


class Version(TypedDict):
    version: str


class Trouble(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class Refused(TypedDict):
    """OpenAI's object of an error."""

    error: Trouble


class AnthropicTrouble(TypedDict):
    type: str
    message: str


class AnthropicRefused(TypedDict):
    """Anthropic's."""

    type: Literal["error"]
    error: AnthropicTrouble
    request_id: str


class AnthropicFile(TypedDict):
    """Times are ISO 8601."""

    id: str
    type: Literal["file"]
    filename: str
    mime_type: str
    size_bytes: int
    created_at: str
    expires_at: str | None
    downloadable: Literal[True]


class AnthropicFiles(TypedDict):
    data: list[AnthropicFile]
    next_page: str | None


class AnthropicFileGone(TypedDict):
    id: str
    type: Literal["file_deleted"]


class AnthropicModel(TypedDict):
    id: str
    type: Literal["model"]
    display_name: str
    created_at: str


class AnthropicModels(TypedDict):
    data: list[AnthropicModel]
    has_more: bool
    first_id: str
    last_id: str

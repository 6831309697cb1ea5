"""Text to token ids and back, from a checkpoint's tokenizer.json. Does not import torch."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from legokv.errors import InvalidRequest, UnsupportedModel
from legokv.text.chat_template import Chat, ChatTemplate, Message
from legokv.text.json_file import json_object, parsed_object, utf8_text

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


class Tokenizer:
    """Encodes users' text and our own template text by different rules; see `encode`."""

    def __init__(self, definition: str, settings: dict[str, Any], template: str | None) -> None:
        """`definition` is tokenizer.json's text, `settings` tokenizer_config.json's object."""
        self._text = _backend(definition)
        self._text.encode_special_tokens = True
        self._template = _backend(definition)
        self._chat_template = None if template is None else ChatTemplate(template)
        self._special = {
            key: _token_text(settings.get(key)) for key in ("bos_token", "eos_token", "unk_token")
        }
        self.fingerprint = _fingerprint(definition)

    @classmethod
    def open(cls, folder: Path) -> "Tokenizer":
        """A checkpoint's or engine folder's tokenizer; UnsupportedModel without tokenizer.json."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UnsupportedModel(
                f"{path} is missing: save the tokenizer in its fast form, with "
                "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            )
        settings = _settings(folder)
        definition = utf8_text(path.read_bytes(), str(path))
        return cls(definition, settings, _template_text(folder, settings))

    @property
    def vocab_size(self) -> int:
        """One more than the highest token id, added tokens included."""
        return max(self._text.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def bos_token_id(self) -> int | None:
        return self._token_id("bos_token")

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokenizer's own end token; a model may have more (ModelConfig.eos_token_ids)."""
        token_id = self._token_id("eos_token")
        return () if token_id is None else (token_id,)

    @property
    def has_chat_template(self) -> bool:
        return self._chat_template is not None

    @property
    def chat_template(self) -> ChatTemplate | None:
        """The model's own, to be rendered by whoever bounds it."""
        return self._chat_template

    @property
    def special_texts(self) -> dict[str, str]:
        """The special tokens that a template may name, as text."""
        return {key: text for key, text in self._special.items() if text is not None}

    def added_token_in(self, text: str) -> str | None:
        """The first control token, of any kind, that is spelled in `text`; blanks are none."""
        added = (token.content for token in self._text.get_added_tokens_decoder().values())
        return next((token for token in added if token.strip() and token in text), None)

    def encode(self, text: str) -> list[int]:
        """Ids of a user's text: nothing added, and what looks like a special token stays text."""
        return list(self._text.encode(text, add_special_tokens=False).ids)

    def encode_template(self, text: str) -> list[int]:
        """Ids of text we wrote ourselves: special tokens in it are read as such, none are added."""
        return list(self._template.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `token_ids`; incomplete UTF-8 shows as U+FFFD."""
        return self._text.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def render_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The model's own chat template filled in; InvalidRequest where the model has none."""
        if self._chat_template is None:
            raise InvalidRequest("this model's tokenizer has no chat template")
        chat = Chat(tuple(messages), add_generation_prompt)
        return self._chat_template.render(chat, self.special_texts)

    def _token_id(self, key: str) -> int | None:
        text = self._special[key]
        return None if text is None else self._text.token_to_id(text)


def _backend(definition: str) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_str(definition)
    except Exception as error:  # noqa: BLE001 - tokenizers raises the bare class
        raise UnsupportedModel(
            f"tokenizer.json is no tokenizer that can be read: {str(error)[:200]}"
        ) from None
    # A saved tokenizer may carry its trainer's length limit, which would drop text in silence.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _settings(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            settings.update(json_object(folder / name))
    return settings


def _template_text(folder: Path, settings: dict[str, Any]) -> str | None:
    """The chat template: its own file, or tokenizer_config.json's, the one named default."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return utf8_text(path.read_bytes(), str(path))
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict)]
        template = next((e.get("template") for e in named if e.get("name") == "default"), None)
    if not isinstance(template, str | None):
        raise UnsupportedModel(
            f"chat_template in {folder / 'tokenizer_config.json'} is a {type(template).__name__}, "
            "not a text, nor a list of named ones"
        )
    return template


def _token_text(token: Any) -> str | None:
    """A special token's text; configs hold it bare or inside an object."""
    content = token.get("content") if isinstance(token, dict) else token
    return None if content is None else str(content)


def _fingerprint(definition: str) -> str:
    """Hex SHA-256 over what decides ids: tokenizer.json without its length limits."""
    content = dict(parsed_object(definition.encode(), "tokenizer.json"))
    content.pop("truncation", None)
    content.pop("padding", None)
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()

"""Text to token ids and back, from a checkpoint's tokenizer.json. Does not import torch."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from legokv.errors import InvalidRequest, UnsupportedModel, kind_of
from legokv.text.backends import check_is_tokenizers, open_backends
from legokv.text.chat_template import Chat, ChatTemplate, Message
from legokv.text.definition import read_definition, token_text
from legokv.text.json_file import json_object, utf8_text
from legokv.text.pieces import BytePieces, DecodedPieces, Pieces
from legokv.text.token_bytes import byte_fallback_values, byte_level_bytes, is_byte_level

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


class Tokenizer:
    """Encodes users' text and our own template text by different rules; see `encode`."""

    def __init__(self, definition: str, settings: dict[str, Any], template: str | None) -> None:
        """`definition` is tokenizer.json's text, `settings` tokenizer_config.json's object.

        UnsupportedModel for what is no tokenizer, or declares one token twice.
        """
        whole = read_definition(definition, settings)
        self._backends = open_backends(whole)
        decoder = whole.content.get("decoder")
        self._is_byte_level = is_byte_level(decoder)
        self._byte_values = byte_fallback_values(decoder, self._backends.whole)
        self._hidden = _hidden(self._backends.whole)
        self._chat_template = None if template is None else ChatTemplate(template)
        self._special = {
            key: token_text(settings.get(key)) for key in ("bos_token", "eos_token", "unk_token")
        }
        self._needs_bos = bool(settings.get("add_bos_token")) or "bos_token" in (template or "")
        self.first_ids = self._first_ids(settings)
        """What comes before a plain text: most often the first token, or nothing."""
        self.fingerprint = whole.fingerprint

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
        return max(self._backends.whole.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def bos_token_id(self) -> int | None:
        return self._token_id("bos_token")

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokenizer's own end token; a model may have more (ModelConfig.eos_token_ids)."""
        token_id = self._token_id("eos_token")
        return () if token_id is None else (token_id,)

    def check_named_tokens(self) -> None:
        """UnsupportedModel for an end or first token that is needed and has no id."""
        for key in ("eos_token", *(("bos_token",) if self._needs_bos else ())):
            text = self._special[key]
            if text is not None and self._token_id(key) is None:
                raise UnsupportedModel(
                    f"{key} is {text[:80]!r}, which has no id in tokenizer.json, "
                    "tokenizer_config.json or added_tokens.json: name one that has, or save the "
                    "tokenizer anew, with AutoTokenizer.from_pretrained(...).save_pretrained(...)"
                )

    def check_tokens_texts(self) -> None:
        """UnsupportedModel if the decoder has no text for one of the tokens by itself."""
        for token_id in range(self.vocab_size):
            self.decode([token_id])

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
        """The first control token, of any kind, that is spelled in `text`; letters are none."""
        return next((name for name in self._backends.control_names if name in text), None)

    def encode(self, text: str, *, first: bool = False) -> list[int]:
        """Ids of a user's text: nothing added, and no control token whatever the text looks like.

        No blank is put before it, unless it is a prompt's `first` and the tokenizer does so.
        """
        backends = self._backends
        backend = backends.first_speech if first else backends.speech
        return list(_encoding(backend, text).ids)

    def encode_template(self, text: str, *, first: bool = False) -> list[int]:
        """Ids of text we wrote ourselves: control tokens in it are read as such, none are added.

        `first` as in `encode`.
        """
        encoding = _encoding(self._backends.template, text)
        if not first:
            return list(encoding.ids)
        control = self._backends.control_ids
        places = zip(encoding.ids, encoding.offsets, strict=True)
        start = next((at for i, (at, _) in places if i in control), len(text))
        lead = _encoding(self._backends.whole, text[:start]).ids
        return [*lead, *self.encode_template(text[start:])]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `token_ids`; incomplete UTF-8 shows as U+FFFD."""
        ids = list(token_ids)
        try:
            return self._backends.whole.decode(ids, skip_special_tokens=skip_special_tokens)
        except BaseException as error:  # noqa: BLE001 - the next line
            check_is_tokenizers(error)
            raise UnsupportedModel(
                f"tokenizer.json's decoder has no text for the tokens {ids[:4]} ({len(ids)} in "
                f"all): {str(error)[:200]}; build the engine with another decoder"
            ) from None

    def pieces(self) -> Pieces:
        """Text by single tokens, those without text in a decode left out."""
        if self._is_byte_level:
            return BytePieces(self.token_bytes)
        return DecodedPieces(self.decode, self._byte_values.keys())

    def control_text(self, token_id: int) -> str | None:
        """The name of a token that a decode leaves out, "" for an id without a token; else None."""
        if token_id in self._hidden:
            return self._hidden[token_id]
        return "" if self._backends.whole.id_to_token(token_id) is None else None

    def token_name(self, token_id: int) -> str:
        """A token as the vocabulary has it, "" for an id without one."""
        return self._backends.whole.id_to_token(token_id) or ""

    def token_bytes(self, token_id: int, *, first: bool = False) -> bytes:
        """What a token writes in a text, or as the `first` of one, in UTF-8 or a part of it."""
        if self._is_byte_level:
            return byte_level_bytes(self.token_name(token_id))
        if token_id in self._byte_values:
            return bytes([self._byte_values[token_id]])
        alone = self.decode([token_id])
        return (alone if first else self.decode([token_id] * 2)[len(alone) :]).encode()

    def render_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The model's own chat template filled in; InvalidRequest where the model has none."""
        if self._chat_template is None:
            raise InvalidRequest("this model's tokenizer has no chat template")
        chat = Chat(tuple(messages), add_generation_prompt)
        return self._chat_template.render(chat, self.special_texts)

    def _first_ids(self, settings: dict[str, Any]) -> tuple[int, ...]:
        """As transformers does: the settings say it, else tokenizer.json's post-processor."""
        if settings.keys() & {"add_bos_token", "add_eos_token"}:
            bos = self.bos_token_id if settings.get("add_bos_token") else None
            return () if bos is None else (bos,)
        encoding = _encoding(self._backends.whole, "a", as_prompt=True)
        marks = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
        return tuple(i for i, mark in itertools.takewhile(lambda pair: pair[1], marks))

    def _token_id(self, key: str) -> int | None:
        text = self._special[key]
        return None if text is None else self._backends.whole.token_to_id(text)


def _hidden(backend: tokenizers.Tokenizer) -> dict[int, str]:
    tokens = backend.get_added_tokens_decoder()
    return {token_id: token.content for token_id, token in tokens.items() if token.special}


def _settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json's object, with what older files beside it say where it says nothing."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            settings |= json_object(folder / name)
    if "added_tokens_decoder" not in settings and (folder / "added_tokens.json").is_file():
        ids = json_object(folder / "added_tokens.json")
        settings["added_tokens_decoder"] = {str(i): {"content": name} for name, i in ids.items()}
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
            f"chat_template in {folder / 'tokenizer_config.json'} is {kind_of(template)}, "
            "not a text, nor a list of named ones"
        )
    return template


def _encoding(
    backend: tokenizers.Tokenizer, text: str, *, as_prompt: bool = False
) -> tokenizers.Encoding:
    """`as_prompt`: with the tokens that its post-processor adds.

    InvalidRequest where the model has no token for a part of the text, and none for the unknown.
    """
    try:
        return backend.encode(text, add_special_tokens=as_prompt)
    except BaseException as error:  # noqa: BLE001 - the next line
        check_is_tokenizers(error)
        raise InvalidRequest(
            f"the tokenizer has no tokens for a text of length {len(text)}: {error}"
        ) from None

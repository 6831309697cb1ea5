"""A tokenizer as all its files declare it: tokenizer.json, and the tokens that only others name."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from legokv.errors import UnsupportedModel, kind_of
from legokv.text.json_file import parsed_object

Token = dict[str, Any]
"""An added token as tokenizer.json has them: its text is `content`, and how it is matched."""

# The settings that name one token each, which transformers makes special ones.
_NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
# And those that have several, in a list or by names of their own.
_LISTED = ("additional_special_tokens", "extra_special_tokens")
_PREFIX = "\u2581"
_COMPONENTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_PARTS = ("normalizers", "pretokenizers", "processors", "decoders")
MATCHING = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class Definition:
    """`content` is tokenizer.json's object, with every token declared by id in its vocabulary.

    `added` are the tokens that it does not declare, or not as special, though other files do.
    `fingerprint` is a hex SHA-256 over what decides ids: all but length limits, and `added`.
    """

    content: dict[str, Any]
    added: tuple[Token, ...]
    fingerprint: str


def read_definition(text: str, settings: Mapping[str, Any]) -> Definition:
    """What tokenizer.json's `text` and tokenizer_config.json's object declare together.

    UnsupportedModel for what is no tokenizer, and for a token whose id is another's.
    """
    content = _content(text)
    digest = _digest({key: content[key] for key in content.keys() - {"truncation", "padding"}})
    own = {token["content"]: token for token in content["added_tokens"]}
    declared = dict(_declared(settings))
    _place_all(content["model"], own, declared)
    special = {name for name in _named(settings) if name in own or _has(content["model"], name)}
    tokens: dict[str, Token] = {
        name: {"content": name, "normalized": False} for name in sorted(special)
    }
    tokens |= declared | own
    special |= {name for name, token in tokens.items() if token.get("special")}
    added = [
        {**token, "special": name in special}
        for name, token in tokens.items()
        if name not in own or (name in special and not own[name].get("special"))
    ]
    added.sort(key=lambda token: token.get("id", -1))
    return Definition(content, tuple(added), _digest([digest, *added]) if added else digest)


def token_text(token: Any) -> str | None:
    """A special token's text; configs hold it bare or inside an object.

    UnsupportedModel for what is neither.
    """
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str | None):
        raise UnsupportedModel(
            f"a special token is {str(content)[:80]!r}: it is a text, or an object with its "
            "'content' as text"
        )
    return content


def is_letter(name: str, special: bool) -> bool:
    """Whether an added token is but a piece of text: blanks, or one letter that was missing."""
    text = name.replace(_PREFIX, " ")
    return not special and (text.isspace() or (len(text) == 1 and text.isalnum()))


def _content(text: str) -> dict[str, Any]:
    content = dict(parsed_object(text.encode(), "tokenizer.json"))
    if not isinstance(content.get("model"), dict):
        raise UnsupportedModel("tokenizer.json has no 'model': it is not a tokenizer's definition")
    content["added_tokens"] = content.get("added_tokens") or []
    _check_tokens(content["added_tokens"])
    _check_vocabulary(content["model"].get("vocab"))
    for name in _COMPONENTS:
        _check_component(name, content.get(name))
    return content


def _check_component(name: str, component: Any) -> None:
    """One is an object with its type, or several behind one another, or is not there.

    The library reads a list in an object's place, too, which says no more which value is which.
    """
    if component is None:
        return
    if not (isinstance(component, dict) and isinstance(component.get("type"), str)):
        raise UnsupportedModel(
            f"the {name} of tokenizer.json is {str(component)[:80]!r}: it is an object with its "
            "'type' as text"
        )
    parts = [component[key] for key in _PARTS if key in component]
    if component["type"] == "Sequence" and not (len(parts) == 1 and isinstance(parts[0], list)):
        raise UnsupportedModel(
            f"the {name} of tokenizer.json is a Sequence of {str(parts)[:80]}: it has one list"
        )
    for part in parts[0] if component["type"] == "Sequence" else ():
        _check_component(name, part)


def _check_tokens(tokens: Any) -> None:
    if not isinstance(tokens, list):
        raise UnsupportedModel(
            f"tokenizer.json's added_tokens is {kind_of(tokens)}, not a list of tokens"
        )
    for place, token in enumerate(tokens):
        if not (isinstance(token, dict) and isinstance(token.get("content"), str)):
            raise UnsupportedModel(
                f"added token {place} of {len(tokens)} in tokenizer.json is {str(token)[:80]!r}: "
                "a token is an object with its 'content' as text"
            )
        if not _is_id(token.get("id")):
            raise UnsupportedModel(
                f"the token {token['content'][:80]!r} in tokenizer.json has the id "
                f"{str(token.get('id'))[:80]!r}, not a number of 0 or more"
            )
        odd = [key for key in MATCHING if not isinstance(token.get(key, False), bool)]
        if odd:
            raise UnsupportedModel(
                f"{odd[0]} of the token {token['content'][:80]!r} in tokenizer.json is "
                f"{str(token[odd[0]])[:80]!r}: it is true or false"
            )


def _check_vocabulary(vocabulary: Any) -> None:
    """It has ids by name, or is a list of pieces that begin with their name, or is not there."""
    if isinstance(vocabulary, dict):
        wrong: list[Any] = [item for item in vocabulary.items() if not _is_id(item[1])]
    elif isinstance(vocabulary, list):
        wrong = [piece for piece in vocabulary if not _is_piece(piece)]
    else:
        wrong = [] if vocabulary is None else [vocabulary]
    if wrong:
        raise UnsupportedModel(
            f"the vocabulary of tokenizer.json has {str(wrong[0])[:80]!r}: it is an object of "
            "ids by their texts, or a list of texts with their scores"
        )


def _is_id(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_piece(piece: Any) -> bool:
    return isinstance(piece, list) and len(piece) == 2 and isinstance(piece[0], str)


def _digest(value: object) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _declared(settings: Mapping[str, Any]) -> Iterator[tuple[str, Token]]:
    """Tokens that tokenizer_config.json declares with their ids."""
    declared = settings.get("added_tokens_decoder") or {}
    if not isinstance(declared, dict):
        raise UnsupportedModel(
            f"added_tokens_decoder is {kind_of(declared)}, not an object of tokens by id"
        )
    for token_id, token in declared.items():
        name = token_text(token) if isinstance(token, dict) else None
        if not (name and str(token_id).isdecimal()):
            raise UnsupportedModel(
                f"added_tokens_decoder declares {str(token)[:80]!r} as {str(token_id)[:80]!r}: "
                "it has a token with its 'content' for each id"
            )
        flags = {key: bool(token[key]) for key in MATCHING if key in token}
        yield name, {"content": name, "id": int(token_id), **flags}


def _named(settings: Mapping[str, Any]) -> Iterator[str]:
    """Names of tokens that tokenizer_config.json says are special, without their ids."""
    values = [settings.get(key) for key in _NAMED]
    for key in _LISTED:
        listed = settings.get(key) or []
        if isinstance(listed, list | dict):
            values += listed.values() if isinstance(listed, dict) else listed
    yield from (text for text in map(token_text, values) if text)


def _has(model: Mapping[str, Any], name: str) -> bool:
    vocabulary = model.get("vocab") or {}
    return name in vocabulary or any(piece[0] == name for piece in vocabulary)


def _place_all(
    model: Mapping[str, Any], own: Mapping[str, Token], declared: Mapping[str, Token]
) -> None:
    """Put declared tokens that no vocabulary has into it, each under its own id.

    With them those of tokenizer.json: the library would number these behind the vocabulary's end.
    So it would letters, which users' texts may have, where control tokens are left out. A
    vocabulary without ids, which is a list, is left as it is.
    """
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict):
        return
    missing = {
        name: token["id"]
        for name, token in declared.items()
        if name not in own and name not in vocabulary
    }
    letters = [
        name
        for name, token in own.items()
        if name not in vocabulary and is_letter(name, bool(token.get("special")))
    ]
    if not (missing or letters):
        return
    holders = {token_id: name for name, token_id in vocabulary.items()}
    for name, token_id in ({n: token["id"] for n, token in own.items()} | missing).items():
        if holders.setdefault(token_id, name) != name:
            raise UnsupportedModel(
                f"the token {name[:80]!r} is declared with the id {token_id}, which is "
                f"{holders[token_id][:80]!r} in tokenizer.json: they are not of one checkpoint"
            )
        vocabulary.setdefault(name, token_id)

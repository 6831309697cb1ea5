"""The library's tokenizers behind one definition: what is read as control tokens, and where.

A prompt is encoded in segments. A tokenizer that puts a blank before a text (SentencePiece's dummy
prefix, in any of its forms) would put one at every seam, so only a prompt's first text has it.
"""

import json
import secrets
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import AddedToken

from legokv.errors import UnsupportedModel
from legokv.text.definition import MATCHING, Definition, Token, is_letter

Json = dict[str, Any]

_EMPTY_MODEL = {"type": "BPE", "vocab": {}, "merges": []}


@dataclass(frozen=True)
class Backends:
    """`whole` is the tokenizer as it is declared; `template` reads control tokens, `speech` none.

    These two put no blank before a text; `first_speech`, for a prompt's first, does as `whole`.
    """

    whole: tokenizers.Tokenizer
    template: tokenizers.Tokenizer
    speech: tokenizers.Tokenizer
    first_speech: tokenizers.Tokenizer
    control_ids: frozenset[int]
    control_names: tuple[str, ...]


def open_backends(definition: Definition) -> Backends:
    """UnsupportedModel, in the library's words, for a definition that it cannot read."""
    content = definition.content
    whole = _opened(content)
    whole.add_tokens([_added(token) for token in definition.added])
    _check_ids(whole, definition.added)
    tokens = whole.get_added_tokens_decoder()
    letters = {i for i, token in tokens.items() if is_letter(token.content, token.special)}
    control = {token.content for token_id, token in tokens.items() if token_id not in letters}
    speech_model = _without(content["model"], control)

    def variant(settings: Json, ids: Iterable[int], model: Json | None = None) -> Any:
        """One that shares the vocabulary, unless it has a `model` of its own."""
        made = _opened(settings | {"model": model or _EMPTY_MODEL, "added_tokens": []})
        if model is None:
            made.model = whole.model
        made.add_tokens([tokens[token_id] for token_id in sorted(ids)])
        return made

    seamless = content | {
        key: _seamless(content.get(key)) for key in ("normalizer", "pre_tokenizer")
    }
    return Backends(
        whole=whole,
        template=variant(seamless, tokens),
        speech=variant(seamless, letters, speech_model),
        first_speech=variant(content, letters, speech_model),
        control_ids=frozenset(tokens.keys() - letters),
        control_names=tuple(sorted(control)),
    )


def _opened(content: Json) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    except BaseException as error:  # noqa: BLE001 - the next line
        check_is_tokenizers(error)
        raise UnsupportedModel(
            f"tokenizer.json is no tokenizer that can be read: {str(error)[:200]}"
        ) from None
    # A saved tokenizer may carry its trainer's length limit, which would drop text in silence.
    backend.no_truncation()
    backend.no_padding()
    return backend


def check_is_tokenizers(error: BaseException) -> None:
    """Raise what tokenizers does not: it has the bare class, and panics, which are no Exception."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


def _added(token: Token) -> AddedToken:
    return AddedToken(token["content"], **{key: token[key] for key in MATCHING if key in token})


def _check_ids(whole: tokenizers.Tokenizer, added: Iterable[Token]) -> None:
    for token in added:
        place = whole.token_to_id(token["content"])
        if "id" in token and place != token["id"]:
            raise UnsupportedModel(
                f"the token {token['content'][:80]!r} is declared with the id {token['id']}; in "
                f"tokenizer.json's vocabulary it comes out as {place}: save both anew, with "
                "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            )


def _seamless(component: Json | None) -> Json | None:
    """A normalizer or pre-tokenizer that does nothing to a text's two ends."""
    if component is None or component["type"] in ("Prepend", "Strip"):
        return None
    if component["type"] == "Metaspace":
        kept = {key: component[key] for key in ("type", "replacement", "split") if key in component}
        return kept | {"prepend_scheme": "never"}
    if component["type"] == "ByteLevel":
        return component | {"add_prefix_space": False}
    if component["type"] == "Sequence":
        (key,) = component.keys() & {"normalizers", "pretokenizers"}
        return component | {key: [item for item in map(_seamless, component[key]) if item]}
    return component


def _without(model: Json, names: Collection[str]) -> Json | None:
    """The model with these names where no text reaches them; None if none does as it is.

    The ids of all others stay. A name that nobody can guess takes each one's place.
    """
    if not any(_reached(model, names)):
        return None
    places = {name: f"{secrets.token_hex(16)}{name}" for name in names}

    def renamed(name: Any) -> Any:
        return places.get(name, name)

    vocabulary = model["vocab"]
    changed = dict(model)
    if isinstance(vocabulary, dict):
        changed["vocab"] = {renamed(name): token_id for name, token_id in vocabulary.items()}
    else:
        changed["vocab"] = [[renamed(name), score] for name, score in vocabulary]
    if model.get("unk_token") is not None:
        changed["unk_token"] = renamed(model["unk_token"])
    if "merges" in model:
        changed["merges"] = [
            pair for pair in _merges(model) if not {*pair, "".join(pair)} & places.keys()
        ]
    return changed


def _reached(model: Json, names: Collection[str]) -> Iterator[str]:
    """Those of the names that the model may make of a text's letters by itself."""
    vocabulary = model.get("vocab") or {}
    if "merges" in model and not model.get("ignore_merges"):
        yield from (name for name in map("".join, _merges(model)) if name in names)
        yield from (name for name in names if len(name) == 1 and name in vocabulary)
        return
    pieces = vocabulary if isinstance(vocabulary, dict) else {piece[0] for piece in vocabulary}
    yield from (name for name in names if name in pieces)


def _merges(model: Json) -> Iterator[list[str]]:
    """BPE's merges, two parts each; older files write them with a blank between."""
    yield from (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])

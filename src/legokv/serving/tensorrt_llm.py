"""Fields that clients of TensorRT-LLM's Triton models send: which mean what here, and which must
say nothing.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from legokv.errors import InvalidRequest
from legokv.serving import fields

_INT32 = partial(fields.whole_number, low=-fields.MAX_INT32 - 1, high=fields.MAX_INT32)
_OTHER_NAMES = {"random_seed": "seed", "min_length": "min_tokens"}
"""What is taken under another name here."""
_READERS: dict[str, fields.Reader] = {
    "random_seed": partial(fields.whole_number, low=0, high=fields.MAX_UINT64),
    "min_length": partial(fields.whole_number, low=0, high=fields.MAX_INT32),
    "bad_words": fields.texts,
    "beam_width": partial(fields.whole_number, low=1, high=fields.MAX_INT32),
    "return_context_logits": fields.flag,
    "return_generation_logits": fields.flag,
    # Without effect where there are no beams, no padding, and no prompt in the answer.
    "length_penalty": fields.number,
    "early_stopping": fields.flag,
    "end_id": _INT32,
    "pad_id": _INT32,
    "exclude_input_in_output": fields.flag,
}
TENSORRT_LLM_NAMES = tuple(_READERS)


def without_tensorrt_llm(request: Mapping[str, Any]) -> dict[str, Any]:
    """The request in this project's own names.

    InvalidRequest for one that asks for what is not done here, or says one thing twice.
    """
    values = {name: read(request, name) for name, read in _READERS.items() if name in request}
    _check(values)
    own = {name: value for name, value in request.items() if name not in _READERS}
    for name, meant in _OTHER_NAMES.items():
        if name in values:
            if meant in own:
                raise InvalidRequest(f"{name!r} is {meant!r} here, and both are there: send one")
            own[meant] = values[name]
    return _without_empty(own)


def _check(values: Mapping[str, Any]) -> None:
    if any(values.get("bad_words", ())):
        raise InvalidRequest(
            f"'bad_words' has {len(values['bad_words'])} words, and no words are banned here: "
            "leave it out or empty"
        )
    if values.get("beam_width", 1) != 1:
        raise InvalidRequest(
            f"'beam_width' is {values['beam_width']}, only 1 is done here: "
            "'num_return_sequences' draws several answers"
        )
    for name in ("return_context_logits", "return_generation_logits"):
        if values.get(name):
            raise InvalidRequest(f"{name!r} is true, and logits are not given here: send false")


def _without_empty(request: dict[str, Any]) -> dict[str, Any]:
    """One empty stop word is none there; so is a top_p of 0 beside a top_k."""
    if request.get("stop_words") == [""]:
        del request["stop_words"]
    top_p, top_k = request.get("top_p"), request.get("top_k")
    if top_p == 0 and isinstance(top_k, int) and top_k > 0:
        del request["top_p"]
    return request

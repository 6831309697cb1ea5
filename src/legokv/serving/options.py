"""The fields of a generate request that say how tokens are drawn and what is told of them."""

from legokv.engine.request import MAX_RETURN_SEQUENCES, MAX_TOP_LOG_PROBS, AnswerOptions
from legokv.engine.sampling import SamplingOptions
from legokv.serving import fields

OPTION_NAMES = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "min_tokens",
    "num_return_sequences",
    "return_log_probs",
    "num_top_log_probs",
    "timeout_seconds",
)
"""As TensorRT-LLM's Triton models call them, where they have them."""


def sampling_options(known: fields.Request) -> SamplingOptions:
    """Greedy unless something asks for a draw: a temperature, or another at temperature 1 then.

    A default that is sent asks for nothing: many clients send them all.
    """
    top_k = fields.whole_number(known, "top_k", default=0, low=0, high=fields.MAX_INT32)
    top_p = fields.number(known, "top_p", default=1.0)
    min_p = fields.number(known, "min_p", default=0.0)
    draws = (top_k, top_p, min_p, known.get("num_return_sequences", 1)) != (0, 1.0, 0.0, 1)
    return SamplingOptions(
        temperature=fields.number(known, "temperature", default=1.0 if draws else 0.0),
        top_k=top_k,
        top_p=top_p,
        seed=fields.optional_whole_number(known, "seed", low=0, high=fields.MAX_UINT64),
        min_p=min_p,
        repetition_penalty=fields.number(known, "repetition_penalty", default=1.0),
        presence_penalty=fields.number(known, "presence_penalty", default=0.0),
        frequency_penalty=fields.number(known, "frequency_penalty", default=0.0),
    )


def answer_options(known: fields.Request, default_timeout_seconds: float) -> AnswerOptions:
    """What is wanted of the answers; the server's time limit unless the request has its own."""
    most = fields.MAX_INT32
    return AnswerOptions(
        min_tokens=fields.whole_number(known, "min_tokens", default=0, low=0, high=most),
        num_return_sequences=fields.whole_number(
            known, "num_return_sequences", default=1, low=1, high=MAX_RETURN_SEQUENCES
        ),
        return_log_probs=fields.flag(known, "return_log_probs", default=False),
        num_top_log_probs=fields.whole_number(
            known, "num_top_log_probs", default=0, low=0, high=MAX_TOP_LOG_PROBS
        ),
        timeout_seconds=fields.number(known, "timeout_seconds", default=default_timeout_seconds),
    )

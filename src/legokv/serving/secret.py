"""Who may command the engine: those who know a word made at the server's start, and nobody else."""

import hmac
import secrets
from collections.abc import Callable, Iterator, Mapping

from legokv.errors import InvalidRequest, ServerError
from legokv.serving.answering import Reply

SECRET_VARIABLE = "_LEGOKV_SECRET"
"""Hands the secret on to the server's models; in no log, no list of settings, no reply."""
MIN_SECRET_LEN = 32


def new_secret() -> str:
    """A secret for one start of a server."""
    return secrets.token_hex(32)


def secret_in(environment: Mapping[str, str]) -> bytes:
    """The environment's secret; ServerError with the next step if there is none worth the name."""
    secret = environment.get(SECRET_VARIABLE, "")
    if len(secret) < MIN_SECRET_LEN:
        raise ServerError(
            f"{SECRET_VARIABLE} has {len(secret)} characters, it needs {MIN_SECRET_LEN} or more: "
            "`legokv serve` makes one at each start; whoever starts tritonserver himself sets it "
            "for all its models to a random text that nobody else knows"
        )
    return secret.encode(errors="surrogateescape")


def replies_to_own(
    fields: Mapping[str, object], secret: bytes, replies: Callable[[bytes], Iterator[Reply]]
) -> Iterator[Reply]:
    """What `replies` gives to the field `command`.

    InvalidRequest, and nothing of the command is looked at, unless the field `secret` is the one.
    """
    word, command = fields.get("secret"), fields.get("command")
    if not isinstance(word, bytes) or not hmac.compare_digest(word, secret):
        raise InvalidRequest(
            "the model 'engine' takes commands of its server's own models only: "
            "ask 'generate' or 'documents'"
        )
    if not isinstance(command, bytes):
        raise InvalidRequest("'command' is missing: a JSON object as text")
    yield from replies(command)

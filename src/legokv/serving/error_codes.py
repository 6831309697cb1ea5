"""An error's code on its way to clients: Triton's HTTP drops it from what `generate` is refused
with, so a model's process writes it before the sentence, and the front takes it away again.
"""

import os

from legokv.errors import LegokvError

CODES_VARIABLE = "_LEGOKV_ERROR_CODES"
"""Set in the environment where a front takes the code away again; no setting."""
_SIGN = "legokv error "

HTTP_STATUS = {
    "INVALID_ARG": 400,
    "NOT_FOUND": 404,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "UNSUPPORTED": 501,
    "UNAVAILABLE": 503,
}
"""What each code is over HTTP, from every model and from the front."""


def with_code(error: LegokvError) -> str:
    """The error's sentence, behind its code where there is a front."""
    return f"{_SIGN}{error.code} {error}" if os.environ.get(CODES_VARIABLE) else str(error)


def parted(sentence: str) -> tuple[str, str]:
    """The code, "" where a sentence has none, and the sentence that clients get.

    What a model says of its own has a code; all else is Triton's or a backend's.
    """
    code, _, rest = sentence.removeprefix(_SIGN).partition(" ")
    return (code, rest) if sentence.startswith(_SIGN) and code in HTTP_STATUS else ("", sentence)

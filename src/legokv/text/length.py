"""Whether a text has too many tokens, found out before all of it is tokenised: that takes seconds
for megabytes.
"""

from collections.abc import Callable, Sequence

from legokv.errors import InvalidRequest

BYTES_PER_TOKEN = 8
"""Texts of more bytes than this for a token are looked at piece by piece first."""
_PIECE_LEN = 16_384
_SEAM_TOKENS = 8
"""So many tokens more at most has a text where it was cut."""


def check_num_tokens(
    text: str, encode: Callable[[str], Sequence[int]], max_tokens: int, noun: str
) -> None:
    """InvalidRequest for a text that is sure to have more than `max_tokens`.

    One that is short for so many, or near to them, passes: whoever counts its tokens refuses it.
    """
    if len(text.encode()) <= BYTES_PER_TOKEN * max_tokens:
        return
    num_tokens = 0
    for start in range(0, len(text), _PIECE_LEN):
        num_tokens += len(encode(text[start : start + _PIECE_LEN])) - _SEAM_TOKENS
        if num_tokens > max_tokens:
            seen = min(start + _PIECE_LEN, len(text))
            raise InvalidRequest(
                f"{noun} has more than {max_tokens} tokens in the first {seen} of its {len(text)} "
                f"characters, at most {max_tokens} fit"
            )

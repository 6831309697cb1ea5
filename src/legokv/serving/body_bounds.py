"""What requests' bodies may have: bytes in all of them together, and depth and length of JSON.

JSON is looked at in one pass and without parsing it: a parser may recurse. A text that is no JSON
is not refused here: whoever parses it says what is wrong with it.
"""

import re
from dataclasses import dataclass

from legokv.errors import Busy, InvalidRequest

BODIES_AT_ONCE = 8
"""Bodies of all requests together are held up to so many times the largest, until each is answered.
Past that, small ones are still taken."""
SMALL_BODY_BYTES = 64 * 1024

MAX_DEPTH = 32
"""Most objects and lists inside one another; Triton's parser crashed at 150,000."""
MAX_MEMBERS = 65_536
"""Most members of all objects and lists together."""

_MAX_STRINGS = 2 * MAX_MEMBERS + 1
"""More than all names and values of so many members."""
# One that never ends goes to the text's end: else each quote in it would be tried as a start.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_STRUCTURE = b"[]{},"
_OTHERS = bytes(set(range(256)) - set(_STRUCTURE))
_OPENING, _CLOSING = b"[{", b"]}"


@dataclass
class HeldBodies:
    """Bytes of bodies that are held now, of all requests at one door."""

    most: int
    num_bytes: int = 0

    def check(self, own_bytes: int) -> None:
        """Busy if these are too many for a request that holds `own_bytes` of them."""
        if self.num_bytes > self.most and own_bytes > SMALL_BODY_BYTES:
            raise Busy(f"requests of {self.num_bytes} bytes are read, at most {self.most} at once")


def check_json(text: bytes) -> None:
    """InvalidRequest with both numbers if the text is too deep or has too many members."""
    rest, num_strings = _STRING.subn(b"", text, count=_MAX_STRINGS)
    if num_strings == _MAX_STRINGS:
        raise InvalidRequest(
            f"the JSON has {_MAX_STRINGS} strings or more, at most {MAX_MEMBERS} members fit"
        )
    structure = rest.translate(None, _OTHERS)
    members = sum(structure.count(byte) for byte in (b"[", b"{", b","))
    # As many closing brackets are no harm but for the loop below.
    if members > MAX_MEMBERS or len(structure) > 2 * MAX_MEMBERS:
        raise InvalidRequest(
            f"the JSON has {max(members, len(structure) // 2)} members, at most {MAX_MEMBERS} fit"
        )
    depth = deepest = 0
    for byte in structure:
        if byte in _OPENING:
            depth += 1
            deepest = max(deepest, depth)
        elif byte in _CLOSING:
            depth -= 1
    if deepest > MAX_DEPTH:
        raise InvalidRequest(
            f"the JSON has {deepest} objects and lists inside one another, at most {MAX_DEPTH} fit"
        )

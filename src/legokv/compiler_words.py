"""What a failed build printed, cut to the lines that say why."""

import re
from collections.abc import Sequence

KEPT_LINES = 30

_ERROR = re.compile(r"\berror\b", re.IGNORECASE)


def why_it_failed(lines: Sequence[str]) -> str:
    """At most 30 lines from the first that names an error, or the last 30 if none does."""
    first = next((n for n, line in enumerate(lines) if _ERROR.search(line)), -KEPT_LINES)
    return "\n".join(lines[first:][:KEPT_LINES])

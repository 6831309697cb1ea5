"""The server's questions to itself: known by an id that only its own processes have."""

import hmac
import os

PROBE_VARIABLE = "_LEGOKV_PROBE"
"""Names the environment's id of such questions; no setting."""


def is_probe(request_id: str) -> bool:
    """Whether a request of this id is the server's own."""
    probe_id = os.environ.get(PROBE_VARIABLE, "")
    return bool(probe_id) and hmac.compare_digest(request_id.encode(), probe_id.encode())

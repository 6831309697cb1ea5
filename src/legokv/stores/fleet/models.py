"""All models that share one Redis, and how one of them is removed from it."""

import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice

from legokv.errors import Busy
from legokv.stores.fleet.connection import LAYOUT_VERSION, Connection

_KEY = re.compile(r"legokv:\d+:\{([^}]*)\}:(.*)", re.DOTALL)
_AT_ONCE = 1000


def models_in(connection: Connection) -> dict[str, dict[str, int]]:
    """Documents, chunks and bytes of chunks of each model, by the beginning of its fingerprint."""
    counts: dict[str, Counter[str]] = {}
    with connection.asking() as client:
        for name in client.scan_iter(f"legokv:{LAYOUT_VERSION}:*", _AT_ONCE):
            match = _KEY.fullmatch(name.decode(errors="replace"))
            if match is not None:
                kept = counts.setdefault(match[1], Counter())
                kept["documents"] += match[2].startswith("document/")
                kept["chunks"] += match[2].startswith("kv/")
        for model, kept in counts.items():
            num_bytes = client.get(f"{prefix_of(model)}bytes")
            kept["bytes"] = int(num_bytes or 0)
    return {model: dict(kept) for model, kept in sorted(counts.items())}


def remove_model(connection: Connection, model: str) -> None:
    """Remove all keys of a model; Busy while a server of it listens."""
    with connection.asking() as client:
        ((_, num_servers),) = client.pubsub_numsub(f"{prefix_of(model)}deleted")
        if num_servers:
            raise Busy(
                f"{connection.shown_url} is in use by {num_servers} processes of the model {model}:"
                " stop its servers first"
            )
        names: Iterator[bytes] = client.scan_iter(f"{prefix_of(model)}*", _AT_ONCE)
        while some := list(islice(names, _AT_ONCE)):
            client.unlink(*some)


def prefix_of(model: str) -> str:
    """What the names of a model's keys begin with."""
    return f"legokv:{LAYOUT_VERSION}:{{{model}}}:"

"""The situations in which serving is measured: how large a working set over how much cache."""

from dataclasses import dataclass

from benchmarks.record.names import UnknownName
from benchmarks.serving.workload import Workload

DOCUMENT_TOKENS = 512
# Two (K and V) of 30 layers, 3 heads of 64 in bfloat16: SmolLM2-135M's.
TOKEN_BYTES = 2 * 30 * 3 * 64 * 2


@dataclass(frozen=True)
class Setup:
    """A workload and the server's settings for it."""

    name: str
    workload: Workload
    server: dict[str, object]
    methods: tuple[str, ...]


FITS = Setup(
    "fits",
    Workload(seed=1, num_documents=48, documents_per_request=6),
    {"pool_tokens": 49152},
    ("legolink-16", "prefix", "full"),
)
TOO_LARGE = Setup(
    "four times the pool, twice the disk budget",
    Workload(seed=2, num_documents=128, documents_per_request=6, zipf_exponent=0.7),
    {
        "pool_tokens": 16384,
        "host_bytes": 0,
        "disk_bytes": 64 * DOCUMENT_TOKENS * TOKEN_BYTES,
    },
    ("legolink-16", "prefix"),
)
TINY = Setup(
    "tiny",
    Workload(seed=3, num_documents=4, documents_per_request=2),
    {"pool_tokens": 4096},
    ("legolink-16", "prefix", "full"),
)
SETUPS = {"fits": FITS, "too-large": TOO_LARGE, "tiny": TINY}


def setup(name: str) -> Setup:
    if name not in SETUPS:
        raise UnknownName(f"unknown setup '{name}'; known are {', '.join(SETUPS)}")
    return SETUPS[name]

"""Memory that one request takes for itself: counted pages, not measured bytes."""

from benchmarks.cost.cases import Case, case
from benchmarks.record.results import Row
from legokv import Engine
from legokv.link.link import link
from legokv.link.policy import Policy, everything, legolink

EXPERIMENT = "memory"


def rows(engine: Engine, chunk_tokens: int) -> list[Row]:
    """Bytes of KV that are one request's own, by method; every other page is shared."""
    prompt = case(engine, 8, chunk_tokens)
    policies: dict[str, Policy] = {"full": everything, "naive": legolink(0)}
    policies |= {f"legolink-{k}": legolink(k) for k in (2, 16, 64)}
    made = [_row(name, _own_bytes(engine, prompt, policy)) for name, policy in policies.items()]
    return [*made, _row("a copy of every key and value", prompt.num_tokens * token_bytes(engine))]


def token_bytes(engine: Engine) -> int:
    model = engine.facts.model
    element = 4 if engine.facts.dtype == "float32" else 2
    return 2 * model.num_layers * model.num_kv_heads * model.head_size * element


def _own_bytes(engine: Engine, prompt: Case, policy: Policy) -> int:
    page_size = engine.facts.page_size
    linked = link([*prompt.chunks, prompt.question], policy, page_size)
    return linked.num_private_pages * page_size * token_bytes(engine)


def _row(name: str, num_bytes: int) -> Row:
    return {"experiment": EXPERIMENT, "method": name, "unit": "bytes", "median": num_bytes}

"""What compiling a document costs, and after how many reuses linking has paid for it."""

from benchmarks.cost.cases import Case, case, method, random_ids
from benchmarks.record.clock import TimeLimit, seconds_of
from benchmarks.record.journal import Journal
from benchmarks.record.results import Row
from benchmarks.record.statistics import spread
from legokv import Engine

EXPERIMENT = "compile"


def measure(
    engine: Engine, journal: Journal, chunk_tokens: int, rounds: int, limit: TimeLimit
) -> None:
    """Each round: eight new chunks compiled, then the same prompt in full and linked."""
    prompt = case(engine, 8, chunk_tokens)
    method("naive")(engine, prompt)
    for number in range(rounds):
        key = f"{EXPERIMENT}/{chunk_tokens}/{number}"
        if limit.over:
            return
        if key not in journal:
            journal.add(key, _round(engine, prompt, chunk_tokens, number))


def _round(engine: Engine, prompt: Case, chunk_tokens: int, number: int) -> dict[str, float]:
    ids = [random_ids(engine, chunk_tokens, 10_000 + 8 * number + place) for place in range(8)]
    compiled = [seconds_of(lambda new=new: engine.compile(new, persistent=False)) for new in ids]
    for new in ids:
        engine.drop(engine.chunk(new).key)
    method("naive")(engine, prompt)
    return {
        "compile": sum(compiled),
        "full": seconds_of(lambda: method("full")(engine, prompt)),
        "linked": seconds_of(lambda: method("legolink-16")(engine, prompt)),
    }


def rows(journal: Journal) -> list[Row]:
    """Seconds to compile, and reuses until compiling is paid: compile / (full - linked)."""
    found = [v for key, v in journal.entries().items() if key.startswith(f"{EXPERIMENT}/")]
    if not found:
        return []
    paid = [each["compile"] / max(each["full"] - each["linked"], 1e-9) for each in found]
    seconds = [each["compile"] for each in found]
    return [
        {"experiment": EXPERIMENT, "method": "compile", "unit": "seconds"}
        | spread(seconds).as_row(),
        {"experiment": EXPERIMENT, "method": "reuses until paid", "unit": "reuses"}
        | spread(paid).as_row(),
    ]

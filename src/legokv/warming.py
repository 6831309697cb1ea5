"""Brings a chunk into a tier before a request asks for it."""

from legokv.chunks.chunk import Chunk
from legokv.engine.engine import Engine
from legokv.engine.jobs import LoadJob


def begin_warming(engine: Engine, chunk: Chunk, tier: str) -> LoadJob | None:
    """A queued job that gets the chunk into the pool; None if it is warm enough without one.

    Warm enough is in `tier` ("pool" or a lower tier's name) or in a faster one: a slower one is
    read here. What no tier has is compiled.
    """
    resident = engine.cache.find(chunk.key)
    if resident is not None and resident.ready:
        return None
    if tier != "pool" and engine.tiers.fetch_into(tier, chunk):
        return None
    job = LoadJob(chunk)
    engine.executor.submit(job)
    return job

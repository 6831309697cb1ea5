"""Makes the parts of an engine from its folder and settings: runner, pool, tiers, executor."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from legokv.built.folder import EngineFacts, cache_root, read_engine_folder
from legokv.built.seal import check_content
from legokv.built.settings import EngineSettings
from legokv.chunks.pool import ChunkCache, PagePool
from legokv.chunks.stored_kv import KvForm
from legokv.chunks.tiers import LowerTiers
from legokv.engine.executor import Executor
from legokv.kernels.fastest import torch_threads
from legokv.runners import Runner
from legokv.runners.opening import open_runner
from legokv.stores.fleet.address import shared_cache
from legokv.stores.tiers import PinnedKeys, TierUse, open_tiers
from legokv.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineParts:
    """What an engine works with; its executor uses the same runner, cache and tiers."""

    facts: EngineFacts
    tokenizer: Tokenizer
    runner: Runner
    executor: Executor
    cache: ChunkCache
    tiers: LowerTiers


def open_parts(
    folder: Path,
    settings: EngineSettings,
    pinned_keys: PinnedKeys,
    write_behind: bool = False,
    *,
    unrounded: bool = False,
) -> EngineParts:
    """The parts over an engine folder; EngineMismatch if it does not fit this version, or
    if its weights or tokenizer are no longer those it was built of.

    `unrounded`: with its weights in their type, whatever form it keeps, for a comparison.
    """
    built = read_engine_folder(folder)
    if built.gate is not None and not built.gate.passed:
        log.warning("%s is not linked correctly: %s", folder, built.gate)
    tokenizer = Tokenizer.open(folder)
    check_content(folder, built, tokenizer.fingerprint)
    if unrounded:
        built = replace(built, weights="model")
    num_pages = settings.num_pages(built.page_size)
    # Before another number is set: it is what a later engine without one chooses from.
    torch_threads()
    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    runner = open_runner(folder, built, settings)
    facts = replace(built, dtype=settings.dtype_or(built.dtype))
    cache = ChunkCache(PagePool(num_pages, facts.page_size), pinned_keys, *settings.watermarks)
    tiers = _open_tiers(facts, settings, pinned_keys, runner, write_behind)
    executor = Executor(
        runner,
        cache,
        tiers,
        max_step_tokens=settings.max_step_tokens,
        max_queue_requests=settings.max_queue_requests,
        max_kept_pages=settings.kept_tokens // facts.page_size,
    )
    return EngineParts(facts, tokenizer, runner, executor, cache, tiers)


def _open_tiers(
    facts: EngineFacts,
    settings: EngineSettings,
    pinned_keys: PinnedKeys,
    runner: Runner,
    write_behind: bool,
) -> LowerTiers:
    cache_dir = settings.cache_dir
    return open_tiers(
        None if cache_dir is None else cache_root(cache_dir, facts),
        settings,
        pinned_keys,
        use=TierUse(kv_form(facts), runner.device.type == "cuda", write_behind),
        shared=shared_cache(settings.redis_url, facts.fingerprint),
    )


def kv_form(facts: EngineFacts) -> KvForm:
    """What stored KV of this engine looks like."""
    model = facts.model
    dtype: torch.dtype = getattr(torch, facts.dtypes.kv)
    return KvForm(model.num_layers, model.num_kv_heads, model.head_size, dtype)

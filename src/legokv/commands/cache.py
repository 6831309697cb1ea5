"""`legokv cache`: look at, check, empty, export and import what a cache folder keeps."""

import argparse
import os
import sys
from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from legokv.built.folder import read_engine_folder
from legokv.chunks.tier import ChunkTier, StoredRow
from legokv.commands import Facts, print_facts
from legokv.commands.cache_opening import OpenCache, check_is_cache, open_cache
from legokv.commands.models import MODEL_COMMANDS, run_models_command
from legokv.documents.document import check_namespace
from legokv.documents.exchange import (
    documents_of,
    export_documents,
    import_documents,
)
from legokv.documents.protocol import DocumentRegistry
from legokv.errors import NotFound
from legokv.serving.settings_sources import flags_in, settings_from
from legokv.stores.local.repair import mend, verify


def run_cache_command(parsed: argparse.Namespace) -> int:
    """Carry out one of the commands and print its facts; the exit status."""
    if parsed.cache_command in MODEL_COMMANDS:
        return run_models_command(parsed)
    settings = settings_from(parsed.config, os.environ, flags_in(parsed))
    facts = read_engine_folder(settings.engine)
    if parsed.cache_command != "import":
        check_is_cache(settings, facts)
    cache = open_cache(settings, facts)
    with closing(cache.registry):
        status, outcome = _COMMANDS[parsed.cache_command](cache, parsed)
    print_facts({"cache": str(settings.registry_path(facts).parent), **outcome}, parsed.format)
    return status


def _stats(cache: OpenCache, parsed: argparse.Namespace) -> tuple[int, Facts]:
    rows = _rows(cache)
    return 0, {
        "tiers": {tier.name: _tier_facts(tier) for tier in _tiers(cache)},
        "namespaces": {
            name: {
                **_documents_in(cache.registry, name),
                **{
                    f"{tier}_{what}": number
                    for tier, own in rows.items()
                    for what, number in _totals(own, name).items()
                },
            }
            for name in _all_namespaces(cache)
        },
    }


def _tiers(cache: OpenCache) -> tuple[ChunkTier, ...]:
    return (cache.disk,) if cache.remote is None else (cache.disk, cache.remote)


def _rows(cache: OpenCache) -> dict[str, tuple[StoredRow, ...]]:
    """What each tier keeps, by its name."""
    rows = {cache.disk.name: cache.disk.stored.rows()}
    return rows if cache.remote is None else {**rows, cache.remote.name: cache.remote.rows()}


def _tier_facts(tier: ChunkTier) -> dict[str, int]:
    stats = tier.stats()
    return {
        "chunks": stats.num_chunks,
        "bytes": stats.num_bytes,
        "max_bytes": stats.max_bytes,
        "leased_chunks": stats.num_leases,
    }


def _totals(rows: Collection[StoredRow], namespace: str) -> dict[str, int]:
    own = [row.num_bytes for row in rows if row.namespace == namespace]
    return {"chunks": len(own), "bytes": sum(own)}


def _documents_in(registry: DocumentRegistry, namespace: str) -> dict[str, int]:
    documents = list(documents_of(registry, (namespace,)))
    return {
        "documents": len(documents),
        "ready_documents": sum(document.state == "ready" for document in documents),
        "pinned_documents": sum(document.pinned for document in documents),
        "tokens": sum(document.num_tokens for document in documents),
    }


def _verify(cache: OpenCache, parsed: argparse.Namespace) -> tuple[int, Facts]:
    """1 if something was wrong; it is mended then. Counts are of all tiers together."""
    repair = mend(cache.disk, cache.registry.named)
    with _bytes_bar(sum(tier.stats().num_bytes for tier in _tiers(cache)), "verify") as bar:
        repair += verify(cache.disk, lambda files, num_bytes: bar.update(num_bytes))
        if cache.remote is not None:
            from legokv.stores.fleet.repair import verify_remote

            repair += verify_remote(cache.remote, lambda chunks, num_bytes: bar.update(num_bytes))
    return 1 if repair.num_found else 0, asdict(repair)


def _clear(cache: OpenCache, parsed: argparse.Namespace) -> tuple[int, Facts]:
    """Chunks that a server reads just now go when it has done so."""
    namespaces = _namespaces(cache, parsed)
    deleted = 0
    if parsed.documents:
        for document in list(documents_of(cache.registry, namespaces)):
            cache.registry.delete(document.namespace, document.id)
            deleted += 1
    before = _stored_in(cache, namespaces)
    with _bytes_bar(sum(row.num_bytes for _, row in before), "clear") as bar:
        for tier, row in before:
            tier.remove(row.key)
            bar.update(row.num_bytes)
    after = _stored_in(cache, namespaces)
    return 0, {
        "deleted_documents": deleted,
        "removed_chunks": len(before) - len(after),
        "removed_bytes": sum(r.num_bytes for _, r in before) - sum(r.num_bytes for _, r in after),
        "chunks_in_use": len(after),
    }


def _stored_in(cache: OpenCache, namespaces: Collection[str]) -> list[tuple[ChunkTier, StoredRow]]:
    """What is stored of these namespaces, and where."""
    rows = _rows(cache)
    return [(t, row) for t in _tiers(cache) for row in rows[t.name] if row.namespace in namespaces]


def _export(cache: OpenCache, parsed: argparse.Namespace) -> tuple[int, Facts]:
    namespaces = _namespaces(cache, parsed)
    stored = {row.key: row.num_bytes for _, row in _stored_in(cache, namespaces)}
    with _bytes_bar(sum(stored.values()), "export") as bar:
        exchanged = export_documents(cache.documents, parsed.file, namespaces, bar.update)
    return 0, {"file": str(parsed.file), **asdict(exchanged)}


def _import(cache: OpenCache, parsed: argparse.Namespace) -> tuple[int, Facts]:
    size = parsed.file.stat().st_size if parsed.file.is_file() else 0
    with _bytes_bar(size, "import") as bar:
        exchanged = import_documents(cache.documents, parsed.file, bar.update)
    return 0, {"file": str(parsed.file), **asdict(exchanged)}


def _namespaces(cache: OpenCache, parsed: argparse.Namespace) -> tuple[str, ...]:
    """Those asked for, all unless told; NotFound for one of which nothing is kept."""
    names = _all_namespaces(cache)
    if not parsed.namespace:
        return names
    for name in map(check_namespace, parsed.namespace):
        if name not in names:
            raise NotFound(
                f"nothing is kept of the namespace '{name}'; there are {', '.join(names) or 'none'}"
            )
    return tuple(dict.fromkeys(parsed.namespace))


def _all_namespaces(cache: OpenCache) -> tuple[str, ...]:
    """Those that have documents, or stored chunks."""
    stored = {row.namespace for rows in _rows(cache).values() for row in rows}
    return tuple(sorted({*cache.registry.namespaces(), *stored}))


def _bytes_bar(total: int, what: str) -> "tqdm[Any]":
    # On a terminal only, and on standard error: output stays for pipes.
    return tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=None, file=sys.stderr)


_COMMANDS: dict[str, Callable[[OpenCache, argparse.Namespace], tuple[int, Facts]]] = {
    "stats": _stats,
    "verify": _verify,
    "clear": _clear,
    "export": _export,
    "import": _import,
}

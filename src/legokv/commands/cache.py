"""`legokv cache`: look at, check, empty, export and import what a cache folder keeps."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from legokv.chunks.opening import open_disk_tier, registry_file
from legokv.chunks.repair import mend, verify
from legokv.documents.exchange import (
    Cache,
    documents_of,
    export_documents,
    import_documents,
)
from legokv.documents.opening import open_registry
from legokv.documents.protocol import DocumentRegistry
from legokv.engine_folder import read_engine_folder
from legokv.serving.settings import settings_from
from legokv.tokenizer import Tokenizer

Facts = dict[str, object]


def run_cache_command(parsed: argparse.Namespace) -> int:
    """Carry out one of the commands and print its facts; the exit status."""
    flags = {
        name: getattr(parsed, name)
        for name in ("engine", "cache_dir", "redis_url")
        if name in parsed
    }
    settings = settings_from(parsed.config, os.environ, flags)
    facts = read_engine_folder(settings.engine)
    root = settings.registry_path(facts).parent
    with closing(open_registry(registry_file(root), settings.shared_cache(facts))) as registry:
        disk = open_disk_tier(root, registry, settings.tier_limits)
        codec = Tokenizer.open(settings.engine)
        cache = Cache(facts.fingerprint, registry, disk, codec)
        status, said = _COMMANDS[parsed.cache_command](cache, parsed)
    _print({"cache": str(root), **said}, parsed.format)
    return status


def _stats(cache: Cache, parsed: argparse.Namespace) -> tuple[int, Facts]:
    rows = cache.disk.stored.rows()
    registry = cache.registry
    names = sorted({*registry.namespaces(), *(row.namespace for row in rows)})
    disk = cache.disk.stats()
    return 0, {
        "chunks": disk.num_chunks,
        "bytes": disk.num_bytes,
        "max_bytes": disk.max_bytes,
        "leased_chunks": disk.num_leases,
        "namespaces": {
            name: {
                **_documents_in(registry, name),
                "chunks": sum(row.namespace == name for row in rows),
                "bytes": sum(row.num_bytes for row in rows if row.namespace == name),
            }
            for name in names
        },
    }


def _documents_in(registry: DocumentRegistry, namespace: str) -> dict[str, int]:
    documents = list(documents_of(registry, (namespace,)))
    return {
        "documents": len(documents),
        "ready_documents": sum(document.state == "ready" for document in documents),
        "pinned_documents": sum(document.pinned for document in documents),
        "tokens": sum(document.num_tokens for document in documents),
    }


def _verify(cache: Cache, parsed: argparse.Namespace) -> tuple[int, Facts]:
    """1 if something was wrong; it is mended then."""
    repair = mend(cache.disk, cache.registry.named)
    with _bytes_bar(cache.disk.stats().num_bytes, "verify") as bar:
        repair += verify(cache.disk, lambda files, num_bytes: bar.update(num_bytes))
    return 1 if repair.num_found else 0, asdict(repair)


def _clear(cache: Cache, parsed: argparse.Namespace) -> tuple[int, Facts]:
    """Chunks that a server reads just now go when it has done so."""
    wanted = _namespaces(cache, parsed)
    deleted = 0
    if parsed.documents:
        for document in list(documents_of(cache.registry, wanted)):
            cache.registry.delete(document.namespace, document.id)
            deleted += 1
    before = cache.disk.stats()
    rows = [row for row in cache.disk.stored.rows() if row.namespace in wanted]
    with _bytes_bar(sum(row.num_bytes for row in rows), "clear") as bar:
        for row in rows:
            cache.disk.remove(row.key)
            bar.update(row.num_bytes)
    after = cache.disk.stats()
    return 0, {
        "deleted_documents": deleted,
        "removed_chunks": before.num_chunks - after.num_chunks,
        "removed_bytes": before.num_bytes - after.num_bytes,
        "chunks_in_use": sum(row.namespace in wanted for row in cache.disk.stored.rows()),
    }


def _export(cache: Cache, parsed: argparse.Namespace) -> tuple[int, Facts]:
    wanted = _namespaces(cache, parsed)
    with _bytes_bar(cache.disk.stats().num_bytes, "export") as bar:
        exchanged = export_documents(cache, parsed.file, wanted, bar.update)
    return 0, {"file": str(parsed.file), **asdict(exchanged)}


def _import(cache: Cache, parsed: argparse.Namespace) -> tuple[int, Facts]:
    size = parsed.file.stat().st_size if parsed.file.is_file() else 0
    with _bytes_bar(size, "import") as bar:
        exchanged = import_documents(cache, parsed.file, bar.update)
    return 0, {"file": str(parsed.file), **asdict(exchanged)}


def _namespaces(cache: Cache, parsed: argparse.Namespace) -> tuple[str, ...]:
    if parsed.namespace:
        return tuple(dict.fromkeys(parsed.namespace))
    stored = {row.namespace for row in cache.disk.stored.rows()}
    return tuple(sorted({*cache.registry.namespaces(), *stored}))


def _bytes_bar(total: int, what: str) -> "tqdm[Any]":
    # On a terminal only, and on standard error: output stays for pipes.
    return tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=None, file=sys.stderr)


def _print(facts: Facts, form: str) -> None:
    if form == "json":
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            for inner, numbers in value.items():
                print(f"{name} {inner}: {', '.join(f'{k} {v}' for k, v in numbers.items())}")
        else:
            print(f"{name}: {value}")


_COMMANDS: dict[str, Callable[[Cache, argparse.Namespace], tuple[int, Facts]]] = {
    "stats": _stats,
    "verify": _verify,
    "clear": _clear,
    "export": _export,
    "import": _import,
}

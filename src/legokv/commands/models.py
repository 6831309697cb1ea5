"""`legokv cache models` and `legokv cache forget`: other models' leftovers, without an engine."""

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from legokv.commands import print_facts
from legokv.errors import NotFound
from legokv.serving.settings import Settings
from legokv.serving.settings_sources import flags_in, settings_from
from legokv.stores.fleet.address import NO_REDIS
from legokv.stores.opening import open_connection
from legokv.stores.tiers import disk_models, remove_disk_model

if TYPE_CHECKING:
    from legokv.stores.fleet.connection import Connection

MODEL_COMMANDS = ("models", "forget")
Kept = dict[str, dict[str, dict[str, int]]]


def run_models_command(parsed: argparse.Namespace) -> int:
    """Print what each model keeps, or remove one; the exit status."""
    # These commands are about all models: no engine is opened.
    settings = settings_from(parsed.config, os.environ, {"engine": Path("."), **flags_in(parsed)})
    if settings.redis_url == NO_REDIS and not settings.cache_dir.is_dir():
        raise NotFound(
            f"the cache folder {settings.cache_dir} does not exist: give --cache-dir the folder "
            "that `legokv serve` has"
        )
    redis = None if settings.redis_url == NO_REDIS else open_connection(settings.redis_url)
    kept = _kept(settings, redis)
    facts: dict[str, Any] = {"cache": str(settings.cache_dir)}
    facts |= kept if parsed.cache_command == "models" else _forget(settings, redis, kept, parsed)
    print_facts(facts, parsed.format)
    return 0


def _kept(settings: Settings, redis: "Connection | None") -> Kept:
    disk = {name: asdict(kept) for name, kept in disk_models(settings.cache_dir).items()}
    if redis is None:
        return {"disk": disk}
    from legokv.stores.fleet.models import models_in

    return {"disk": disk, "redis": models_in(redis)}


def _forget(
    settings: Settings, redis: "Connection | None", kept: Kept, parsed: argparse.Namespace
) -> dict[str, Any]:
    model = parsed.model
    places = [place for place, models in kept.items() if model in models]
    if not places:
        names = sorted({name for models in kept.values() for name in models})
        raise NotFound(
            f"nothing is kept of a model {model[:80]!r}; there are {', '.join(names) or 'none'}"
        )
    if "disk" in places:
        remove_disk_model(settings.cache_dir, model)
    if "redis" in places and redis is not None:
        from legokv.stores.fleet.models import remove_model

        remove_model(redis, model)
    return {"forgotten": model, **{place: {model: kept[place][model]} for place in places}}

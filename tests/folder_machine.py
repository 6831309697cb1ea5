"""A cache folder with an engine over it, for the commands."""

from machine import Machine

from legokv import Engine, EngineSettings
from legokv.built.folder import cache_root
from legokv.stores.local.registry import Registry


class FolderMachine(Machine):
    """A cache folder with an engine over it, as one server has them."""

    def __init__(self, engine_folder, cache_dir, form="model"):
        self.engine_folder, self.cache_dir = engine_folder, cache_dir
        engine = Engine.open(
            engine_folder,
            settings=EngineSettings(cache_dir=cache_dir, attention="torch", kv_stored_dtype=form),
        )
        self.root = cache_root(cache_dir, engine.facts)
        registry = Registry.open(self.root / "registry.sqlite")
        super().__init__(engine, registry, ("--engine", engine_folder, "--cache-dir", cache_dir))

    def files(self):
        return sorted(self.root.glob("chunks/*/*.safetensors"))

"""Where a model's documents and chunks lie below a cache folder."""

from pathlib import Path

from legokv.built.folder import EngineFacts


def cache_root(cache_dir: str | Path, facts: EngineFacts) -> Path:
    """The folder of an engine's model: documents and KV belong to one."""
    return Path(cache_dir) / facts.fingerprint[:16]


def registry_file(root: Path) -> Path:
    """The document registry of a model whose folder is `root`."""
    return root / "registry.sqlite"

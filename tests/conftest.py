"""Fixtures every test folder may use. Its being here also puts tests/ on the import path."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_checkpoints import make_tiny_checkpoint


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint by its variant's name, made once. Not to be written to."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = make_tiny_checkpoint(name, tmp_path_factory.mktemp("tiny") / name)
        return made[name]

    return folder

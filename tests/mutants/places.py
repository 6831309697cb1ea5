"""The places that are broken, from their table in places.toml."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

from trial import Mutant

TABLE = Path(__file__).with_name("places.toml")


def places() -> Iterator[Mutant]:
    """All of the table, in its order."""
    for file in tomllib.loads(TABLE.read_text())["file"]:
        for place in file["place"]:
            yield Mutant(file["path"], tuple(file["tests"]), **place)

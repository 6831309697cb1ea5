"""Where this checkout's folders are. Tests say them by these names."""

from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
OUT = ROOT / "out"
PLUGINS = ROOT / "plugins"
CLIENT = ROOT / "client"

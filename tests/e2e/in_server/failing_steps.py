"""Imported at a server's start, this makes the model's steps fail while FAULT_FILE is there.

`faults.py` makes an environment whose Python does so. The product itself has no hook for it.
"""

import builtins
import os
import sys
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

RUNNER_MODULE, RUNNER = "legokv.runners.eager", "EagerRunner"


class BreaksTheRunner:
    """A finder of one module, whose runner it wraps."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != RUNNER_MODULE:
            return None
        spec = PathFinder.find_spec(name, path)
        executed = spec.loader.exec_module

        def exec_module(module: object) -> None:
            executed(module)
            wrap(getattr(module, RUNNER))

        spec.loader.exec_module = exec_module
        return spec


def wrap(runner: type) -> None:
    run = runner.run

    def running(self: object, batch: object) -> object:
        fault = Path(os.environ["FAULT_FILE"])
        if fault.exists():
            module, _, kind = fault.read_text().rpartition(".")
            raise getattr(import_module(module) if module else builtins, kind)("on purpose")
        return run(self, batch)

    runner.run = running


sys.meta_path.insert(0, BreaksTheRunner())

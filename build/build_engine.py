"""Build an engine folder from a checkpoint: python build/build_engine.py --model llama"""

import sys
from collections.abc import Callable

from ending import run


def main(arguments: list[str] | None = None) -> int:
    def load() -> Callable[[], None]:
        import engine_command

        parsed = engine_command.parse_arguments(__doc__, arguments)
        return lambda: engine_command.build(parsed)

    return run("build_engine.py", load)


if __name__ == "__main__":
    sys.exit(main())

"""Build an engine folder from a checkpoint: python build/build_engine.py --model llama"""

import sys

from ending import run


def main(arguments: list[str] | None = None) -> int:
    def build() -> None:
        import engine_command

        engine_command.build(engine_command.parse_arguments(__doc__, arguments))

    return run("build_engine.py", build)


if __name__ == "__main__":
    sys.exit(main())

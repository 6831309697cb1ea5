"""Build an engine folder from a checkpoint: python build/build_engine.py --model llama"""

import signal
import sys

from legokv.errors import LegokvError


def main(arguments: list[str] | None = None) -> int:
    # A build that is told to end ends as on Ctrl-C: its process and what it has begun with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        # Here, since torch comes with it: the seconds that takes can be interrupted, too.
        from engine_command import build, parse_arguments

        build(parse_arguments(__doc__, arguments))
    except LegokvError as error:
        print(f"build_engine.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("build_engine.py: interrupted, nothing written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

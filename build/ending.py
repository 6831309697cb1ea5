"""How every build command ends: a line, not a traceback, for an error, Ctrl-C and SIGTERM."""

import signal
import sys
from collections.abc import Callable

from legokv.errors import LegokvError

FAILED, INTERRUPTED = 1, 130


def run(command: str, build: Callable[[], None]) -> int:
    """The exit status of `build`; what it begins and its processes end with it on either signal.

    Modules that bring torch are imported inside `build`: those seconds can be interrupted, too.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        build()
    except LegokvError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f"{command}: interrupted, nothing written", file=sys.stderr)
        return INTERRUPTED
    return 0

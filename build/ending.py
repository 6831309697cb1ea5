"""How every build command ends: a line, not a traceback, for an error, Ctrl-C and SIGTERM."""

import os
import signal
import sys
from collections.abc import Callable

from legokv.errors import LegokvError, sentence_of

FAILED, INTERRUPTED = 1, 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(command: str, load: Callable[[], Callable[[], None]]) -> int:
    """The exit status of what `load` returns, which ends with all it began on either signal.

    `load` imports what brings torch, seconds in which an interrupt would be swallowed: torch takes
    any failure of numpy's import for a lack of it. Nothing is begun then, so they end at once.
    """
    interrupted = f"{command}: interrupted"
    _on_signals(lambda *_: _end_at_once(interrupted))
    try:
        build = load()
        _on_signals(signal.default_int_handler)
        build()
    except (LegokvError, OSError) as error:
        print(f"{command}: {sentence_of(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED
    return 0


def _on_signals(handler: Callable[..., None]) -> None:
    for number in _SIGNALS:
        # A shell's background jobs ignore Ctrl-C, and are to go on doing so.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _end_at_once(words: str) -> None:
    os.write(sys.stderr.fileno(), f"{words}\n".encode())
    os._exit(INTERRUPTED)

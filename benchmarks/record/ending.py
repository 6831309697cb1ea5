"""How every benchmark ends: a line, not a traceback, for what a caller can put right."""

import sys
from collections.abc import Callable

from benchmarks.record.names import UnknownName
from benchmarks.reuse.download import DataMissing
from legokv.errors import LegokvError

WRONG_QUESTION, INTERRUPTED = 2, 130


def run(main: Callable[[], int]) -> int:
    """The exit code: main's, 2 for a question that can't be measured, 130 for Ctrl-C."""
    try:
        return main()
    except (UnknownName, DataMissing, LegokvError) as error:
        print(error, file=sys.stderr)
        return WRONG_QUESTION
    except KeyboardInterrupt:
        print("interrupted: what is done is kept, the same command goes on from there")
        return INTERRUPTED

"""Which tests one of several workers runs: those of a file, or of a folder that shares a session.

A server and a plan are made once, by the one worker that runs all tests of theirs. And while those
of `e2e` wait for servers, another worker has the processor for what computes.
"""

from xdist.scheduler import LoadFileScheduling

FOLDERS = ("tests/e2e/", "tests/contract/")


class ByFolder(LoadFileScheduling):
    """Those with the most tests come first."""

    def _split_scope(self, nodeid: str) -> str:
        folders = (folder for folder in FOLDERS if nodeid.startswith(folder))
        return next(folders, super()._split_scope(nodeid))

"""What a server's processes hold: memory, descriptors, shared memory; and what its log says."""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_SHARED = Path("/dev/shm")
_BAD_LINE = re.compile(
    r"Traceback|internal error|a step failed|Segmentation|core dumped", re.IGNORECASE
)


@dataclass(frozen=True)
class Footprint:
    """`processes` by their numbers with their names; sizes in bytes."""

    processes: dict[int, str]
    memory: dict[str, int]
    descriptors: dict[str, int]
    shared_memory: int


def footprint(pid: int) -> Footprint:
    """Of a process and all that it started."""
    pids = sorted(each for each in _family(pid) if runs(each))
    names = {each: _name(each, pid) for each in pids}
    return Footprint(
        names,
        {names[each]: _resident(each) for each in pids},
        {names[each]: len(list(Path(f"/proc/{each}/fd").iterdir())) for each in pids},
        sum(file.stat().st_size for file in _SHARED.glob("legokv*")),
    )


def bad_lines(log: Path) -> list[str]:
    """Lines that a server's log should never have."""
    return [line for line in log.read_text(errors="replace").splitlines() if _BAD_LINE.search(line)]


def _family(pid: int) -> Iterator[int]:
    yield pid
    if not runs(pid):
        return
    for task in Path(f"/proc/{pid}/task").iterdir():
        children = ""
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended since
            children = (task / "children").read_text()
        for child in children.split():
            yield from _family(int(child))


def runs(pid: int) -> bool:
    """False also of one that ended and whose starter has not looked."""
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "VmRSS" in status.read_text()


def _name(pid: int, root: int) -> str:
    if pid == root:
        return "legokv serve"
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    program = Path(words[0].decode(errors="replace")).name
    if b"legokv.serving.doors" in words:
        return "front"
    models = [w.decode() for w in words if w.endswith(b"model.py")]
    return Path(models[0]).parent.parent.name if models else f"{program} {pid}"


def _resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    (kilobytes,) = re.findall(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    return int(kilobytes) * 1024

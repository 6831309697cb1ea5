"""What a running server writes is its user's alone: its cache, and its models' shared memory."""

import os
import stat
from pathlib import Path

from server import RunningServer


def open_to_others(paths: list[Path]) -> dict[str, str]:
    """Those that others may read, write or enter, with their modes."""
    modes = {path: path.lstat().st_mode for path in paths}
    return {
        str(path): stat.filemode(mode)
        for path, mode in modes.items()
        if mode & (stat.S_IRWXG | stat.S_IRWXO) and not stat.S_ISLNK(mode)
    }


def test_cache_and_shared_memory_are_the_server_s_user_s_alone(
    server: RunningServer, documents: list[str]
) -> None:
    os.umask(usual := os.umask(0o022))
    assert usual != 0o077, "the server was started by one whose files are open to others"
    assert isinstance(server.process.args, list)
    arguments = [str(argument) for argument in server.process.args]
    (model,) = Path(arguments[arguments.index("--cache-dir") + 1]).iterdir()
    files = [model, *model.rglob("*")]
    assert any(path.suffix == ".safetensors" for path in files)
    assert any(path.suffix == ".sqlite" for path in files)
    memory = list(Path("/dev/shm").glob(f"legokv_{server.process.pid}_*"))
    assert memory
    assert open_to_others(files + memory) == {}

"""What the front is told by whoever starts it, and what it says to them. No network here."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from legokv.errors import ServerError

BRIEF_VARIABLE = "_LEGOKV_FRONT"
"""Names the environment's JSON with what `Brief` has; no setting."""
_MAX_SOCKET_LEN = 100


@dataclass(frozen=True)
class Brief:
    """Where Triton listens, the id of the server's own questions, and where the models lie."""

    sockets: str
    grpc_port: int
    probe_id: str
    models: str

    @property
    def http(self) -> str:
        """The path of the socket on which Triton answers HTTP."""
        return http_socket(Path(self.sockets))

    @property
    def grpc(self) -> str:
        """The target of Triton's gRPC."""
        return f"unix:{self.sockets}/grpc:{self.grpc_port}"

    @property
    def metrics(self) -> str:
        """The path of the socket on which Triton shows its metrics."""
        return str(Path(self.sockets, "metrics"))

    def environment(self) -> dict[str, str]:
        """The variables from which `brief_of_environment` makes the same record."""
        return {BRIEF_VARIABLE: json.dumps(asdict(self))}


def brief_of_environment() -> Brief:
    """What this process was told by its environment."""
    return Brief(**json.loads(os.environ[BRIEF_VARIABLE]))


def http_socket(folder: Path) -> str:
    """Where Triton answers HTTP; ServerError if the system takes no socket by so long a name."""
    path = str(folder / "http")
    num_bytes = len(os.fsencode(path))
    if num_bytes > _MAX_SOCKET_LEN:
        raise ServerError(
            f"no socket can be made at {path} ({num_bytes} bytes, at most {_MAX_SOCKET_LEN}): "
            "set TMPDIR to a folder with a short name that can be written"
        )
    return path

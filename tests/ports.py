"""Ports for what the tests start: none that the system gives to others before it is used."""

import os
import socket
from itertools import count

# Below those that the kernel gives to whoever does not choose.
_FIRST, _NUMBER = 10_000, 20_000
_tried = count(os.getpid() * 64)


def free_port() -> int:
    """A port that nobody listens at, another one each time."""
    for number in _tried:
        port = _FIRST + number % _NUMBER
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise AssertionError

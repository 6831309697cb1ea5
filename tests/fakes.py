"""Stand-ins that several tests use for what would make them slow or uncertain."""


class Clock:
    """A clock that a test sets: calling it gives its `seconds`."""

    def __init__(self, seconds: float = 1000.0) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds

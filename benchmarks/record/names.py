"""The names that methods, peers, tasks and setups are asked for by."""


class UnknownName(Exception):
    """What was asked for does not exist; the message lists what does."""


def legolink_tokens(method: str) -> int | None:
    """K of a method called `legolink-K`; None for any other name, `legolink-0` being another."""
    kind, _, number = method.rpartition("-")
    return int(number) or None if kind == "legolink" and number.isdecimal() else None

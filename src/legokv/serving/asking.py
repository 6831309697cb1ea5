"""Asks the engine by keys of chunks: token ids go along only of those that it does not know."""

from collections.abc import Callable

from legokv.serving.messages import Command, Event, Unknown, WithSegments, with_ids_of

AskEngine = Callable[[Command], tuple[Event, ...]]
"""Gives the events that answer a command and raises the error among them."""


def ask_by_keys(ask_engine: AskEngine, command: WithSegments, unknown: set[str]) -> Event:
    """The one event that answers a command, which has the ids of all its chunks.

    `unknown`: keys of the chunks that the engine is believed not to know.
    """
    (event,) = ask_engine(with_ids_of(command, unknown))
    while isinstance(event, Unknown):
        unknown |= set(event.keys)
        (event,) = ask_engine(with_ids_of(command, unknown))
    return event

"""How the other models ask the engine model: one command out, events back. In Triton's stub."""

from collections.abc import Iterator

import numpy as np
import triton_python_backend_utils as pb_utils

from legokv.errors import LegokvError
from legokv.serving.messages import Command, Event, Failed, decode_event, encode, error_of


def ask_engine(command: Command) -> Iterator[Event]:
    """The events that answer `command`; raises the error that ended it, if one did."""
    body = pb_utils.Tensor("command", np.array([encode(command)], np.object_))
    request = pb_utils.InferenceRequest(
        model_name="engine", requested_output_names=["event"], inputs=[body]
    )
    error: LegokvError | None = None
    # To the end even after an error: a stream left unread keeps its memory in Triton.
    for response in request.exec(decoupled=True):
        if response.has_error():
            error = LegokvError(f"the engine model failed: {response.error().message()}")
            continue
        output = pb_utils.get_output_tensor_by_name(response, "event")
        if output is None:
            continue  # the empty response that only ends the stream
        event = decode_event(output.as_numpy()[0])
        if isinstance(event, Failed):
            error = error_of(event)
        else:
            yield event
    if error is not None:
        raise error

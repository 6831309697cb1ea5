"""How the other models ask the engine model: one command out, its events back. In Triton's stub."""

import numpy as np
import triton_python_backend_utils as pb_utils

from legokv.errors import LegokvError
from legokv.serving.messages import (
    Command,
    Event,
    Failed,
    decode_events,
    encode_command,
    error_of,
)


class EngineCaller:
    """Asks with the server's secret, without which the engine model takes no command."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def __call__(self, command: Command) -> tuple[Event, ...]:
        """The events that answer `command`; raises the error among them, if there is one.

        One response a call, from as many threads as you like. Triton 24.10's
        `exec(decoupled=True)` would stream, but damages the reference counts of the process when
        responses come fast.
        """
        fields = {"secret": self._secret, "command": encode_command(command)}
        inputs = [
            pb_utils.Tensor(name, np.array([text], np.object_)) for name, text in fields.items()
        ]
        request = pb_utils.InferenceRequest(
            model_name="engine", requested_output_names=["events"], inputs=inputs
        )
        response = request.exec()
        if response.has_error():
            raise LegokvError(f"the engine model failed: {response.error().message()}")
        output = pb_utils.get_output_tensor_by_name(response, "events")
        events = decode_events(output.as_numpy()[0])
        for event in events:
            if isinstance(event, Failed):
                raise error_of(event)
        return events

"""What executes one step of the model: the protocol, and one module for each way to run it."""

from legokv.runners.protocol import Runner

__all__ = ["Runner"]

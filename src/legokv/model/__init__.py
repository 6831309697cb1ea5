"""The one definition of a Llama-family decoder."""

from legokv.model.decoder import Attention, Decoder

__all__ = ["Attention", "Decoder"]

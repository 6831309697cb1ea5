"""A Hugging Face folder or GGUF file becomes a ModelConfig and the decoder's weights."""

from legokv.checkpoint.hf_config import read_model_config
from legokv.checkpoint.weights import load_weights

__all__ = ["load_weights", "read_model_config"]

"""safetensors' names of the types that weights and KV have. No tensors here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FloatDtype:
    """`name` is torch's, and this project's."""

    name: str
    item_bytes: int


FLOAT_DTYPES = {
    "BF16": FloatDtype("bfloat16", 2),
    "F16": FloatDtype("float16", 2),
    "F32": FloatDtype("float32", 4),
}

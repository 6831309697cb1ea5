"""The types that weights, KV and token ids have, by name. No tensors here."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]


@dataclass(frozen=True)
class FloatDtype:
    """`name` is torch's, and this project's."""

    name: str
    item_bytes: int


# By safetensors' names.
FLOAT_DTYPES = {
    "BF16": FloatDtype("bfloat16", 2),
    "F16": FloatDtype("float16", 2),
    "F32": FloatDtype("float32", 4),
}
FP8_DTYPE = FloatDtype("float8_e4m3fn", 1)
"""What a checkpoint may have besides, as "F8_E4M3" and with a scale; no engine computes in it."""
STORED_DTYPES = FLOAT_DTYPES | {"F8_E4M3": FP8_DTYPE}
DTYPES = tuple(dtype.name for dtype in FLOAT_DTYPES.values())
WEIGHT_FORMS = ("model", "int8", "int4")
"""How matrices are kept: in the engine's type, or in 8 bits a number and a scale for each 32, or
in 4 where they are of the layers."""
PLAN_FORMS = {"fp8": "qdq-fp8", "int4": "qdq-int4"}
"""How a plan may have the layers' matrices, by what `--quantize` calls it: as Q/DQ nodes."""
QUANTIZE_WORDS = {form: word for word, form in PLAN_FORMS.items()}


@dataclass(frozen=True)
class Dtypes:
    """One of DTYPES each: what weights lie in, what a step computes in, what pages keep.

    How a chunk is stored below the pool is a setting of its own (`kv_stored_dtype`).
    """

    weights: str
    compute: str
    kv: str

    @classmethod
    def same(cls, name: str) -> "Dtypes":
        """One type for all three: what every engine has today."""
        return cls(name, name, name)

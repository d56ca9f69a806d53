"""What a safetensors file looks like: its names of dtypes, and where in its metadata our record of ties stands.

A file is eight bytes with the length of a JSON header, the header, and the values, one tensor after the other. The header
has a dtype, a shape and the place of the values for each name, and texts under `__metadata__`.
"""

import jax.numpy as jnp
import numpy as np

RESERVED = "__metadata__"  # the one name that no tensor can have
RECORD = "modulekit"  # the key of our own text in the metadata: a JSON object
DTYPES = {
    name: np.dtype(dtype)  # type: ignore[call-overload]
    for name, dtype in {
        "BOOL": jnp.bool_,
        "I8": jnp.int8,
        "I16": jnp.int16,
        "I32": jnp.int32,
        "I64": np.int64,
        "U8": jnp.uint8,
        "U16": jnp.uint16,
        "U32": jnp.uint32,
        "U64": np.uint64,
        "F16": jnp.float16,
        "BF16": jnp.bfloat16,
        "F32": jnp.float32,
        "F64": np.float64,
        "C64": jnp.complex64,
        "F8_E4M3": jnp.float8_e4m3fn,
        "F8_E4M3FNUZ": jnp.float8_e4m3fnuz,
        "F8_E5M2": jnp.float8_e5m2,
        "F8_E5M2FNUZ": jnp.float8_e5m2fnuz,
        "F8_E8M0": jnp.float8_e8m0fnu,
    }.items()
}

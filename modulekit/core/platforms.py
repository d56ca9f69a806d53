"""Whether a computation is to take the form that is fast on CPUs."""

import jax

from modulekit.core import context


def is_for_cpu(inputs: jax.Array) -> bool:
    """Returns whether what is computed from `inputs` will run on a CPU of this process, for all that JAX has been told.

    It goes by `jax.default_device`, else by JAX's default backend. A program that leaves the process is for no platform in
    particular, and so is one with an open size.
    """
    if context.now().portable or not all(isinstance(size, int) for size in inputs.shape):
        return False
    default: jax.Device | str | None = jax.config.jax_default_device  # type: ignore[attr-defined]
    if isinstance(default, str):
        return default.partition(":")[0] == "cpu"
    return (default.platform if default is not None else jax.default_backend()) == "cpu"

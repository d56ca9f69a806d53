"""Devices by name, as TensorFlow writes them: `GPU:0`, `/device:CPU:1`."""

import re

import jax

_NAME = re.compile(r"(?:.*/device:)?([A-Za-z]+)(?::(\d+))?")


def device_of(device: jax.Device | str) -> jax.Device:
    """Returns a device of this process.

    Args:
      device: a JAX device, or a name: a platform, with the number of the device after a colon (the first one without).

    Raises:
      ValueError: there is no such device.

    >>> device_of("/device:CPU:0").platform
    'cpu'
    """
    if isinstance(device, jax.Device):
        return device
    matched = _NAME.fullmatch(device)
    try:
        local = jax.local_devices(backend=matched[1].lower()) if matched else []
    except RuntimeError:
        local = []
    index = int(matched[2] or 0) if matched else 0
    if index >= len(local):
        there = ", ".join(f"{known.platform}:{number}" for number, known in enumerate(jax.local_devices()))
        raise ValueError(f"there is no device {device!r} in this process; there are {there}")
    return local[index]

"""An intake to kill: a process that contributes and applies for ever, and notes what it was told."""

import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import modulekit as mk
from scenarios.aggregation import Intake

EACH = 3  # contributions to a version


class Vector(mk.Module):
    """Two variables, large enough that a file of them is not written at a stroke."""

    def __init__(self) -> None:
        super().__init__()
        self.w = mk.Variable(jnp.zeros([20_000]), name="w")
        self.b = mk.Variable(jnp.zeros([]), name="b")


def gradients(version: int, index: int) -> dict[str, Any]:
    """Returns gradients that are a function of what they contribute to."""
    rng = np.random.default_rng([version, index])
    return {"w": rng.normal(size=20_000).astype(np.float32), "b": np.float32(index)}


def step(intake: Intake, optimizer: mk.Optimizer, told: Any = lambda text: None) -> None:
    """Makes one version: contributes what is missing, and applies it."""
    version, there = intake.version, {name for _, name in intake.keys}
    for index in range(EACH):
        if str(index) not in there:
            receipt = intake.submit(gradients(version, index), index + 1, str(index), version)
            if not receipt:
                raise RuntimeError(receipt.reason)
            told(f"accepted {version} {index}\n")
    intake.apply(optimizer)
    told(f"applied {version + 1}\n")


def contribute(folder: Path) -> None:
    """Makes versions for ever; what was acknowledged is in the file `told`."""
    told = os.open(folder / "told", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    intake, optimizer = Intake(Vector(), folder / "intake"), mk.optimizers.Momentum(0.1, 0.9)
    while True:
        step(intake, optimizer, lambda text: os.write(told, text.encode()))

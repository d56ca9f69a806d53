"""A script that several processes may run together: trains on all devices, and prints the history as JSON.

launched.py STEPS PLACEMENT [FOLDER [NON_FINITE]]

With NON_FINITE, one example is not finite, and the run does as that setting says.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

import modulekit as mk
import scenarios


class Net(mk.Module):
    """Batch normalization, dropout and an MLP with a layer that is worth dividing."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dropout, self.mlp = mk.BatchNorm(True, True), mk.Dropout(0.5), mk.nets.MLP([512, 8])

    def __call__(self, x: Any, is_training: bool) -> Any:
        return self.mlp(self.dropout(self.norm(x, is_training=is_training), is_training=is_training))


def main() -> None:
    steps, placement, *folder = sys.argv[1:]
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 16)).astype(np.float32), rng.integers(8, size=200)
    settings: dict[str, Any] = {"batch_size": 32, "log_interval": 10, "eval_interval": 50, "eval_batch_size": 16}
    if len(folder) > 1:
        x[7], settings["non_finite"] = np.nan, folder[1]
    if folder:
        Path(folder[0]).mkdir(parents=True, exist_ok=True)
        Path(folder[0], f"pid_{jax.process_index()}").write_text(str(os.getpid()))
        settings |= {"save_dir": folder[0], "save_interval": 20, "steps_per_call": 5, "data_on_device": False}
    mk.seed(1)
    axes = {"data": -1, "model": min(2, jax.device_count())} if "tensor_parallel" in placement else {"data": -1}
    train = scenarios.Supervised(int(steps), mesh=axes, placement=placement, seed=0, progress=bool(folder), **settings)
    result = train(
        Net(), mk.optimizers.Adam(1e-3), mk.losses.softmax_cross_entropy, data=(x, y), eval_data=(x[:50], y[:50])
    )
    numbers = [value for row in result.history for _, value in sorted(row.items())]
    print(json.dumps({"processes": jax.process_count(), "devices": jax.device_count(), "numbers": numbers}))


if __name__ == "__main__":
    main()

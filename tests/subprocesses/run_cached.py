"""Trains in a process of its own: `run_cached.py STEPS SAVE_DIR CACHE_DIR`; prints what was compiled, and the loss."""

import json
import sys
from collections import Counter
from typing import Any

import jax
import numpy as np

import modulekit as mk
import scenarios

counts: Counter[str] = Counter()
jax.monitoring.register_event_listener(lambda event, **about: counts.update([event.rsplit("/", 1)[-1]]))


def main(steps: str, save_dir: str, cache_dir: str) -> None:
    """Trains a small classifier up to a step."""
    mk.seed(3)
    inputs = np.random.default_rng(0).normal(size=[64, 5]).astype(np.float32)
    parts: dict[str, Any] = {
        "model": mk.nets.MLP([6, 3], dropout_rate=0.3),
        "optimizer": mk.optimizers.Adam(0.01),
        "loss": mk.losses.softmax_cross_entropy,
    }
    mk.build(parts["model"], [1, 5], is_training=False)
    counts.clear()
    fit = scenarios.Supervised(
        int(steps),
        batch_size=8,
        log_interval=10,
        steps_per_call=5,
        save_dir=save_dir,
        cache_dir=cache_dir,
        progress=False,
    )
    result = fit(**parts, data=(inputs, inputs[:, :3].argmax(axis=1)))
    print(
        json.dumps({"hits": counts["cache_hits"], "misses": counts["cache_misses"], "loss": result.history[-1]["loss"]})
    )


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Runs bundles where this library is not; the arguments are a directory of bundles, and one that modulekit stands in.

Prints, for each bundle, the largest difference from what was expected.
"""

import importlib.util
import json
import pathlib
import runpy
import sys

import jax
import numpy as np

bundles = pathlib.Path(sys.argv[1])
assert not any(importlib.util.find_spec(name) for name in ("modulekit", "scenarios", "optax", "orbax", "safetensors"))
differences = {}
for bundle in sorted(path for path in bundles.iterdir() if path.is_dir()):
    program = runpy.run_path(str(bundle / "load.py"))["load"](bundle)
    with np.load(bundles / f"{bundle.name}.npz") as arrays:
        inputs = [arrays[f"input_{i}"] for i in range(sum(name.startswith("input_") for name in arrays))]
        found = jax.tree.leaves(program(*inputs))
        expected = [arrays[f"output_{i}"] for i in range(len(found))]
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
    differences[bundle.name] = max(float(abs(np.asarray(a) - b).max()) for a, b in zip(found, expected, strict=True))
print(json.dumps({"differences": differences, "modules": sorted({name.split(".")[0] for name in sys.modules})}))

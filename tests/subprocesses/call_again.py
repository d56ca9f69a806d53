"""Unpickles a module, calls it in a compiled step that writes, and pickles it again."""

import pickle
import sys
from pathlib import Path

import jax.numpy as jnp
from catalogue import X

import modulekit as mk

folder = Path(sys.argv[1])
module = pickle.loads((folder / "module").read_bytes())
mk.seed(12345)
mk.jit(lambda: (module(X), module.b.assign(jnp.ones([2])))[0])()
(folder / "back").write_bytes(pickle.dumps(module))

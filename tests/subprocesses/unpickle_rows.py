"""Unpickles the modules of a folder, calls them, and writes down what they hold and return.

Arguments: the folder, and the names of the tables that hold the rows.
"""

import importlib
import pickle
import sys
from pathlib import Path

import numpy as np

import modulekit as mk

folder = Path(sys.argv[1])
tables = [importlib.import_module(name) for name in sys.argv[2:]]
for row in [row for table in tables for row in table.ROWS]:
    module = pickle.loads((folder / f"{row.name}.pickle").read_bytes())
    values = {path: variable.numpy() for path, variable in module.paths().items()}
    names = [variable.name for variable in module.paths().values()]
    mk.seed(5)
    output = np.asarray(row.call(module))
    (folder / f"{row.name}.result").write_bytes(pickle.dumps((values, names, output)))

"""`untouched`: calling modules without leaving a trace in them.

A module that trains writes as it runs: statistics of a normalization, vectors of a power iteration. Where it only serves
the training of another module, these must not move. Inside of the context code reads what it wrote; at the end that is
forgotten, and what was written elsewhere is kept. It is a view of the variables, so it works under any transform of ours,
sets no flags, and lets no compiled function be compiled again. Random streams go on: to stop one would repeat its numbers.
"""

import contextlib
from collections.abc import Iterator

from modulekit.core import storage
from modulekit.core.module import Module
from modulekit.core.overlay import Overlay, bakes_reads
from modulekit.core.streams import stream_of


@contextlib.contextmanager
def untouched(*modules: Module) -> Iterator[None]:
    """Context at whose end the variables of some modules are bitwise as they were at its beginning.

    Variables that a module makes inside, on its first call, have their first values. Gradients pass as everywhere else. If
    the context is left by an exception, nothing at all was written.

    Args:
      *modules: what is written to their variables is forgotten, but for random streams.

    Raises:
      TypeError: something is no module.

    >>> import modulekit as mk, jax.numpy as jnp
    >>> average = mk.ExponentialMovingAverage(0.9)
    >>> first = average(1.0)
    >>> with untouched(average):
    ...     second = float(average(3.0))
    >>> round(second, 4), float(average.value)
    (2.0526, 1.0)
    """
    for module in modules:
        if not isinstance(module, Module):
            raise TypeError(f"mk.untouched takes modules, got {module!r} (a {type(module).__name__})")
    with Overlay(baked=bakes_reads()) as running:
        yield
    held = {variable for module in modules for variable in module.paths().values() if stream_of(variable) is None}
    kept = [variable for variable in running.written if variable not in held]
    storage.commit(kept, [running.values[variable] for variable in kept], running.written)

"""The contenders of the benchmark, one in each file here, which names it `CONTENDER`.

A file is called after the contender, with `_` for a space, and its first word is the package that it needs: `flax.py` takes
part where flax is installed. A new file is all that a further library needs.
"""

import importlib
import importlib.util
import pkgutil

from tests.benchmarks.contender import Contender

_FIRST = ("jax", "jax fused", "modulekit", "modulekit scenario")  # and the others by name


def installed() -> list[str]:
    """Returns the names of those whose package can be imported."""
    found = sorted(module.name.replace("_", " ") for module in pkgutil.iter_modules(__path__))
    names = [*_FIRST, *(name for name in found if name not in _FIRST)]
    return [name for name in names if importlib.util.find_spec(name.split()[0]) is not None]


def load(name: str) -> Contender:
    """Returns a contender, and imports its library."""
    contender: Contender = importlib.import_module(f"{__name__}.{name.replace(' ', '_')}").CONTENDER
    return contender

"""What is switched on around the running code, and changes what the same code computes.

A program that was compiled under one `Around` does not serve under another: compiled functions keep their programs apart
by `key()`. While nothing is switched on, the key is None and costs a comparison. JAX's own caches are kept apart where what
they hold may depend on it: by taps, mode and portable always; by getters and cast only where a cached trace may read
variables.
"""

import contextlib
import threading
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from modulekit.core import foreign, overlay

UNSET = "unset"


class Around(NamedTuple):
    """What one thread has switched on.

    Attributes:
      taps: `find_nonfinite` looks at values.
      getters: those of `custom_variable_getter`, outermost first.
      compute_dtype: what variables of floating dtype are cast to when they are read; None for no cast.
      variable_dtype: of the variables that are made meanwhile.
      mode: the mixed-precision mode of the innermost `scope`; `UNSET` outside, where `everywhere.mode` counts.
      portable: the program is for other processes, in operations that any compiler and reader knows.
    """

    taps: bool = False
    getters: tuple[Any, ...] = ()
    compute_dtype: Any = None
    variable_dtype: Any = None
    mode: Any = UNSET
    portable: bool = False


class _Thread(threading.local):
    around = Around()


class _Everywhere:
    """What `mixed_precision.enable` has set, for all threads."""

    mode: Any = None


NOTHING = _Thread.around
thread = _Thread()
everywhere = _Everywhere()
_caches_apart = jax.make_user_context((NOTHING.taps, NOTHING.mode, NOTHING.portable))


def now() -> Around:
    """Returns what is switched on in this thread."""
    return thread.around


def key() -> Hashable:
    """Returns what programs are kept apart by: None while nothing is switched on."""
    if thread.around is NOTHING and everywhere.mode is None:
        return None
    return None if (thread.around, everywhere.mode) == (NOTHING, None) else (thread.around, everywhere.mode)


@contextlib.contextmanager
def changed(**fields: Any) -> Iterator[None]:
    """Context in which some fields of `Around` are others.

    Args:
      **fields: by name.
    """
    before = {name: getattr(thread.around, name) for name in fields}
    thread.around = thread.around._replace(**fields)
    try:
        with _apart(fields):
            yield
    finally:
        thread.around = thread.around._replace(**before)


def _apart(fields: Mapping[str, Any]) -> contextlib.AbstractContextManager[Any]:
    if fields.keys() & {"taps", "mode", "portable"}:
        return _caches_apart((thread.around.taps, thread.around.mode, thread.around.portable))
    # Other functions read no variables while JAX traces them, and a getter that was a key would live as long as the cache.
    return foreign.caches_apart(object()) if overlay.is_isolated() else contextlib.nullcontext()

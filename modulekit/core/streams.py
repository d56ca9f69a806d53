"""Which variables are the key and the counter of a random stream: transforms and freezing treat them apart."""

import weakref
from collections.abc import Iterable
from typing import Any

from modulekit.core.variable import Variable

# A stream holds its variables, so that what leads back from them must not hold it.
_streams: weakref.WeakKeyDictionary[Variable, weakref.ref[Any]] = weakref.WeakKeyDictionary()


def register(stream: Any, variables: Iterable[Variable]) -> None:
    """Notes the variables of a stream."""
    _streams.update(dict.fromkeys(variables, weakref.ref(stream)))


def stream_of(part: Variable) -> Any:
    """Returns the `RandomStream` whose key or counter a variable is, None if it is no stream's."""
    stream = _streams.get(part)
    return None if stream is None else stream()

"""The storage of many variables at once, for compiled steps. Nothing else reads or replaces arrays in bulk."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from modulekit.core import finite, overlay, provenance
from modulekit.core.variable import Variable


def stored_arrays(variables: Sequence[Variable]) -> list[jax.Array]:
    """Returns the arrays of `variables`, as they are."""
    return [variable._array for variable in variables]


def own(variables: Sequence[Variable]) -> None:
    """Makes the arrays of `variables` safe to donate: those that are known outside are replaced by copies."""
    for variable in variables:
        if variable._lent:
            variable._lent = False
            array = variable._array
            place = array.sharding if array.committed else None  # else it could not join those on several devices
            variable._array = jax.device_put(array, place, may_alias=False)


def store_arrays(variables: Sequence[Variable], arrays: Sequence[jax.Array]) -> None:
    """Replaces the arrays of `variables` by those that a program has just made and nobody else holds."""
    for variable, array in zip(variables, arrays, strict=True):
        variable._array = array


def commit(
    variables: Sequence[Variable], values: Sequence[Any], writers: Mapping[Variable, provenance.Origin] | None = None
) -> None:
    """Writes the new values that a transform returned, to the overlay around it or to the variables themselves.

    Args:
      variables: those that its function wrote.
      values: their new values.
      writers: the lines that wrote them; the line that called the transform where they are not known.
    """
    if not variables:
        return
    variables[0].check_writable()
    finite.finish(values)
    running, caller = overlay.active(), provenance.user_line()
    for variable, value in zip(variables, values, strict=True):
        writer = (writers or {}).get(variable, caller)
        if running is not None:
            running.write(variable, value, writer)
        else:
            variable.replace(value, writer)

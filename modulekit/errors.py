"""The errors that are modulekit's own.

Wrong arguments raise Python's `ValueError` and `TypeError`. The classes here name the two situations that have no
name in Python: a variable used where no correct result is possible, and a function that never settles while traced.
"""


class ForeignTransformError(RuntimeError):
    """A variable was read or written inside a JAX transform that modulekit does not manage, where that would be wrong."""


class UnsettledTraceError(RuntimeError):
    """A function makes new variables every time it is traced, so that no compiled program can stand for it."""


class NonFiniteValueError(FloatingPointError):
    """A value that is not finite has appeared while `mk.find_nonfinite` was on; the message names where first."""


class RetraceError(RuntimeError):
    """A compiled function would be traced more often than `max_traces` allows; the message says why."""


class TieWarning(UserWarning):
    """Replacing an attribute takes a variable away from another module that shares it."""


class CheckpointError(RuntimeError):
    """A saved state cannot be read, or does not fit the objects that it is restored into."""

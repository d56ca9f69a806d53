"""The errors that are modulekit's own.

Wrong arguments raise Python's `ValueError` and `TypeError`. The classes here name the two situations that have no
name in Python: a variable used where no correct result is possible, and a function that never settles while traced.
"""


class ForeignTransformError(RuntimeError):
    """A variable was read or written inside a JAX transform that modulekit does not manage, where that would be wrong.

    >>> import jax, modulekit as mk
    >>> w = mk.Variable(1.0, name="w")
    >>> jax.jit(lambda: 2 * w)()  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    modulekit.errors.ForeignTransformError: variable 'w' is read inside a plain JAX transform ...
    """


class UnsettledTraceError(RuntimeError):
    """A function makes new variables every time it is traced, so that no compiled program can stand for it.

    >>> import modulekit as mk
    >>> mk.jit(lambda: 2 * mk.Variable(1.0))()  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    modulekit.errors.UnsettledTraceError: mk.jit cannot compile a function that makes new variables each time it runs: ...
    """


class NonFiniteValueError(FloatingPointError):
    """A value that is not finite has appeared while `mk.find_nonfinite` was on; the message names where first.

    >>> import modulekit as mk, jax.numpy as jnp
    >>> with mk.find_nonfinite():
    ...     mk.Linear(2)(jnp.array([[jnp.inf]]))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    modulekit.errors.NonFiniteValueError: forward pass of the code outside of all modules, ...
    """


class RetraceError(RuntimeError):
    """A compiled function would be traced more often than `max_traces` allows; the message says why.

    >>> import modulekit as mk, jax.numpy as jnp
    >>> double = mk.jit(lambda x: 2 * x, max_traces=1)
    >>> _ = double(jnp.ones([2]))
    >>> double(jnp.ones([3]))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    modulekit.errors.RetraceError: <lambda> retraced: argument x f32[2] → f32[3]. This would be trace 2, and max_traces=1...
    """


class TieWarning(UserWarning):
    """Replacing an attribute takes a variable away from another module that shares it.

    >>> import warnings, modulekit as mk, jax.numpy as jnp
    >>> encode = mk.Linear(3)
    >>> decode = encode.transpose()
    >>> _ = decode(encode(jnp.ones([2, 5])))
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     encode.w = mk.Variable(jnp.zeros([5, 3]), name="w")
    >>> caught[0].category.__name__, decode.w is encode.w
    ('TieWarning', False)
    """


class CheckpointError(RuntimeError):
    """A saved state cannot be read, or does not fit the objects that it is restored into.

    >>> import tempfile, modulekit as mk
    >>> from modulekit.checkpoints import CheckpointStore
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     CheckpointStore(directory).restore(5)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    modulekit.errors.CheckpointError: ... holds no complete state of step 5: []
    """

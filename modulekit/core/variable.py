"""A variable: a named box around one array.

The life of a variable. It is made once, usually by a module's `@once` method, with a concrete array. `.value` reads it,
`.assign` replaces the array after a check of shape and dtype. While a transform traces, reads and writes go to the
overlay (`overlay.py`), and the box itself changes only when the transform has returned. Equality and hash are identity:
a variable used in two places is one array, one gradient and one entry in a checkpoint.

The box owns its array. A compiled step donates the arrays that it overwrites, and an array that came from the user or
was handed out to the user must survive that: such a box is marked as lent until `own` has given it a copy. Between
compiled steps a small variable may lie in a buffer with others (`packs.py`): then the box holds its place there.

A frozen variable stays as it is: it counts as not trainable, optimizers pass over it, and what the code of a module
writes to it is dropped. An assignment from outside all modules is meant, and is done.
"""

import logging
import math
import weakref
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from modulekit.core import births, context, foreign, getters, names, overlay, provenance, trial
from modulekit.core.arithmetic import Arithmetic, ArrayLike, value_of
from modulekit.core.counters import changes, lendings
from modulekit.core.explain import summarize
from modulekit.core.packs import Place, vacate
from modulekit.core.processes import put

_log = logging.getLogger("modulekit")


@final
class Variable(Arithmetic):
    """A named box around one `jax.Array` of fixed shape and dtype.

    Arithmetic, `@`, indexing and comparisons other than `==` are forwarded to the value, so that `x @ self.w + self.b`
    reads like the equation. Functions of `jax.numpy` and `jax.lax` take the `.value`.

    Args:
      initial_value: an array, a NumPy array or a number; copied, so that the variable owns it.
      trainable: whether `Module.trainable_variables` lists it.
      name: the last part of its name; the scopes around come before it.
      dtype: the dtype to convert to; the value's own if None.

    Raises:
      TypeError: the value is a tracer, so that it would outlive its trace, or no array.

    Source: TensorFlow 2, `tf.Variable`, which is what a module of Sonnet 2 holds.

    >>> v = Variable(jnp.ones([2, 3]), name="w")
    >>> v.assign_add(jnp.ones([2, 3]))
    >>> v
    Variable('w', float32[2,3])
    """

    __slots__ = (
        "__weakref__", "_frozen", "_held", "_holders", "_lent", "_name", "_origin", "_tallies", "_trainable", "_version",
        "_written",
    )  # fmt: skip

    def __init__(
        self,
        initial_value: ArrayLike,
        trainable: bool = True,
        name: str = "Variable",
        dtype: Any = None,
    ) -> None:
        self._name = names.qualified(name)
        self._origin = provenance.user_line()
        self._trainable, self._frozen = bool(trainable), False
        self._tallies: tuple[tuple[provenance.Tally, int], ...] = ()
        self._holders: tuple[tuple[Any, str], ...] = ()
        self._held: Any = _initial_array(initial_value, dtype, self._name)
        self._version, self._written = 0, (provenance.now(), self._origin)
        self._lend()
        births.note(self)
        running = overlay.active()
        if running is not None:
            running.born[self] = None

    # What it is.

    @property
    def name(self) -> str:
        """The full scope name, such as `mlp/linear_0/w`. Default names may repeat; attribute paths do not."""
        return self._name

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, fixed at construction; inside `mk.vmap`, that of one lane."""
        running = overlay.active()
        return tuple((self._held if running is None else running.form(self, self._held)).shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype, fixed at construction."""
        return np.dtype(self._held.dtype)

    @property
    def ndim(self) -> int:
        """The number of axes; inside `mk.vmap`, that of one lane."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements; inside `mk.vmap`, that of one lane."""
        return math.prod(self.shape)

    @property
    def origin(self) -> provenance.Origin:
        """The file and line that made the variable."""
        return self._origin

    @property
    def version(self) -> int:
        """How often the variable was written; a compiled step counts as one write, a value not yet changed as none."""
        return self._version + sum(tally.count - before for tally, before in self._tallies)

    @property
    def last_writer(self) -> provenance.Origin:
        """The file and line of the last write, in a compiled step the line in it; of the construction, if there was none."""
        latest = max((tally for tally, _ in self._tallies), key=lambda tally: tally.time, default=None)
        if latest is None or latest.time < self._written[0]:
            return self._written[1]
        return latest.writers.get(self, self._written[1])

    @property
    def frozen(self) -> bool:
        """Whether the variable is kept as it is; see `Module.freeze`."""
        return self._frozen

    @property
    def trainable(self) -> bool:
        """Whether `Module.trainable_variables` lists it; not while it is frozen. Compiled functions notice a change."""
        return self._trainable and not self._frozen

    @trainable.setter
    def trainable(self, trainable: bool) -> None:
        if bool(trainable) != self._trainable:
            self._trainable = bool(trainable)
            changes.count += 1

    # Reading and writing.

    @property
    def value(self) -> jax.Array:
        """The current array, as `custom_variable_getter` and mixed precision let it be seen.

        It is a tracer while one of modulekit's transforms traces.

        Raises:
          ForeignTransformError: a plain JAX transform would bake the value into a compiled program.
        """
        around = context.thread.around
        if around is not context.NOTHING and (around.getters or around.compute_dtype is not None):
            seen: jax.Array = getters.as_seen(self)
            return seen
        return self.current()

    def current(self) -> jax.Array:
        """Returns the current array as it is, whatever getters and casts are switched on; else as `.value`."""
        running = overlay.active()
        if running is not None:
            return _traceable(self, running.read(self))
        if not overlay.is_concrete() and not foreign.untraced() and foreign.stages():
            raise foreign.refuse_read(self.describe())
        return _traceable(self, self.stored())

    def assign(self, value: ArrayLike) -> None:
        """Replaces the value.

        Args:
          value: an array of the variable's shape and dtype, or a number for a scalar variable.

        Raises:
          ValueError: another shape or dtype; the message names the variable. A number fits any floating dtype, and an
            array of JAX's default float32 also a variable of half precision.
          ForeignTransformError: inside a plain JAX transform; the old value stays.
        """
        self.check_writable()
        new = self.conforming(value)
        if self._frozen and self._is_written_by_a_module():
            return
        running = overlay.active()
        if running is not None:
            running.write(self, new)
            return
        if births.is_traced():
            self._held = new
            return
        if isinstance(new, jax.core.Tracer):
            raise TypeError(f"{self.describe()} is assigned a tracer that outlived its transform: {new}")
        self.replace(_placed_as(self._held, new), provenance.user_line())

    def assign_add(self, value: ArrayLike) -> None:
        """Adds `value` (an array of the variable's shape, or a number) to the variable."""
        change = self._change(value)
        self.assign(self.current() + change)

    def assign_sub(self, value: ArrayLike) -> None:
        """Subtracts `value` (an array of the variable's shape, or a number) from the variable."""
        change = self._change(value)
        self.assign(self.current() - change)

    def freeze(self) -> None:
        """Keeps the variable as it is until `thaw`; compiled functions notice."""
        changes.count += not self._frozen
        self._frozen = True

    def thaw(self) -> None:
        """Ends `freeze`."""
        changes.count += self._frozen
        self._frozen = False

    def _is_written_by_a_module(self) -> bool:
        modules = [frame.module for frame in names.frames() if frame.module is not None]
        if modules:
            _log.debug("%r does not change frozen %s", modules[-1], self.describe())
        return bool(modules)

    def replace(self, array: jax.Array, writer: provenance.Origin) -> None:
        """Puts an array of the right form into the box itself, outside of all transforms."""
        trial.note([self])
        vacate(self._held)
        self._held, self._version = array, self._version + 1
        self._written = (provenance.now(), writer)
        self._lend()

    def count_writes_of(self, tally: provenance.Tally) -> None:
        """Lets the runs of a compiled program count among the writes."""
        if all(known is not tally for known, _ in self._tallies):
            self._tallies = (*self._tallies, (tally, tally.count))

    def hold(self, module: Any, attribute: str) -> None:
        """Notes that an attribute of a module is this variable."""
        alive = (
            (weakref.ref(holder), name) for holder, name in self.holders() if (holder, name) != (module, attribute)
        )
        self._holders = (*alive, (weakref.ref(module), attribute))

    def holders(self) -> list[tuple[Any, str]]:
        """Returns the modules that have this variable for an attribute, with the attribute's name."""
        alive = ((reference(), attribute) for reference, attribute in self._holders)
        return [(module, name) for module, name in alive if module is not None and vars(module).get(name) is self]

    def like(self, value: ArrayLike) -> "Variable":
        """Returns another variable of the same name and flags, with a value of any shape."""
        scope, _, last = self._name.rpartition("/")
        with names.absolute(scope):
            made = Variable(value, self._trainable, last)
        made._frozen = self._frozen
        return made

    def stored(self) -> jax.Array:
        """Returns the array that the box itself holds, whatever is being traced, and counts it as handed out."""
        if isinstance(self._held, Place):
            return self._held.array()
        self._lend()
        return self._held

    def _change(self, value: ArrayLike) -> ArrayLike:
        self.check_writable()
        change = value_of(value)
        if jnp.shape(change) not in ((), self.shape):
            raise ValueError(
                f"{self.describe()} has shape {list(self.shape)} and cannot be changed by shape {list(jnp.shape(change))}: "
                "give an array of its shape, or a number"
            )
        return change

    def check_writable(self) -> None:
        """Raises `ForeignTransformError` inside a plain JAX transform."""
        running = overlay.active()
        at_home = foreign.untraced() if running is None else running.is_home()
        if not at_home and not overlay.is_concrete():
            raise foreign.refuse_write(self.describe())

    def _lend(self) -> None:
        self._lent = True
        lendings.count += 1

    def describe(self) -> str:
        """Returns name and path for messages: `variable 'mlp/linear_0/w' (layers[0].w of MLP(...))`."""
        for frame in names.frames():
            if frame.module is not None:
                path = frame.module.path_of(self)
                if path is not None:
                    return f"variable {self._name!r} (path {path} in {frame.module!r})"
        return f"variable {self._name!r}"

    def conforming(self, value: ArrayLike) -> jax.Array:
        """Returns `value` as an array that the variable can take; raises `ValueError` if it cannot."""
        array = jnp.asarray(value_of(value))
        if tuple(array.shape) != self.shape:
            raise ValueError(
                f"{self.describe()} has shape {list(self.shape)} and cannot be assigned shape {list(array.shape)}: "
                "a variable keeps its shape"
            )
        if array.dtype != self._held.dtype and not _converts(array, self._held.dtype):
            raise ValueError(
                f"{self.describe()} has dtype {self.dtype} and cannot be assigned dtype {array.dtype}: "
                f"convert the value, as in value.astype('{self.dtype}')"
            )
        if array.dtype == self._held.dtype and not array.weak_type:
            return array
        return lax.convert_element_type(array, self._held.dtype)

    # Copies. A copy is a variable of its own with the same name and value.

    def __getstate__(self) -> dict[str, Any]:
        return state_of(self, np.asarray(self.current()))

    def __setstate__(self, state: dict[str, Any]) -> None:
        array = state["array"]
        self._held = array if isinstance(array, jax.ShapeDtypeStruct) else jnp.array(array)
        self._name, self._trainable = state["name"], state["trainable"]
        self._origin, self._frozen = provenance.Origin(*state["origin"]), state["frozen"]
        self._tallies, self._holders = (), ()
        self._version, self._written = state["version"], (provenance.now(), provenance.Origin(*state["writer"]))
        self._lend()

    def __bool__(self) -> bool:
        raise TypeError(f"{self.describe()} has no truth value: test its .value, or compare it with `is None`")

    def __repr__(self) -> str:
        text = f"{self.dtype}[{','.join(str(size) for size in self.shape)}]"
        flags = ("" if self._trainable else ", trainable=False") + (", frozen" if self._frozen else "")
        return f"Variable({self._name!r}, {text}{flags})"


def state_of(variable: Variable, array: Any) -> dict[str, Any]:
    """Returns what a variable is pickled as, with any array, or a `jax.ShapeDtypeStruct` to pickle it without its value."""
    return {
        "array": array, "name": variable.name, "origin": tuple(variable.origin), "trainable": variable._trainable,
        "frozen": variable.frozen, "version": variable.version, "writer": tuple(variable.last_writer),
    }  # fmt: skip


def _traceable(variable: Variable, value: Any) -> Any:
    """Returns a value that was read; for one that does not exist, something of its form, if the reader only traces."""
    if type(value) is not jax.ShapeDtypeStruct:
        return value
    if not foreign.stages():
        raise TypeError(f"{variable.describe()} has no value: it is planned, and only its shape and dtype are known")
    return jnp.zeros(value.shape, value.dtype)


def _converts(array: jax.Array, wanted: Any) -> bool:
    """Returns whether an array of another dtype may be assigned: a Python number, or float32 to half precision."""
    if array.weak_type:
        kinds = ((jnp.integer, jnp.number), (jnp.floating, jnp.inexact), (jnp.complexfloating, jnp.complexfloating))
        return any(jnp.issubdtype(array.dtype, given) and jnp.issubdtype(wanted, kind) for given, kind in kinds)
    return array.dtype == jnp.float32 and wanted in (jnp.float16, jnp.bfloat16)


def _placed_as(held: jax.Array | Place | jax.ShapeDtypeStruct, array: jax.Array) -> jax.Array:
    """Returns an array that lies as the one held, where that is on several devices."""
    if not isinstance(held, jax.Array) or len(held.sharding.device_set) == 1:
        return array
    return put(array, held.sharding)


def _initial_array(value: ArrayLike, dtype: Any, name: str) -> jax.Array:
    if callable(value) and not isinstance(value, jax.Array | np.ndarray):
        value = value()
    value = value_of(value)
    if births.is_traced():
        return _of_dtype(value, dtype)
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"variable {name!r} would be made from a traced value ({summarize(value)}), which does not outlive its "
            "trace. Make it in a method under @mk.once, from shapes and initializers and not from traced inputs"
        )
    with overlay.concrete():
        return _of_dtype(value, dtype)


def _of_dtype(value: ArrayLike, dtype: Any) -> jax.Array:
    array = value if isinstance(value, jax.Array) else jnp.array(value)
    wanted = array.dtype if dtype is None else jnp.dtype(dtype)
    return lax.convert_element_type(array, wanted) if array.dtype != wanted or array.weak_type else array

"""Refuse or commit, for a variable as an argument of a transform, plain or ours.

The function is handed the variable itself, which it may write; or an array in its place, which has no `assign`; or the
call raises and says to pass `.value`. A gradient with respect to the variable goes through an argument as it goes
through a closure.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modulekit as mk
from modulekit.errors import ForeignTransformError

Function = Callable[..., Any]
XS = jnp.arange(1.0, 4.0)
YES = jnp.array(True)


def reads(v: Any, x: Any) -> Any:
    return v * x


def writes(v: Any, x: Any) -> Any:
    v.assign_add(1.0)  # HERE
    return v * x


def step_of(f: Function) -> Function:
    return lambda v, x: (v, f(v, x))


def body_of(f: Function) -> Function:
    return lambda loop: (loop[0], loop[1] + 1, loop[2] + f(loop[0], loop[2]))


def unfinished(loop: Any) -> Any:
    return loop[1] < 2


def traced(f: Function, v: mk.Variable) -> Any:
    """Returns what `jax.make_jaxpr` finds out about a functionalized function: shape and dtype of the result."""
    pure, values = mk.functionalize(f, [v])
    return jax.make_jaxpr(pure, return_shape=True)(values, v, 2.0)[1][0]


# Each row is run as row(f, v), and compared with what it means on plain numbers: meaning(value of v).
MEANINGS: dict[str, Callable[[float], Any]] = {
    "call": lambda v: v * 2.0,
    "gradient": lambda v: (v * 2.0, v),
    "own gradient": lambda v: (v * 2.0, [2.0]),
    "lanes": lambda v: v * XS,
    "scan": lambda v: (v, v * XS),
    "loop": lambda v: (v, 2, 2.0 * (1 + v) ** 2),
    "specification": lambda v: jax.ShapeDtypeStruct((), jnp.float32),
}
PLAIN: dict[str, tuple[str, Callable[[Function, Any], Any]]] = {
    "jit": ("call", lambda f, v: jax.jit(f)(v, 2.0)),
    "grad": ("own gradient", lambda f, v: jax.value_and_grad(f)(v, 2.0)),
    "grad of another": ("gradient", lambda f, v: jax.value_and_grad(f, argnums=1)(v, 2.0)),
    "vmap": ("lanes", lambda f, v: jax.vmap(f)(v, XS)),
    "vmap by None": ("lanes", lambda f, v: jax.vmap(f, (None, 0))(v, XS)),
    "scan": ("scan", lambda f, v: jax.lax.scan(step_of(f), v, XS)),
    "scan over it": ("call", lambda f, v: jax.lax.scan(lambda c, x: (c, x), 0.0, v)),
    "cond": ("call", lambda f, v: jax.lax.cond(YES, f, lambda v, x: x, v, 2.0)),
    "while_loop": ("loop", lambda f, v: jax.lax.while_loop(unfinished, body_of(f), (v, 0, 2.0))),
    "checkpoint": ("call", lambda f, v: jax.checkpoint(f)(v, 2.0)),
    "eval_shape": ("specification", lambda f, v: jax.eval_shape(f, v, 2.0)),
    "make_jaxpr": ("specification", lambda f, v: jax.make_jaxpr(f, return_shape=True)(v, 2.0)[1]),
}
OURS: dict[str, tuple[str, Callable[[Function, Any], Any]]] = {
    "jit": ("call", lambda f, v: mk.jit(f)(v, 2.0)),
    "grad": ("own gradient", lambda f, v: mk.value_and_grad(f, [v])(v, 2.0)),
    "vmap by None": ("lanes", lambda f, v: mk.vmap(f, (None, 0), writes="mean")(v, XS)),
    "scan": ("scan", lambda f, v: mk.scan(step_of(f), v, XS)),
    "cond": ("call", lambda f, v: mk.cond(YES, f, lambda v, x: x, v, 2.0)),
    "while_loop": ("loop", lambda f, v: mk.while_loop(unfinished, body_of(f), (v, 0, 2.0))),
    "checkpoint": ("call", lambda f, v: mk.remat(f)(v, 2.0)),
    "eval_shape": ("specification", lambda f, v: mk.eval_shape(f, v, 2.0)),
    "make_jaxpr": ("specification", traced),
}
SIDES = {"plain": PLAIN, "ours": OURS}

# What reading and writing do: exact, refused, or "array" where the function is handed an array in place of the variable.
TABLE = {
    ("plain", "jit"): ("refused", "array"),
    ("plain", "grad"): ("refused", "refused"),
    ("plain", "grad of another"): ("exact", "refused"),
    ("plain", "vmap"): ("refused", "refused"),
    ("plain", "vmap by None"): ("exact", "refused"),
    ("plain", "scan"): ("refused", "refused"),
    ("plain", "scan over it"): ("refused", "refused"),
    ("plain", "cond"): ("refused", "refused"),
    ("plain", "while_loop"): ("refused", "refused"),
    ("plain", "checkpoint"): ("refused", "array"),
    ("plain", "eval_shape"): ("exact", "array"),
    ("plain", "make_jaxpr"): ("exact", "array"),
    ("ours", "jit"): ("exact", "exact"),
    ("ours", "grad"): ("exact", "exact"),
    ("ours", "vmap by None"): ("exact", "array"),
    ("ours", "scan"): ("exact", "array"),
    ("ours", "cond"): ("exact", "array"),
    ("ours", "while_loop"): ("exact", "array"),
    ("ours", "checkpoint"): ("exact", "array"),
    ("ours", "eval_shape"): ("exact", "exact"),
    ("ours", "make_jaxpr"): ("exact", "array"),
}
CELLS = [
    (*key, use, outcome)
    for key, outcomes in TABLE.items()
    for use, outcome in zip((reads, writes), outcomes, strict=True)
]


def test_the_table_has_every_transform() -> None:
    assert set(TABLE) == {(side, name) for side, rows in SIDES.items() for name in rows}


def assert_same(actual: Any, expected: Any) -> None:
    if isinstance(expected, jax.ShapeDtypeStruct):
        assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
        return
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.float32(b)), actual, expected)


@pytest.mark.parametrize(("side", "name", "use", "outcome"), [cell for cell in CELLS if cell[-1] == "exact"])
def test_an_exact_cell_gives_the_result_of_the_current_value_and_keeps_its_writes(
    side: str, name: str, use: Function, outcome: str
) -> None:
    meaning, run = SIDES[side][name]
    v = mk.Variable(3.0, name="v")
    for value in (3.0, 5.0):
        v.assign(value)
        result = run(use, v)
        after = value + 1.0 if use is writes and meaning != "specification" else value
        assert_same(result, MEANINGS[meaning](after))
        assert float(v) == after


@pytest.mark.parametrize(("side", "name", "use", "outcome"), [cell for cell in CELLS if cell[-1] != "exact"])
def test_another_cell_raises_at_the_users_line_and_the_value_stays(
    side: str, name: str, use: Function, outcome: str
) -> None:
    v = mk.Variable(3.0, name="v")
    for value in (3.0, 5.0):
        v.assign(value)
        with pytest.raises((TypeError, AttributeError, ForeignTransformError)) as raised:
            SIDES[side][name][1](use, v)
        line = [str(entry.statement) for entry in raised.traceback if str(entry.path) == __file__][-1]
        if outcome == "array":
            assert raised.type is AttributeError and "assign_add" in str(raised.value)
            assert "# HERE" in line
        elif raised.type is ForeignTransformError:
            assert "variable 'v' is written" in str(raised.value) and "Use mk." in str(raised.value)
            assert "# HERE" in line
        else:
            assert "modulekit.core.variable.Variable' (pass its .value to JAX functions)" in str(raised.value)
        assert float(v) == value


HANDED: dict[str, Callable[[mk.Variable], Any]] = {
    "jit": lambda v: mk.jit(reads)(v, 2.0),
    "vmap": lambda v: mk.vmap(reads, (None, 0))(v, jnp.full([2], 2.0)).mean(),
    "scan": lambda v: mk.scan(step_of(reads), v, jnp.array([2.0]))[1].sum(),
    "fori_loop": lambda v: mk.fori_loop(0, 1, lambda _, total: total * 2.0, v),
    "cond": lambda v: mk.cond(YES, reads, lambda v, x: x, v, 2.0),
    "switch": lambda v: mk.switch(0, [reads], v, 2.0),
    "checkpoint": lambda v: mk.remat(reads)(v, 2.0),
    "plain vmap": lambda v: jax.vmap(reads, (None, 0))(v, jnp.full([2], 2.0)).mean(),
}


@pytest.mark.parametrize("name", HANDED)
def test_a_gradient_goes_through_a_variable_that_is_an_argument(name: str) -> None:
    v = mk.Variable(3.0, name="v")
    for value in (3.0, 5.0):
        v.assign(value)
        for transform in (mk.value_and_grad, lambda *args: mk.jit(mk.value_and_grad(*args))):
            loss, gradients = transform(lambda: HANDED[name](v), [v])()
            assert (float(loss), [float(g) for g in gradients]) == (2 * value, [2.0])

"""Laws of `mk.find_nonfinite` on what is finite, and after it has raised: apart from the message, it has no effect."""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import catalogue
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import ROWS, Row, X, assert_bitwise, assert_near, name_of, state

import modulekit as mk
import scenarios
from modulekit.errors import NonFiniteValueError

ZERO = np.zeros([4, 3], np.float32)
BAD = np.where(X > 1, np.nan, X).astype(np.float32)


class Log(mk.Module):
    """The logarithm."""

    def __call__(self, x: Any, *others: Any) -> Any:
        return jnp.log(x)


def found(run: Callable[..., Any], *args: Any) -> str:
    """Returns what `find_nonfinite` says of a call."""
    with pytest.raises(NonFiniteValueError) as raised, mk.find_nonfinite():
        run(*args)
    return str(raised.value)


def watched(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with mk.find_nonfinite():
        return jax.block_until_ready(run(*args, **kwargs))


WATCHED = [row for row in ROWS if row.name in ("random_stream", "moving_average", "tied_pair", "by_name")]


@pytest.mark.parametrize("row", WATCHED, ids=name_of)
def test_outputs_and_state_are_bitwise_the_same_step_by_step(row: Row) -> None:
    plain = row.fresh()
    expected, after = row.call(plain), state(plain)
    model = row.fresh()
    actual = watched(lambda: row.call(model))
    np.testing.assert_array_equal(np.asarray(actual), np.asarray(expected), strict=True)
    assert_bitwise(state(model), after)


@pytest.mark.parametrize("row", WATCHED[:2], ids=name_of)
def test_compiled_training_is_the_same_up_to_the_order_of_additions(row: Row) -> None:
    # Not bitwise: a tap stands between two modules, so that XLA does not fuse across it.
    states = []
    for run in (lambda step, *args: step(*args), watched):
        model, optimizer = row.fresh(), mk.optimizers.Momentum(1e-2, 0.9)
        step = mk.jit(
            lambda *inputs, model=model, optimizer=optimizer: optimizer.minimize(
                lambda: row.loss(model, *inputs), model
            )
        )
        losses = [run(step, *inputs) for inputs in zip(*row.steps(2), strict=True)]
        states.append((losses, [v.value for v in (*model.variables, *optimizer.variables)]))
    assert_near(states[1], states[0])


def test_a_compiled_step_that_raised_has_changed_nothing() -> None:
    layer, dropout, optimizer = catalogue.Averaging(), mk.Dropout(0.5), mk.optimizers.Adam(1e-2)

    @mk.jit
    def step(x: Any) -> Any:
        return optimizer.minimize(lambda: jnp.square(dropout(layer(x), True)).mean(), layer)

    step(X)
    before, slots, versions = state(layer), state(optimizer), [v.version for v in layer.variables]
    for _ in range(2):
        assert found(step, BAD) == (
            "forward pass of the code that calls it, in the input of Averaging(): 2 nan and 0 inf among 20 values. "
            "It was called with float32[4,5]; " + f"built at {layer.count.origin}."
        )
        assert_bitwise(state(layer), before)
        assert_bitwise(state(optimizer), slots)
    assert [v.version for v in layer.variables] == versions
    step(X)
    assert int(optimizer.step) == int(layer.count) == 2


def test_a_derivative_that_raised_step_by_step_has_changed_nothing() -> None:
    layer = catalogue.Averaging()
    layer(X)
    before = state(layer)
    assert "in the loss" in found(mk.value_and_grad(lambda: jnp.log(layer(X).sum() * 0), layer))
    assert_bitwise(state(layer), before)
    assert "in the gradient that reaches" in found(mk.grad(lambda: jnp.sqrt(layer(X).sum() * 0), layer))
    assert_bitwise(state(layer), before)


def test_the_program_of_a_step_is_the_same_before_and_after_and_has_callbacks_only_inside() -> None:
    model = mk.nets.MLP([4, 3])
    model(X)
    step = mk.jit(lambda x: mk.grad(lambda: model(x).sum(), model)())
    before = step.lower(X).as_text()
    with mk.find_nonfinite():
        step(X)
        inside = step.lower(X).as_text()
    found(step, BAD)
    assert step.lower(X).as_text() == before
    assert "callback" not in before
    assert "callback" in inside


def test_a_compiled_step_goes_on_with_the_program_it_had() -> None:
    model = mk.nets.MLP([4, 3])
    step = mk.jit(lambda x: model(x))
    first = step(X)
    for _ in range(2):
        found(step, BAD)
        np.testing.assert_array_equal(np.asarray(step(X)), np.asarray(first))
    assert step.traces == ("<lambda> traced: argument x f32[4,5]",)
    assert np.isnan(np.asarray(step(BAD))).any()  # nothing looks any more


def test_programs_that_jax_keeps_get_taps_inside_and_lose_them_outside() -> None:
    model = mk.Sequential([mk.Linear(3), Log()])
    model(X)
    for is_warm in (True, False):
        pure, values = mk.functionalize(model, model)
        compiled = jax.jit(pure)
        if is_warm:
            compiled(values, X)
        assert found(compiled, values, X * 0) == (
            "forward pass of layers[1] = Log(), in its output: 0 nan and 12 inf among 12 values. "
            "It was called with float32[4,3]."
        )
        assert "callback" not in compiled.lower(values, X).as_text()
        assert np.isinf(np.asarray(compiled(values, X * 0)[0])).all()


def test_contexts_nest_and_the_inner_one_loses_no_report() -> None:
    log = Log()

    def outer() -> None:
        jax.block_until_ready(jax.grad(lambda x: log(x**2).sum())(jnp.zeros([3])))
        with mk.find_nonfinite():
            pass

    assert found(outer) == (
        "forward pass of Log(), in its output: 0 nan and 3 inf among 3 values. It was called with float32[3]."
    )
    with mk.find_nonfinite():
        with mk.find_nonfinite():
            log(jnp.ones([2]))
        with pytest.raises(NonFiniteValueError):
            log(ZERO)
        log(jnp.ones([2]))
    assert np.isinf(np.asarray(log(ZERO))).all()


def test_a_report_of_one_context_is_not_raised_in_the_next() -> None:
    with pytest.raises(KeyError), mk.find_nonfinite():
        jax.block_until_ready(jax.vmap(Log())(jnp.zeros([3])))
        raise KeyError("of the user's")
    with mk.find_nonfinite():
        Log()(jnp.ones([3]))


@pytest.mark.parametrize(
    "x",
    [
        jnp.arange(3) + 1,
        jnp.ones([0, 3]),
        np.ones([0]),
        np.array(["a"]),
        np.array([None]),
        jax.random.key(0),
        None,
        "a",
    ],
    ids=repr,
)
def test_what_has_no_nan_passes(x: Any) -> None:
    class Passing(mk.Module):
        def __call__(self, x: Any) -> Any:
            return x

    assert watched(Passing(), x) is x


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.complex64, jnp.float8_e5m2], ids=str)
def test_other_dtypes_are_looked_at_as_well(dtype: Any) -> None:
    zeros, ones = jnp.zeros([2], dtype), jnp.ones([2], dtype)
    for log in (Log(), mk.jit(Log())):
        assert watched(log, ones).dtype == ones.dtype
        assert found(log, zeros) == (
            f"forward pass of Log(), in its output: 0 nan and 2 inf among 2 values. It was called with {ones.dtype}[2]."
        )


class Keeping(mk.Module):
    """Does to its arguments what Python allows."""

    def __call__(self, x: Any, kept: list[Any], table: dict[Any, Any], constant: Any) -> Any:
        kept.append(x * 2)
        kept[0].append(3)
        table[1] = x * 3
        table.pop("a", None)
        return x * float(np.sum(constant))


@pytest.mark.parametrize("run", [lambda f, *args: f(*args), watched], ids=["plain", "watched"])
@pytest.mark.parametrize("wrap", [lambda f: f, mk.jit], ids=["eager", "jit"])
def test_lists_and_dicts_that_a_module_changes_are_changed(run: Callable[..., Any], wrap: Callable[[Any], Any]) -> None:
    def call(x: Any) -> Any:
        inner: list[Any] = [x]
        kept, table = [inner, x], {"a": x, 2: x}
        Keeping()(x, kept, table, np.ones([3]))
        assert kept[0] is inner
        assert (len(kept), len(inner), list(table)) == (3, 2, [2, 1])
        return Keeping()(kept[2] + kept[1] + table[1] + table[2], [[]], {}, np.float32(2))

    np.testing.assert_array_equal(np.asarray(run(wrap(call), jnp.ones([2]))), [14.0, 14.0])


@dataclasses.dataclass
class Unhashable(mk.Module):
    """A dataclass with an argument that fails to say what it is."""

    note: Any

    def __call__(self, *args: Any) -> Any:
        return args[0]


class Mute:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def test_modules_and_arguments_that_cannot_be_shown_are_no_obstacle() -> None:
    module, pair = Unhashable(Mute()), collections.namedtuple("Pair", "a b")
    numbers = (number for number in range(3))
    for run in (module, mk.jit(lambda *args: module(*args, Mute(), numbers))):
        assert watched(run, X).shape == (4, 5)
        assert found(run, pair(X, BAD)).startswith(
            "forward pass of the code outside of all modules, in the input of <Unhashable, which cannot be shown: "
        )
    assert next(numbers) == 0


def test_numpy_values_are_looked_at_in_their_own_precision() -> None:
    huge = np.full([2], 1e300)
    assert watched(Unhashable(None), huge) is huge
    assert found(mk.jit(lambda: Log()(jnp.ones([2]), np.float64("nan")))) == (
        "forward pass of the code outside of all modules, in the input of Log(): 1 nan and 0 inf among 1 values. "
        "It was called with float32[2], float64[]."
    )


def test_a_scenario_stops_where_it_went_wrong() -> None:
    def run(x: Any) -> Any:
        model = mk.Sequential([mk.Linear(3), Log()])
        fit = scenarios.Supervised(4, batch_size=4, progress=False)
        optimizer = mk.optimizers.SGD(0.1)
        fit(model, optimizer, lambda outputs, y: jnp.square(outputs - y).sum(-1), data=(x, ZERO))

    assert found(run, X * 0) == (
        "forward pass of layers[1] = Log(), in its output: 0 nan and 12 inf among 12 values. "
        "It was called with float32[4,3]."
    )


def test_a_scenario_that_stays_finite_is_the_same() -> None:
    results = []
    for run in (lambda f: f(), watched):
        mk.seed(1)
        model, optimizer = mk.Linear(3), mk.optimizers.SGD(1e-2)
        fit = scenarios.Supervised(6, batch_size=2, progress=False, log_interval=1)
        parts = (model, optimizer, mk.losses.squared_error)
        history = run(lambda fit=fit, parts=parts: fit(*parts, data=(X, ZERO)).history)
        results.append(([entry["loss"] for entry in history], [v.value for v in model.variables]))
    assert_near(results[1], results[0])

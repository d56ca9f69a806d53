"""Laws of `mk.eager` and `jax.disable_jit`: the very same step without compilation, and nothing stays of it."""

import contextlib
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import ROWS, Row, X, assert_bitwise, assert_concrete, name_of, state

import modulekit as mk
import scenarios

SWITCHES = [mk.eager, jax.disable_jit]
WITH_RANDOMNESS_AND_STATE = [row for row in ROWS if row.name in ("random_stream", "moving_average")]


def assert_close(actual: Any, expected: Any) -> None:
    """Asserts equality up to 1e-6: XLA fuses operations of a compiled step, and rounds them less often."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (jnp.result_type(a), jnp.shape(a)) == (jnp.result_type(b), jnp.shape(b))
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("switch", SWITCHES, ids=name_of)
@pytest.mark.parametrize("row", WITH_RANDOMNESS_AND_STATE, ids=name_of)
def test_training_is_that_of_the_compiled_step(row: Row, switch: Callable[[], Any]) -> None:
    ends = []
    for context in (contextlib.nullcontext, switch):
        model, optimizer = row.fresh(), mk.optimizers.SGD(0.1)
        step = mk.jit(lambda x, m=model, o=optimizer: o.minimize(lambda: row.loss(m, x), m))
        with context():
            losses = [step(x) for x in row.steps(2)[0]]
        assert len(step.traces) == (context is contextlib.nullcontext)
        assert_concrete(model.variables)
        ends.append((losses, state(model), state(optimizer)))
    assert_close(ends[1], ends[0])


def test_a_step_may_alternate_between_both_and_is_compiled_once() -> None:
    plain, mixed = mk.Variable(1.0, name="w"), mk.Variable(1.0, name="w")

    def update(w: mk.Variable, x: Any) -> Any:
        w.assign(w * 0.5 + x)
        return w.value + jax.random.normal(mk.next_key())

    results = []
    for w, contexts in (
        (plain, [contextlib.nullcontext] * 5),
        (mixed, [mk.eager, contextlib.nullcontext, mk.eager] * 2),
    ):
        mk.seed(3)
        step = mk.jit(functools.partial(update, w))
        values = []
        for index, context in enumerate(contexts[:5]):
            with context():
                values.append(step(index))
        assert step.traces == ("update traced: argument x i32[] from a Python number",)
        assert w.version == 5
        results.append((values, w.value))
    assert_close(results[1], results[0])


@pytest.mark.parametrize("switch", SWITCHES, ids=name_of)
def test_prints_and_breakpoints_see_values(
    switch: Callable[[], Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(sys, "breakpointhook", lambda: seen.append(sys._getframe(1).f_locals["y"]))
    layer = mk.Linear(1, w_init=mk.initializers.Ones())

    def step(x: Any) -> Any:
        y = layer(x)
        print(y, bool(y[0, 0] > 2))
        breakpoint()
        return y

    compiled = mk.jit(step)
    with switch():
        compiled(np.ones([1, 3], np.float32))
    assert capsys.readouterr().out == "[[3.]] True\n"
    assert [(type(y), y.tolist()) for y in seen] == [(type(jnp.ones([])), [[3.0]])]


STACK = mk.stack(lambda: mk.Linear(5), 2)

LOOPS: dict[str, Callable[[mk.Variable], Any]] = {
    "scan": lambda w: mk.scan(lambda c, x: (w.assign_add(x + c), (c + 1, w.value))[1], 0.0, jnp.arange(3.0)),
    "scan_reversed": lambda w: mk.scan(
        lambda c, x: (w.assign(w * x + c), (c + x, x))[1], 0.0, jnp.arange(3.0), reverse=True
    ),
    "empty_scan": lambda w: mk.scan(lambda c, x: (w.assign_add(x), (c, x * 2))[1], 1.0, jnp.zeros([0])),
    "while_loop": lambda w: mk.while_loop(lambda i: i < 3, lambda i: (w.assign(w * 2), i + 1)[1], 0),
    "fori_loop": lambda w: mk.fori_loop(0, 3, lambda i, c: (w.assign_add(1.0), c + i)[1], 0),
    "cond": lambda w: mk.cond(w > 0, lambda: (w.assign_add(1.0), w.value)[1], lambda: w.value * 3),
    "switch": lambda w: mk.switch(2, [lambda: w.value, lambda: w * 2, lambda: (w.assign(5.0), w.value)[1]]),
    "vmap": lambda w: mk.vmap(lambda x: (w.assign_add(x), w * x)[1], writes="mean")(jnp.arange(3.0)),
    "vmap_of_cond": lambda w: mk.vmap(lambda x: mk.cond(x > 1, lambda: x * w, lambda: x - w))(jnp.arange(3.0)),
    "vmap_of_while": lambda w: mk.vmap(lambda n: mk.while_loop(lambda c: c < n, lambda c: c + w, 0.0))(jnp.arange(3.0)),
    "remat": lambda w: mk.grad(lambda: mk.remat(lambda x: jnp.sin(x * w))(2.0), [w])(),
    "grad": lambda w: mk.value_and_grad(lambda: (w.assign_add(1.0), w**2)[1], [w])(),
    "nested_jit": lambda w: mk.jit(lambda x: (w.assign_add(x), w * x)[1])(2.0) + w,
    "plain_checkpoint": lambda w: jax.checkpoint(lambda x: x * w)(2.0),
    "plain_scan": lambda w: jax.lax.scan(lambda c, x: (c + w, x * w), 0.0, jnp.arange(3.0)),
    "plain_eval_shape": lambda w: jnp.zeros(jax.eval_shape(lambda x: x * w, jnp.ones([2])).shape),
    "random": lambda w: [jax.random.normal(mk.next_key(), [2]), mk.scan(lambda c, _: (c, mk.next_key()), 0, length=2)],
    "constants": lambda w: {"loss": 0.5, "count": np.int32(3), "none": None, "w": w},
    "stack": lambda w: STACK(X * w.value),
}


@pytest.mark.parametrize("loop", LOOPS)
def test_loops_branches_and_transforms_give_what_they_compile_to(loop: str) -> None:
    ends = []
    for context in (contextlib.nullcontext, mk.eager):
        mk.seed(5)
        w = mk.Variable(0.5, name="w")
        with context():
            result = mk.jit(lambda w=w: LOOPS[loop](w))()
            again = mk.jit(lambda w=w: LOOPS[loop](w))()
        ends.append(([plain(result), plain(again)], w.value, w.version, jax.random.key_data(mk.next_key())))
    assert_close(ends[1], ends[0])


def plain(tree: Any) -> Any:
    """Returns a structure with the data of each key in it."""

    def data(leaf: Any) -> Any:
        return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    return jax.tree.map(data, tree)


@pytest.mark.parametrize("switch", SWITCHES, ids=name_of)
def test_a_step_that_raises_in_the_middle_has_changed_nothing(switch: Callable[[], Any]) -> None:
    row = WITH_RANDOMNESS_AND_STATE[0]
    model, optimizer, w = row.fresh(), mk.optimizers.Momentum(0.1, 0.9), mk.Variable(1.0, name="w")

    def step(x: Any, fails: bool) -> Any:
        loss = optimizer.minimize(lambda: row.loss(model, x), model)
        w.assign_add(1.0)
        mk.scan(lambda c, x: (w.assign_add(x), (c, x))[1], None, jnp.arange(2.0))
        assert float(w) > 1.0  # within the step, what it has written is there
        if fails:
            raise KeyError("in the middle")
        return loss

    compiled = mk.jit(step)
    with switch():
        compiled(X, False)
        before, slots, versions = state(model), state(optimizer), [v.version for v in model.variables]
        with pytest.raises(KeyError, match="in the middle"):
            compiled(X, True)
        assert_bitwise(state(model), before)
        assert_bitwise(state(optimizer), slots)
        assert [v.version for v in model.variables] == versions
        assert (float(w), w.version) == (3.0, 1)


def test_what_no_step_may_return_is_refused_as_well() -> None:
    step = mk.jit(lambda: "text")
    for context in (contextlib.nullcontext, mk.eager):
        with pytest.raises(TypeError), context():
            step()


def test_nothing_is_baked_into_programs_of_plain_jax() -> None:
    w = mk.Variable(1.0, name="w")
    step = mk.jit(lambda x: x * w)
    messages = []
    for context in (contextlib.nullcontext, mk.eager):
        with pytest.raises(mk.errors.ForeignTransformError) as raised, context():
            jax.make_jaxpr(step)(1.0)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


def test_a_scenario_ends_where_the_compiled_one_does() -> None:
    ends = []
    for context in (contextlib.nullcontext, mk.eager):
        mk.seed(1)
        model, optimizer = mk.Linear(3), mk.optimizers.SGD(0.1)
        fit = scenarios.Supervised(3, batch_size=2, progress=False, log_interval=1)
        with context():
            result = fit(model, optimizer, mk.losses.squared_error, data=(X, X[:, :3]))
        losses = [entry["loss"] for entry in result.history if "loss" in entry]
        ends.append((losses, result.metrics, [v.value for v in model.variables]))
    assert_close(ends[1], ends[0])


def test_after_leaving_by_an_error_steps_are_compiled_again() -> None:
    seen = []
    step = mk.jit(lambda x: (seen.append(isinstance(x, jax.core.Tracer)), x * 2)[1])
    step(1.0)
    traced = len(seen)
    with pytest.raises(KeyError), mk.eager():
        step(1.0)
        raise KeyError
    step(1.0)
    assert seen[traced:] == [False]
    assert step.traces == ("<lambda> traced: argument x f32[] from a Python number",)


def test_the_first_bad_value_is_found_step_by_step_as_well() -> None:
    model = mk.Sequential([mk.Sequential([jnp.zeros_like]), mk.Sequential([jnp.log]), mk.Sequential([jnp.sqrt])])
    step = mk.jit(lambda x: model(x))
    for context in (contextlib.nullcontext, mk.eager):
        with pytest.raises(mk.errors.NonFiniteValueError) as raised, context(), mk.find_nonfinite():
            step(X)
        assert str(raised.value) == (
            "forward pass of layers[1] = Sequential(layers=[log]), in its output: 0 nan and 20 inf among 20 values. "
            "It was called with float32[4,5]."
        )

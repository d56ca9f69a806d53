"""Laws of `modulekit.functional`: pure pairs that any JAX transform takes, and variables that nothing has changed."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import ROWS, TRAINED, Row, assert_bitwise, assert_concrete, assert_near, name_of, state

import modulekit as mk
from modulekit import functional as fn

REPRESENTATIVE = ("tied_pair", "dropout_in_training", "random_stream", "moving_average", "by_name", "shared_twice")
X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)


def mlp() -> mk.nets.MLP:
    mk.seed(1)
    return mk.nets.MLP([4, 1], activation=jnp.tanh)


def quadratic(model: Callable[..., Any]) -> fn.transform:
    return fn.transform(lambda x: jnp.mean(jnp.square(model(x) - 0.5)))


def first_run(row: Row, module: Any) -> Any:
    return fn.transform_with_state(lambda *inputs: row.call(module, *inputs))


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_apply_step_by_step_is_what_the_module_does_and_changes_no_variable(row: Row) -> None:
    reference = row.fresh()
    call = mk.jit(lambda *inputs: row.call(reference, *inputs))
    expected = [call(*inputs) for inputs in zip(*row.steps(), strict=True)]
    module = row.fresh()
    f = first_run(row, module)
    params, now = f.init(*row.inputs)
    before = state(module)
    apply = jax.jit(f.apply)
    for inputs, output in zip(zip(*row.steps(), strict=True), expected, strict=True):
        result, now = apply(params, now, *inputs)
        assert_near(result, output)
    assert_bitwise(state(module), before)
    assert_concrete(module.variables)
    after = {**params, **now}
    for ours, theirs in zip(module.paths().values(), reference.paths().values(), strict=True):
        if ours in after:
            assert_near(after[ours], theirs.value)


@pytest.mark.parametrize("row", [row for row in TRAINED if row.name in REPRESENTATIVE], ids=name_of)
def test_gradients_of_params_are_those_of_the_variables(row: Row) -> None:
    reference = row.fresh()
    value, expected = mk.value_and_grad(lambda: row.loss(reference), reference)()
    module = row.fresh()
    f = fn.transform_with_state(lambda *inputs: row.loss(module, *inputs))
    params, now = f.init(*row.inputs)
    for both in (fn.value_and_grad(f.apply, has_aux=True), jax.value_and_grad(f.apply, has_aux=True)):
        (loss, _), gradients = both(params, now, *row.inputs)
        assert_near(loss, value)
        assert_near([gradients[v] for v in module.trainable_variables], expected)


def test_params_go_through_jax_transforms_whatever_their_order() -> None:
    f = quadratic(mlp())
    params = f.init(X)
    turned = fn.transform_with_state(lambda: None).apply(dict(reversed(params.items())), {})[0]
    assert turned is None
    other = type(params)(reversed(params.items()))
    assert jax.tree.structure(other) == jax.tree.structure(params)
    doubled = jax.tree.map(jnp.add, params, other)
    assert all((doubled[v] == 2 * params[v]).all() for v in params)
    traces = []

    @jax.jit
    def both(params: Any, x: jax.Array) -> Any:
        traces.append(1)
        return jax.value_and_grad(f.apply)(params, x)

    np.testing.assert_array_equal(both(params, X)[0], both(other, X)[0])
    assert len(traces) == 1
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert any("Variable('mlp/linear_0/w'" in path for path in paths)
    stacked = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)
    assert jax.vmap(f.apply, (0, None))(stacked, X).shape == (2,)
    assert isinstance(params | {}, type(params)) and isinstance({} | params, type(params))
    assert isinstance(params.copy(), type(params)) and params.keys() == params.copy().keys()


def test_init_gives_the_values_before_the_run_and_apply_those_after() -> None:
    with fn.variables():
        count = mk.Variable(0, trainable=False, name="count")
    f = fn.transform_with_state(lambda: count.assign_add(1))
    params, first = f.init()
    assert params == {} and int(first[count]) == 0
    for _ in range(2):
        now = first
        for step in range(3):
            _, now = f.apply(params, now)
            assert int(now[count]) == step + 1
    assert int(count) == 0


def test_only_what_is_read_or_written_counts_as_used() -> None:
    a, b = mk.Variable(1.0, name="a"), mk.Variable(2.0, trainable=False, name="b")
    f = fn.transform_with_state(lambda: (a.shape, b.dtype, a.name, b.trainable))
    assert f.init() == ({}, {})
    params, now = fn.transform_with_state(lambda: a + b).init()
    assert list(params) == [a] and list(now) == [b]


def test_what_is_assigned_to_a_trainable_variable_counts_for_the_rest_of_the_call() -> None:
    w = mk.Variable(0.0, name="w")

    def f() -> Any:
        w.assign(w + 2)
        return w

    pair = fn.transform(f)
    params = pair.init()
    assert float(pair.apply(params)) == float(pair.apply(params)) == 2.0
    assert float(w) == float(params[w]) == 0.0


def test_a_random_stream_is_state() -> None:
    dropout = mk.Dropout(0.5)
    f = fn.transform_with_state(lambda x: dropout(x, is_training=True))
    params, now = f.init(jnp.ones([64]))
    apply = jax.jit(f.apply)
    first, later = apply(params, now, jnp.ones([64]))
    again, _ = apply(params, now, jnp.ones([64]))
    second, _ = apply(params, later, jnp.ones([64]))
    np.testing.assert_array_equal(first, again)
    assert (first != second).any()
    with pytest.raises(ValueError, match="the function uses 'random/key', 'random/counter'"):
        fn.transform(lambda x: dropout(x, is_training=True)).init(jnp.ones([64]))


@pytest.mark.parametrize("compile_", [lambda f: f, jax.jit, fn.jit], ids=["eager", "jax.jit", "functional.jit"])
def test_an_exception_leaves_all_as_it_was(compile_: Callable[..., Any]) -> None:
    total = mk.Variable(1.0, trainable=False, name="total")

    def fail() -> None:
        total.assign_add(1.0)
        raise KeyError("stop")

    f = fn.transform_with_state(fail)
    for call in (f.init, lambda: compile_(f.apply)({}, {total: jnp.ones([])})):
        with pytest.raises(KeyError, match="stop"):
            call()
        assert float(total) == 1.0
        total.assign(1.0)


def test_errors_name_what_is_wrong() -> None:
    layer = mk.Linear(2)
    f = fn.transform(layer)
    with pytest.raises(ValueError, match="Apply function cannot create new variables: it made 'linear/w', 'linear/b'"):
        f.apply({}, X)
    params = f.init(X)
    with pytest.raises(
        ValueError, match=r"the function uses 'linear/b', which params and state do not have. Use those"
    ):
        f.apply({layer.w: params[layer.w]}, X)
    with pytest.raises(ValueError, match=r"'linear/b'.* has shape \[2\] and cannot be assigned shape \[3\]"):
        f.apply(params | {layer.b: jnp.zeros([3])}, X)
    with pytest.raises(TypeError, match="params and state are dicts from variables to arrays, and one has the key 'w'"):
        f.apply({"w": 1.0}, X)
    norm = mk.BatchNorm(True, True)
    g = fn.transform_with_state(norm)
    params, now = g.init(X, is_training=False)
    with pytest.raises(
        ValueError, match="'batch_norm/moving_mean/counter', 'batch_norm/moving_mean/hidden' and 6 more,"
    ):
        g.apply(params, now, X, is_training=True)
    with pytest.raises(
        ValueError, match=r"Stateful networks must use `transform_with_state\(f\)`: the function uses 'b"
    ):
        fn.transform(norm).init(X, is_training=True)


def test_init_runs_in_mk_jit_and_says_so_in_jax_jit() -> None:
    layer = mk.Linear(2)
    f = fn.transform(layer)
    assert_near(mk.jit(f.init)(X), f.init(X))
    with pytest.raises(mk.errors.ForeignTransformError, match=r"Use mk\.jit in place"):
        jax.jit(f.init)(X)


OPTIMIZERS = {
    "sgd": (fn.sgd, mk.optimizers.SGD, (0.1,)),
    "momentum": (fn.momentum, mk.optimizers.Momentum, (0.1, 0.9)),
    "adam": (fn.adam, mk.optimizers.Adam, (0.1,)),
    "rmsprop": (fn.rmsprop, mk.optimizers.RMSProp, (0.1, 0.9, 0.5)),
    "optax": (fn.optimizer(mk.optimizers.Optax), mk.optimizers.Optax, (optax.adamw(0.1),)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_functional_training_is_training(name: str) -> None:
    make, cls, arguments = OPTIMIZERS[name]
    reference, optimizer = mlp(), cls(*arguments)

    def loss(model: Any) -> Any:
        return jnp.mean(jnp.square(model(X) - 0.5))

    update = mk.jit(lambda: optimizer.minimize(lambda: loss(reference), reference))
    for _ in range(3):
        update()
    model = mlp()
    f, pure = fn.transform(lambda: loss(model)), make(*arguments)
    params = f.init()
    opt_state = first = pure.init(params)
    step = jax.jit(lambda params, opt_state: pure.apply(opt_state, jax.grad(f.apply)(params), params))
    for _ in range(3):
        params, opt_state = step(params, opt_state)
    for ours, theirs in zip(model.variables, reference.variables, strict=True):
        np.testing.assert_allclose(params[ours], theirs.value, rtol=1e-5, atol=1e-6)
    slots = mk.allow_empty_variables(optimizer).variables
    assert sorted(v.name for v in opt_state) == sorted(v.name for v in slots)
    assert_near(pure.init(f.init()), first)  # nothing is kept: a second training starts where the first one did
    assert ["self", *inspect.signature(make).parameters] == list(inspect.signature(cls.__init__).parameters)


def test_a_learning_rate_in_a_variable_is_state() -> None:
    rate = mk.Variable(0.5, trainable=False, name="rate")
    w = mk.Variable(1.0, name="w")
    sgd, params = fn.sgd(rate), fn.transform(lambda: w * 1).init()
    opt_state = sgd.init(params)
    assert list(opt_state) == [rate]
    new, opt_state = fn.jit(sgd.apply)({rate: jnp.asarray(0.25)}, [jnp.asarray(1.0)], params)
    assert (float(new[w]), float(opt_state[rate]), float(rate), float(w)) == (0.75, 0.25, 0.5, 1.0)


def test_updates_belong_to_their_variables() -> None:
    a, b = mk.Variable(1.0, name="a"), mk.Variable(1.0, name="b")
    sgd, params = fn.sgd(1.0), fn.transform(lambda: a + b).init()
    new, _ = sgd.apply({}, {b: jnp.asarray(0.25), a: None}, params)
    assert (float(new[a]), float(new[b])) == (1.0, 0.75)
    with pytest.raises(ValueError, match=r"`updates` and `params` must have the same variables. Only one of them has"):
        sgd.apply({}, {b: jnp.asarray(0.25)}, params)
    with pytest.raises(ValueError, match="Apply function cannot create new variables"):
        fn.momentum(1.0, 0.9).apply({}, jax.tree.map(jnp.ones_like, params), params)


def test_gradients_have_the_structure_of_argnums() -> None:
    def f(x: Any, y: Any, z: Any) -> Any:
        return x * y * z, "aux"

    def gradients(argnums: Any) -> Any:
        return jax.tree.map(float, fn.grad(lambda *args: f(*args)[0], argnums)(2.0, 3.0, 5.0))

    assert gradients(0) == 15.0
    assert gradients((2, 0)) == (6.0, 15.0)
    assert gradients([1]) == [10.0]
    assert gradients((1, (0, -1))) == (10.0, (15.0, 6.0))
    (value, aux), (gradient,) = fn.value_and_grad(f, argnums=(1,), has_aux=True)(2.0, 3.0, 5.0)
    assert (float(value), aux, float(gradient)) == (30.0, "aux", 10.0)
    gradient, aux = fn.grad(f, has_aux=True)(2.0, 3.0, 5.0)
    assert (float(gradient), aux) == (15.0, "aux")


def test_jit_keeps_flags_static_and_runs_on_the_device_that_it_is_told() -> None:
    norm = mk.BatchNorm(True, True)
    f = fn.transform_with_state(norm)
    params, now = f.init(X, is_training=True)
    compiled = fn.jit(f.apply, device="/device:CPU:0")
    result, _ = compiled(params, now, X, is_training=True)
    np.testing.assert_allclose(result, f.apply(params, now, X, is_training=True)[0], rtol=1e-5, atol=1e-6)
    assert result.devices() == {jax.devices("cpu")[0]}
    with pytest.raises(ValueError, match=r"there is no device 'GPU:7' in this process; there are cpu:0"):
        fn.jit(f.apply, device="GPU:7")


def test_values_go_to_a_device_and_back() -> None:
    w = mk.Variable(1.0, name="w")
    put = fn.device_put({"w": w, "params": fn.transform(lambda: w * 1).init()})
    assert isinstance(put["w"], jax.Array)
    got = fn.device_get(put)
    assert isinstance(got["params"][w], np.ndarray) and float(got["params"][w]) == 1.0


@pytest.mark.parametrize(
    ("argnums", "kind"), [(2, IndexError), (-3, IndexError), ((0, 5), IndexError), ("a", TypeError), (None, TypeError)]
)
def test_argnums_are_positions_of_arguments_that_came(argnums: Any, kind: type[Exception]) -> None:
    for transform in (fn.grad, fn.value_and_grad):
        with pytest.raises(kind, match=r"^argnums="):
            transform(lambda x, y: x * y, argnums=argnums)(2.0, 3.0)
    assert float(fn.grad(lambda x, y: x * y, argnums=-1)(2.0, 3.0)) == 2.0

"""Laws of single transforms that the catalogue does not tell: results, arguments, nesting, and traces."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import Affine, X, assert_near
from hypothesis import given, settings
from hypothesis import strategies as st

import modulekit as mk

# value_and_grad and grad.


def test_writes_inside_a_gradient_are_kept_once() -> None:
    w, count = mk.Variable(2.0, name="w"), mk.Variable(0, trainable=False, name="count")

    def loss() -> Any:
        count.assign_add(1)
        return w * w

    value, (gradient,) = mk.value_and_grad(loss, [w])()
    assert (float(value), float(gradient), int(count)) == (4.0, 4.0, 1)


def test_a_value_written_and_then_read_inside_a_gradient_carries_its_derivative() -> None:
    w, other = mk.Variable(3.0, name="w"), mk.Variable(0.0, name="other")

    def loss() -> Any:
        other.assign(w * w)
        return other * 2.0

    for run in (mk.grad(loss, [w]), mk.jit(mk.grad(loss, [w]))):
        assert float(run()[0]) == 12.0
        assert float(other) == 9.0


def test_a_variable_that_the_loss_overwrites_has_the_gradient_of_its_first_value() -> None:
    w = mk.Variable(3.0, name="w")

    def loss() -> Any:
        w.assign(w * w)
        return w * 1.0

    assert float(mk.grad(loss, [w])()[0]) == 6.0
    assert float(w) == 9.0


def test_a_variable_that_the_loss_does_not_use_has_a_zero_gradient() -> None:
    w, unused = mk.Variable(2.0), mk.Variable(jnp.ones([3], jnp.bfloat16))
    gradients = mk.grad(lambda: w * 1.0, [unused, w])()
    assert gradients[0].tolist() == [0.0] * 3
    assert gradients[0].dtype == jnp.bfloat16


def test_aux_is_returned_beside_the_loss_and_arguments_are_passed_on() -> None:
    w = mk.Variable(2.0)

    def loss(x: Any, *, scale: Any) -> Any:
        return x * w * scale, {"twice": x * 2, "word": "aux"}

    (value, aux), gradients = mk.value_and_grad(loss, [w], has_aux=True)(3.0, scale=5.0)
    assert (float(value), aux, float(gradients[0])) == (30.0, {"twice": 6.0, "word": "aux"}, 15.0)
    gradients, aux = mk.grad(loss, [w], has_aux=True)(3.0, scale=5.0)
    assert (float(gradients[0]), aux["word"]) == (15.0, "aux")


def test_gradients_of_gradients_are_exact() -> None:
    w = mk.Variable(3.0)

    def first() -> Any:
        return mk.grad(lambda: w**3, [w])()[0]

    for run in (mk.grad(first, [w]), mk.jit(mk.grad(first, [w])), mk.grad(mk.jit(first), [w])):
        np.testing.assert_allclose(run()[0], 18.0, rtol=1e-6)


def test_gradients_through_plain_jax_and_ours_compose() -> None:
    w = mk.Variable(3.0)
    both = mk.grad(lambda: jax.grad(lambda x: x * x * w)(2.0), [w])
    assert float(both()[0]) == 4.0
    assert float(jax.grad(lambda x: mk.grad(lambda: x * x * w, [w])()[0])(5.0)) == 10.0
    assert float(mk.jit(lambda x: jax.grad(lambda x: mk.grad(lambda: x * x * w, [w])()[0])(x))(5.0)) == 10.0


def test_a_module_stands_for_its_trainable_variables_from_its_first_call() -> None:
    affine = Affine(2)
    _, gradients = mk.value_and_grad(lambda: affine(X).sum(), affine)()
    assert [g.shape for g in gradients] == [v.shape for v in affine.trainable_variables]
    affine.b.trainable = False
    assert len(mk.grad(lambda: affine(X).sum(), affine)()) == 1


def test_jit_around_grad_really_trains() -> None:
    affine, optimizer = Affine(1), mk.optimizers.Adam(0.05)
    target = X.sum(axis=1, keepdims=True)
    step = mk.jit(lambda: optimizer.minimize(lambda: jnp.square(affine(X) - target).mean(), affine))
    losses = [float(step()) for _ in range(200)]
    assert losses[-1] < 0.01 * losses[0]


def test_a_training_step_equals_hand_written_jax() -> None:
    affine = Affine(2)
    affine(X)
    params = {"w": affine.w.value, "b": affine.b.value}
    transformation = optax.adam(0.1)
    state = transformation.init(params)

    @jax.jit
    def plain(params: Any, state: Any) -> Any:
        loss, grads = jax.value_and_grad(lambda p: jnp.square(X @ p["w"] + p["b"] - 1).mean())(params)
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    optimizer = mk.optimizers.Adam(0.1)
    step = mk.jit(lambda: optimizer.minimize(lambda: jnp.square(affine(X) - 1).mean(), affine))
    for _ in range(5):
        params, state, loss = plain(params, state)
        assert_near(step(), loss)
    assert_near({"w": affine.w.value, "b": affine.b.value}, params)


# Loops.


def test_scan_carries_stacks_and_reverses_like_jax() -> None:
    w = mk.Variable(2.0)

    def step(carry: Any, x: Any) -> Any:
        return {"sum": carry["sum"] + x * w}, (carry["sum"], None)

    for options in ({}, {"reverse": True}, {"unroll": 3}, {"unroll": True}):
        xs = jnp.arange(4.0)
        plain = jax.lax.scan(lambda c, x: ({"sum": c["sum"] + x * 2}, (c["sum"], None)), {"sum": 0.0}, xs, **options)
        assert_near(mk.scan(step, {"sum": 0.0}, xs, **options), plain)


def test_a_scan_of_no_steps_returns_the_carry_and_writes_nothing() -> None:
    count = mk.Variable(0, name="count")
    carry, ys = mk.scan(lambda c, x: (c, count.assign_add(1)), 5, jnp.zeros([0]))
    assert (int(carry), ys, int(count)) == (5, None, 0)


def test_a_scan_that_returns_a_variable_returns_its_value() -> None:
    w = mk.Variable(jnp.zeros([2]))

    def step(carry: Any, _: Any) -> Any:
        w.assign_add(jnp.ones([2]))
        return carry, w

    assert mk.scan(step, None, length=2)[1].tolist() == [[1.0, 1.0], [2.0, 2.0]]
    assert mk.jit(lambda: w)().tolist() == [2.0, 2.0]


def test_while_loop_sees_writes_in_its_condition() -> None:
    x = mk.Variable(1.0)
    for wrap in (lambda f: f, mk.jit):
        x.assign(1.0)
        run = wrap(lambda: mk.while_loop(lambda n: x < 100.0, lambda n: (x.assign(x * 3.0), n + 1)[1], 0))
        assert (int(run()), float(x)) == (5, 243.0)


def test_fori_loop_takes_traced_bounds_and_runs_no_step_where_there_is_none() -> None:
    count = mk.Variable(0)

    def body(i: Any, total: Any) -> Any:
        count.assign_add(1)
        return total + i

    assert int(mk.fori_loop(2, 5, body, 0)) == 9
    assert int(mk.jit(lambda n: mk.fori_loop(0, n, body, 0))(4)) == 6
    assert int(mk.fori_loop(3, 3, body, 7)) == 7
    assert int(count) == 7


def test_a_gradient_passes_through_a_fori_loop_with_known_bounds() -> None:
    w = mk.Variable(2.0)
    run = mk.grad(lambda: mk.fori_loop(0, 3, lambda _, x: x * w, 1.0), [w])
    assert float(run()[0]) == 12.0


def test_a_written_variable_keeps_dtype_and_weak_type_through_loops() -> None:
    w = mk.Variable(1.0, dtype=jnp.bfloat16)
    mk.scan(lambda c, _: (c, w.assign(2.0)), None, length=2)
    mk.fori_loop(0, 2, lambda _, c: (w.assign_add(1.0), c)[1], 0)
    assert (w.dtype, w.value.weak_type, float(w)) == (jnp.bfloat16, False, 4.0)


# jit.


def test_a_compiled_function_without_variables_is_a_compiled_function() -> None:
    assert float(mk.jit(lambda x: x * 2)(3.0)) == 6.0
    assert mk.jit(lambda: None)() is None


def test_a_variable_written_before_it_is_read_does_not_depend_on_its_old_value() -> None:
    w = mk.Variable(1.0)

    @mk.jit
    def step(x: Any) -> Any:
        w.assign(x)
        return w * 2.0

    assert [float(step(x)) for x in (3.0, 4.0)] == [6.0, 8.0]


def test_a_write_takes_no_effect_before_the_function_returns() -> None:
    w = mk.Variable(1.0)
    inside = []

    @mk.jit
    def step() -> Any:
        w.assign(5.0)
        inside.append(w.value)
        return w.value

    assert float(step()) == 5.0
    assert all(isinstance(value, jax.core.Tracer) or float(value) == 5.0 for value in inside)


def test_a_branch_on_an_argument_that_is_static_may_use_other_variables() -> None:
    a, b = mk.Variable(1.0, name="a"), mk.Variable(1.0, name="b")

    @mk.jit
    def step(flag: bool) -> Any:
        (a if flag else b).assign_add(1.0)
        return a + b

    assert [float(step(flag)) for flag in (True, False, True)] == [3.0, 4.0, 5.0]
    assert (float(a), float(b)) == (3.0, 2.0)


def test_a_shape_that_uses_other_variables_finds_them() -> None:
    a, b = mk.Variable(1.0, name="a"), mk.Variable(10.0, name="b")

    @mk.jit
    def step(x: Any) -> Any:
        variable = a if x.shape[0] == 1 else b
        variable.assign_add(1.0)
        return variable.value

    assert [float(step(jnp.zeros([n]))) for n in (1, 2, 1, 2)] == [2.0, 11.0, 3.0, 12.0]


def test_donation_may_be_turned_off_and_changes_no_result() -> None:
    for donate in (True, False):
        w = mk.Variable(jnp.zeros([3]))
        step = mk.jit(lambda w=w: w.assign_add(jnp.ones([3])), donate=donate)
        step()
        step()
        assert w.value.tolist() == [2.0] * 3


def test_an_assignment_between_calls_is_seen() -> None:
    w = mk.Variable(1.0)
    read = mk.jit(lambda x: x * w)
    for value in (1.0, 7.0):
        w.assign(value)
        assert float(read(2.0)) == 2 * value


# functionalize and build.


def test_a_pure_function_changes_no_variable_until_it_is_committed() -> None:
    w = mk.Variable(1.0, name="w")
    pure, values = mk.functionalize(lambda x: w.assign(w * x), [w])
    _, new = pure(values, 3.0)
    assert float(w) == 1.0
    pure.commit(new)
    assert float(w) == 3.0
    assert [float(v) for v in pure.values()] == [3.0]


def test_a_commit_of_something_that_does_not_fit_changes_nothing() -> None:
    a, b = mk.Variable(1.0, name="a"), mk.Variable(jnp.zeros([2]), name="b")
    pure, _ = mk.functionalize(lambda: None, [a, b])
    with pytest.raises(ValueError, match="'b'"):
        pure.commit([jnp.array(5.0), jnp.zeros([3])])
    assert float(a) == 1.0


def test_build_takes_arrays_specifications_and_shapes() -> None:
    for inputs in (X, jax.ShapeDtypeStruct(X.shape, X.dtype), [4, 5]):
        affine = Affine(3)
        output = mk.build(affine, inputs)
        assert (output.shape, output.dtype) == ((4, 3), jnp.float32)
        assert affine.w.shape == (5, 3)


# Random compositions.

LAYERS: dict[str, Any] = {
    "linear": lambda i: mk.Linear(5, name=f"linear_{i}"),
    "no bias": lambda i: mk.Linear(5, with_bias=False, name=f"bare_{i}"),
    "tanh": lambda i: jnp.tanh,
    "affine": lambda i: Affine(5, name=f"affine_{i}"),
    "mlp": lambda i: mk.nets.MLP([3, 5], name=f"mlp_{i}"),
    "dropout": lambda i: lambda x: mk.Dropout(0.3)(x, is_training=True),
}
layer_lists = st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=4)


@settings(deadline=None, max_examples=10)
@given(names=layer_lists, nest=st.integers(0, 4))
def test_any_composition_of_layers_trains_the_same_compiled_and_eagerly(names: list[str], nest: int) -> None:
    def made() -> Any:
        mk.seed(1)
        layers = [LAYERS[name](i) for i, name in enumerate(["linear", *names])]
        return mk.Sequential([*layers[:nest], mk.Sequential(layers[nest:], name="inner")])

    def train(wrap: Any) -> tuple[list[float], Any]:
        net, optimizer = made(), mk.optimizers.SGD(0.05)
        step = wrap(lambda x: optimizer.minimize(lambda: jnp.square(net(x) - 1).mean(), net))
        return [float(step(X * scale)) for scale in (1.0, 0.5)], {path: v.value for path, v in net.paths().items()}

    losses, values = train(lambda f: f)
    compiled_losses, compiled_values = train(mk.jit)
    np.testing.assert_allclose(compiled_losses, losses, rtol=1e-5)
    assert_near(compiled_values, values)

"""Laws of custom variable getters: what a read gives inside the context, for whom, and nothing else."""

import gc
import threading
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modulekit as mk


def ones_layer(size: int = 2, name: str | None = None) -> mk.Linear:
    layer = mk.Linear(size, w_init=mk.initializers.Ones(), name=name)
    layer(jnp.ones([1, 3]))
    return layer


def triple(variable: mk.Variable) -> jax.Array:
    return variable.value * 3


def stopped(variable: mk.Variable) -> jax.Array:
    return jax.lax.stop_gradient(variable.value)


X = jnp.arange(6.0).reshape(2, 3)


class Pair(mk.Module):
    """Two weights in a list, and a layer whose weight the code of this module reads."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = [mk.Variable(1.0, name="a"), mk.Variable(10.0, name="b")]
        self.child = ones_layer(name="child")

    def __call__(self) -> jax.Array:
        return self.weights[0] + self.weights[1] + self.child.w[0, 0]


def test_a_getter_stands_for_the_value_and_is_gone_afterwards() -> None:
    layer = ones_layer()
    plain = layer(X)
    with mk.custom_variable_getter(triple):
        np.testing.assert_array_equal(layer(X), 3 * plain)
        np.testing.assert_array_equal(layer.w.value, 3 * np.ones([3, 2]))
    np.testing.assert_array_equal(layer(X), plain)


@pytest.mark.parametrize(
    ("meant", "expected"),
    [
        ({}, 36.0), ({"classes": [Pair]}, 34.0), ({"classes": [mk.Linear]}, 14.0), ({"classes": [mk.Bias]}, 12.0),
    ],
)  # fmt: skip
def test_a_getter_is_asked_for_the_variables_that_its_classes_hold(
    meant: dict[str, list[type]], expected: float
) -> None:
    pair = Pair()
    with mk.custom_variable_getter(triple, **meant):
        assert float(pair()) == expected


def test_a_getter_is_asked_for_the_instances_own_variables() -> None:
    pair, other = Pair(), Pair()
    with mk.custom_variable_getter(triple, instances=[pair]):
        assert (float(pair()), float(other())) == (34.0, 12.0)
    with mk.custom_variable_getter(triple, classes=[mk.Linear], instances=[pair]):
        assert float(pair()) == 12.0


def test_a_variable_of_two_modules_is_read_as_the_one_that_runs() -> None:
    first, second = ones_layer(), ones_layer()
    second.w = first.w
    plain = first(X)
    with mk.custom_variable_getter(triple, instances=[first]):
        np.testing.assert_array_equal(first(X), 3 * plain)
        np.testing.assert_array_equal(second(X), plain)


def test_a_tied_transpose_is_an_instance_of_its_own() -> None:
    layer = ones_layer()
    back = layer.transpose()
    back(jnp.ones([1, 2]))
    for instance, expected in ((layer, 2.0), (back, 6.0)):
        with mk.custom_variable_getter(triple, instances=[instance]):
            np.testing.assert_array_equal(back(jnp.ones([1, 2])), np.full([1, 3], expected))


def test_of_nested_getters_the_outer_one_comes_first_and_the_inner_one_only_for_a_variable() -> None:
    layer, seen = ones_layer(), []

    def look(variable: mk.Variable) -> mk.Variable:
        seen.append(variable.name)
        return variable

    with mk.custom_variable_getter(look), mk.custom_variable_getter(triple), mk.custom_variable_getter(triple):
        np.testing.assert_array_equal(layer(jnp.ones([1, 3])), np.full([1, 2], 9.0))
    assert seen == ["linear/w", "linear/b"]


def test_a_getter_sees_all_variables_as_they_are() -> None:
    layer = ones_layer()
    with mk.custom_variable_getter(lambda _: layer.w.value + layer.w.value, instances=[layer]):
        np.testing.assert_array_equal(layer.w.value, np.full([3, 2], 2.0))


def test_writes_optimizers_and_statistics_go_on_with_the_values_themselves() -> None:
    layer, average, momentum = ones_layer(), mk.ExponentialMovingAverage(0.5), mk.optimizers.Momentum(1.0, 0.5)
    average(jnp.ones([]))
    with mk.custom_variable_getter(triple):
        layer.w.assign_add(jnp.ones([3, 2]))
        average.update(jnp.ones([]))
        momentum.apply([jnp.ones([3, 2])], [layer.w])
    assert float(average.value) == 1.0
    np.testing.assert_array_equal(layer.w.value, np.ones([3, 2]))


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_pass_through_the_getter(compiled: bool) -> None:
    layer = ones_layer()

    def gradients() -> list[jax.Array]:
        with mk.custom_variable_getter(lambda v: v.value * v.value * 3, instances=[layer]):
            return list(mk.grad(lambda: layer(X).sum(), [layer.w])())

    got = (mk.jit(gradients) if compiled else gradients)()
    np.testing.assert_array_equal(got[0], np.repeat(6 * np.asarray(X.sum(0))[:, None], 2, axis=1))


def test_a_compiled_function_keeps_its_programs_apart_and_knows_them_again() -> None:
    layer = ones_layer()
    step = mk.jit(lambda x: layer(x))
    plain = step(X)
    for _ in range(3):
        with mk.custom_variable_getter(triple, instances=[layer]):
            np.testing.assert_array_equal(step(X), 3 * plain)
        np.testing.assert_array_equal(step(X), plain)
    assert step.traces[1:] == (
        "<lambda> retraced: variable getters or the mixed-precision mode around the call changed",
    )


def test_what_jax_traced_without_the_getter_does_not_serve_with_it() -> None:
    layer = ones_layer()
    inner = jax.jit(lambda x: x * layer.w.value.sum())

    @mk.jit
    def both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        outside = inner(x)
        with mk.custom_variable_getter(triple):
            return outside, inner(x)

    outside, inside = both(jnp.ones([]))
    assert (float(outside), float(inside)) == (6.0, 18.0)


@pytest.mark.parametrize("transform", ["scan", "cond", "remat", "vmap", "eager_vmap"])
def test_a_getter_reaches_into_every_transform(transform: str) -> None:
    layer = ones_layer()

    def run(x: jax.Array) -> jax.Array:
        with mk.custom_variable_getter(triple):
            if transform == "scan":
                return mk.scan(lambda carry, row: (carry, layer(row[None])[0]), 0.0, x)[1]
            if transform == "cond":
                return mk.cond(x.sum() > 0, layer, layer, x)
            return mk.remat(layer)(x) if transform == "remat" else mk.vmap(lambda row: layer(row[None])[0])(x)

    np.testing.assert_allclose((run if transform == "eager_vmap" else mk.jit(run))(X), 3 * layer(X), rtol=1e-6)


def test_an_error_and_another_thread_see_no_getter() -> None:
    layer, found = ones_layer(), []
    with pytest.raises(RuntimeError), mk.custom_variable_getter(triple):
        thread = threading.Thread(target=lambda: found.append(layer(X)))
        thread.start()
        thread.join()
        raise RuntimeError
    np.testing.assert_array_equal(found[0], layer(X))
    np.testing.assert_array_equal(layer(X), X @ np.ones([3, 2]))


def test_an_error_in_the_getter_leaves_the_context_as_it_was() -> None:
    layer = ones_layer()

    def fail(_: mk.Variable) -> None:
        raise RuntimeError("no")

    with mk.custom_variable_getter(triple, classes=[mk.Bias]):
        with pytest.raises(RuntimeError, match="no"), mk.custom_variable_getter(fail, instances=[mk.Linear(1), layer]):
            layer(X)
        np.testing.assert_array_equal(layer(X), X @ np.ones([3, 2]))
    with mk.custom_variable_getter(triple), mk.custom_variable_getter(fail, instances=[]):
        np.testing.assert_array_equal(layer(X), 3 * (X @ np.ones([3, 2])))


def test_getters_and_the_search_for_nonfinite_values_go_together() -> None:
    layer = ones_layer()
    step = mk.jit(lambda x: layer(x))
    with mk.custom_variable_getter(lambda v: jnp.log(v.value - 1), instances=[layer]), mk.find_nonfinite():  # noqa: SIM117
        with pytest.raises(mk.errors.NonFiniteValueError, match="Linear"):
            step(X)
    with mk.find_nonfinite():
        np.testing.assert_array_equal(step(X), layer(X))


def test_gradients_stopped_by_a_getter_are_zero() -> None:
    layer = ones_layer()
    with mk.custom_variable_getter(stopped, instances=[layer]):
        gradients = mk.grad(lambda: layer(X).sum(), layer)()
    assert all(not np.asarray(gradient).any() for gradient in gradients)


def test_a_getter_and_what_it_holds_is_gone_with_its_context() -> None:
    layer = ones_layer()

    def gradients() -> weakref.ref[object]:
        def read(variable: mk.Variable) -> jax.Array:
            return variable.value * 3

        def loss() -> jax.Array:
            with mk.custom_variable_getter(read, instances=[layer]):
                return jax.nn.relu(layer(X)).sum()

        mk.grad(loss, layer)()
        return weakref.ref(read)

    alive = gradients()
    gc.collect()
    assert alive() is None

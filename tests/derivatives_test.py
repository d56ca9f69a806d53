"""Derivatives with respect to variables and arguments, of any order, against hand-written JAX and finite differences."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import assert_near

import modulekit as mk

X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(4, 2)).astype(np.float32)


def network() -> Any:
    mk.seed(0)
    net = mk.nets.MLP([5, 2], activation=jnp.tanh)
    mk.build(net, X)
    return net


def loss_by_hand(values: list[Any], x: Any) -> Any:
    """The loss of `network`, written by hand; the variables come in the order of `trainable_variables`."""
    b0, w0, b1, w1 = values
    return jnp.mean((jnp.tanh(x @ w0 + b0) @ w1 + b1 - Y) ** 2)


def loss_of(net: Any) -> Callable[[Any], Any]:
    return lambda x: jnp.mean((net(x) - Y) ** 2)


def values_of(net: Any) -> list[Any]:
    return [v.value for v in net.trainable_variables]


@pytest.fixture(params=[lambda f: f, mk.jit], ids=["eager", "jit"])
def through(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_gradients_of_variables_arguments_and_both(through: Any) -> None:
    net = network()
    for_values, for_x = jax.grad(loss_by_hand, argnums=(0, 1))(values_of(net), X)
    loss = loss_of(net)
    assert_near(through(mk.grad(loss, net))(X), for_values)
    assert_near(through(mk.grad(loss))(X), for_x)
    assert_near(through(mk.grad(loss, argnums=0))(X), for_x)
    assert_near(through(mk.grad(loss, argnums=(0,)))(X), (for_x,))
    assert_near(through(mk.grad(loss, argnums=-1))(X), for_x)
    assert_near(through(mk.grad(loss, net, argnums=0))(X), (for_values, for_x))
    value, gradients = through(mk.value_and_grad(loss, net.trainable_variables[:1], argnums=[0]))(X)
    assert_near(gradients, (for_values[:1], (for_x,)))
    assert_near(value, loss_by_hand(values_of(net), X))


def test_structures_and_several_arguments(through: Any) -> None:
    w = mk.Variable(3.0, name="w")

    def loss(scale: Any, parts: Any) -> Any:
        return scale * (parts["a"] ** 2).sum() * w + parts["b"][0]

    parts = {"a": jnp.array([1.0, 2.0]), "b": [jnp.array(4.0)]}
    expected = jax.grad(lambda s, p: s * (p["a"] ** 2).sum() * 3.0 + p["b"][0], argnums=(0, 1))(2.0, parts)
    assert_near(through(mk.grad(loss, argnums=(0, 1)))(2.0, parts), expected)


def test_aux_and_writes_go_with_gradients_of_arguments() -> None:
    count = mk.Variable(0, name="count", trainable=False)

    def loss(x: Any) -> tuple[Any, str]:
        count.assign_add(1)
        return x**3, "kept"

    (value, aux), gradient = mk.value_and_grad(loss, has_aux=True)(2.0)
    assert (float(value), aux, float(gradient), int(count)) == (8.0, "kept", 12.0, 1)
    assert mk.grad(loss, has_aux=True)(2.0)[1] == "kept"


def test_gradients_against_finite_differences_in_float64() -> None:
    net = network()
    arrays = [np.asarray(v, np.float64) for v in values_of(net)]

    def loss(values: list[np.ndarray]) -> float:
        b0, w0, b1, w1 = values
        return float(np.mean((np.tanh(X.astype(np.float64) @ w0 + b0) @ w1 + b1 - Y) ** 2))

    gradients = mk.grad(loss_of(net), net)(X)
    for place, array in enumerate(arrays):
        for index in np.ndindex(array.shape):
            shifted = []
            for sign in (1, -1):
                moved = [a.copy() for a in arrays]
                moved[place][index] += sign * 1e-5
                shifted.append(loss(moved))
            np.testing.assert_allclose(gradients[place][index], (shifted[0] - shifted[1]) / 2e-5, rtol=1e-4, atol=1e-6)


def test_the_gradient_of_a_gradient(through: Any) -> None:
    net = network()

    def penalty() -> Any:
        return sum(jnp.sum(g**2) for g in mk.grad(loss_of(net), net)(X))

    def by_hand(values: list[Any]) -> Any:
        return sum(jnp.sum(g**2) for g in jax.grad(loss_by_hand)(values, X))

    assert_near(list(through(mk.grad(penalty, net))()), jax.grad(by_hand)(values_of(net)))
    w = mk.Variable(2.0, name="w")
    cube = lambda: w**4  # noqa: E731
    third = mk.grad(lambda: mk.grad(lambda: mk.grad(cube, [w])()[0], [w])()[0], [w])
    assert float(through(third)()[0]) == 48.0


def test_jvp_along_variables_and_arguments(through: Any) -> None:
    net = network()
    values = values_of(net)
    directions = [jnp.full(v.shape, 0.5) for v in values]
    expected = jax.jvp(loss_by_hand, (values, X), (directions, jnp.ones_like(X)))
    loss = loss_of(net)
    assert_near(through(lambda: mk.jvp(loss, (X,), (jnp.ones_like(X),), net, directions))(), expected)
    assert_near(through(lambda: mk.jvp(loss, (X,), (X,)))(), jax.jvp(lambda x: loss_by_hand(values, x), (X,), (X,)))


def test_a_hessian_vector_product_is_a_jvp_of_a_grad(through: Any) -> None:
    net = network()
    values = values_of(net)
    direction = [jnp.ones(v.shape) for v in values]
    expected = jax.jvp(lambda v: jax.grad(loss_by_hand)(v, X), (values,), (direction,))
    product = lambda: mk.jvp(lambda: mk.grad(loss_of(net), net)(X), (), (), net, direction)  # noqa: E731
    assert_near(through(product)(), expected)


def test_the_hessian_of_a_small_module(through: Any) -> None:
    net = network()
    expected = jax.hessian(loss_by_hand)(values_of(net), X)
    assert_near(through(mk.hessian(loss_of(net), net))(X), expected)
    for_x = jax.hessian(loss_by_hand, argnums=1)(values_of(net), X)
    assert_near(through(mk.hessian(loss_of(net)))(X), for_x)
    assert_near(through(mk.hessian(loss_of(net), argnums=(0,)))(X), ((for_x,),))


def test_higher_derivatives_make_the_variables_of_a_fresh_module() -> None:
    mk.seed(0)
    net = mk.nets.MLP([5, 2], activation=jnp.tanh)
    assert_near(mk.hessian(loss_of(net), net)(X), jax.hessian(loss_by_hand)(values_of(network()), X))


ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no arguments": (
        lambda: mk.grad(lambda: 1.0)(),
        TypeError,
        "mk.value_and_grad is to differentiate with respect to argument 0, and the function got 0 positional arguments: "
        "give variables, as in mk.grad(loss, model), or other argnums",
    ),
    "a module": (
        lambda: mk.grad(lambda net: 1.0)(mk.Linear(3)),
        TypeError,
        "mk.value_and_grad is to differentiate with respect to argument 0, which is Linear(output_size=3): give its "
        "variables instead, as in mk.grad(loss, model)",
    ),
    "one variable": (
        lambda: mk.grad(lambda: 1.0, mk.Variable(1.0, name="w")),
        TypeError,
        "gradients are taken with respect to a sequence of variables: give [Variable('w', float32[])]",
    ),
    "a function": (
        lambda: mk.optimizers.SGD(0.1).minimize(lambda: 1.0, len),
        TypeError,
        "gradients are taken with respect to variables or a module, not len "
        "(a builtin_function_or_method): pass model.trainable_variables, or the model itself",
    ),
    "tangents": (lambda: mk.jvp(jnp.sin, (1.0,), ()), ValueError, "mk.jvp got 1 primals and 0 tangents"),
    "variable tangents": (
        lambda: mk.jvp(jnp.sin, (1.0,), (1.0,), [mk.Variable(1.0)]),
        ValueError,
        "mk.jvp got 1 variables and 0 variable_tangents",
    ),
    "hessian of both": (
        lambda: mk.hessian(jnp.sin, [mk.Variable(1.0)], argnums=0),
        ValueError,
        "mk.hessian takes variables or argnums: for both, make the arguments variables",
    ),
    "hessian of nothing": (
        lambda: mk.hessian(jnp.sin, [])(1.0),
        ValueError,
        "mk.hessian has no variables to differentiate with respect to",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_wrong_choice_is_explained(name: str) -> None:
    run, kind, text = ERRORS[name]
    with pytest.raises(kind) as raised:
        run()
    assert str(raised.value) == text


# Per example.


def test_per_example_gradients_are_those_of_each_example_alone(through: Any) -> None:
    net = network()
    rows = (jnp.asarray(X), jnp.asarray(Y))
    batch_loss = lambda x, y: jnp.mean((net(x) - y) ** 2)  # noqa: E731
    found = through(mk.per_example_grad(batch_loss, net))(*rows)
    for index in range(len(X)):
        alone = mk.grad(batch_loss, net)(X[index : index + 1], Y[index : index + 1])
        assert_near([gradient[index] for gradient in found], alone)
    assert_near([gradient.mean(axis=0) for gradient in found], mk.grad(batch_loss, net)(*rows))
    one_each = through(mk.per_example_grad(lambda x, y: ((net(x) - y) ** 2).mean(axis=1), net))(*rows)
    assert_near(one_each, found)


def test_per_example_gradients_draw_for_each_example_and_refuse_writes_without_a_rule() -> None:
    w, count = mk.Variable(1.0, name="w"), mk.Variable(0.0, name="count", trainable=False)
    mk.seed(0)
    (drawn,) = mk.per_example_grad(lambda x: w * jax.random.normal(mk.next_key()) * x, [w])(jnp.ones([5]))
    assert len(set(drawn.tolist())) == 5

    def counting(x: Any) -> Any:
        count.assign_add(1.0)
        return w * x

    with pytest.raises(ValueError, match=r"'count'.*written under mk\.vmap"):
        mk.per_example_grad(counting, [w])(jnp.ones([5]))
    mk.per_example_grad(counting, [w], writes="sum")(jnp.ones([5]))
    assert float(count) == 5.0


# From outside.


def test_gradients_from_another_process_train_as_our_own(tmp_path: Path) -> None:
    net, control = network(), network()
    optimizer, own = mk.optimizers.Adam(1e-2), mk.optimizers.Adam(1e-2)
    script = """
import sys, numpy as np
data = np.load(sys.argv[1])
names = ["layers[0].w", "layers[0].b", "layers[1].w", "layers[1].b", "x", "y"]
w0, b0, w1, b1, x, y = (data[name].astype(np.float64) for name in names)
h = np.tanh(x @ w0 + b0)
d = 2 * (h @ w1 + b1 - y) / y.size
e = (d @ w1.T) * (1 - h**2)
found = {"layers[0].w": x.T @ e, "layers[0].b": e.sum(0), "layers[1].w": h.T @ d, "layers[1].b": d.sum(0)}
np.savez(sys.argv[2], **{k: v.astype(np.float32) for k, v in found.items()})
"""
    for step in range(3):
        sent, received = tmp_path / f"sent{step}.npz", tmp_path / f"received{step}.npz"
        np.savez(sent, x=X, y=Y, **{path: v.numpy() for path, v in net.paths().items()})
        subprocess.run([sys.executable, "-c", script, sent, received], check=True)
        optimizer.apply_gradients(dict(np.load(received)), net)
        own.minimize(lambda: loss_of(control)(X), control)
        assert_near(values_of(net), values_of(control))


def test_gradients_from_outside_are_checked_and_all_or_none_applied() -> None:
    net = network()
    optimizer = mk.optimizers.SGD(0.1)
    good = {path: np.ones(v.shape, np.float32) for path, v in net.paths().items()}
    before = [v.numpy() for v in net.variables]
    owner = f"these gradients do not fit {net!r}: "
    b0, w0 = "layers[0].b", "layers[0].w"
    bad = {
        "missing layers[0].b": {p: g for p, g in good.items() if p != b0},
        "unexpected other": good | {"other": np.ones(3)},
        "layers[0].w has shape [5, 3], the variable [3, 5]": good | {w0: good[w0].T},
        "layers[0].w has dtype float64, the variable float32: convert it, as in array.astype('float32')": good
        | {w0: good[w0].astype(np.float64)},
        "layers[0].b has 5 values of 5 that are not finite": good | {b0: good[b0] * np.nan},
        "layers[0].b has 1 values of 5 that are not finite; unexpected other; missing layers[0].w": {
            **{p: g for p, g in good.items() if p not in (b0, w0)},
            b0: np.array([1, 1, np.inf, 1, 1], np.float32),
            "other": np.ones(1),
        },
    }
    for text, gradients in bad.items():
        with pytest.raises(ValueError) as raised:
            optimizer.apply_gradients(gradients, net)
        problems, last = str(raised.value).removeprefix(owner).rsplit(". ", 1)
        assert (set(problems.split("; ")), last) == (set(text.split("; ")), "Nothing has changed")
        for variable, value in zip(net.variables, before, strict=True):
            np.testing.assert_array_equal(variable.value, value)
    optimizer.apply_gradients(good, net)
    np.testing.assert_allclose(net.variables[0].value, before[0] - 0.1, rtol=1e-6)


def test_a_tied_variable_takes_one_gradient() -> None:
    encode = mk.Linear(2, with_bias=False)
    pair = mk.Sequential([encode, encode.transpose()])
    pair(X)
    one = np.ones(encode.w.shape, np.float32)
    mk.optimizers.SGD(0.1).apply_gradients({"layers[1].w": one}, pair)
    with pytest.raises(ValueError) as raised:
        mk.optimizers.SGD(0.1).apply_gradients({"layers[0].w": one, "layers[1].w": one}, pair)
    assert str(raised.value) == (
        f"these gradients do not fit {pair!r}: layers[0].w and layers[1].w are tied, one variable, and take one gradient. "
        "Nothing has changed"
    )


def test_pairs_are_checked_too() -> None:
    w = mk.Variable(jnp.ones([2]), name="w")
    optimizer = mk.optimizers.SGD(0.1)
    for gradient, problem in (
        (np.ones(3, np.float32), "has shape [3], the variable [2]"),
        (np.ones(2), "has dtype float64, the variable float32: convert it, as in array.astype('float32')"),
        (np.array([1, np.nan], np.float32), "has 1 values of 2 that are not finite"),
    ):
        with pytest.raises(ValueError) as raised:
            optimizer.apply_gradients([(gradient, w)])
        assert str(raised.value) == f"the gradient of variable 'w' {problem}. Nothing has changed"
    optimizer.apply_gradients([(np.ones(2, np.float32), w)])
    mk.jit(lambda g: optimizer.apply_gradients([(g, w)]))(np.ones(2, np.float32))
    np.testing.assert_allclose(w.value, [0.8, 0.8], rtol=1e-6)
    with pytest.raises(TypeError, match="gradients by path need the module whose paths they are"):
        optimizer.apply_gradients({"w": np.ones(2, np.float32)})

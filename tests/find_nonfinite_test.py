"""Laws of `mk.find_nonfinite`: the first place that went wrong is named, nothing else happens, and off it is not there."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diagnostics import origin_of

import modulekit as mk
from modulekit.errors import NonFiniteValueError

X = np.ones([4, 5], np.float32)
ZERO = np.zeros([4, 3], np.float32)
BAD = np.where(np.arange(20).reshape(4, 5) % 7 == 0, np.nan, 1).astype(np.float32)
OUTSIDE = "the code outside of all modules"


class Pointwise(mk.Module):
    """Applies a function."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def __call__(self, x: Any) -> Any:
        return self.function(x)


class Scaled(mk.Module):
    """`w x`, and counts its calls."""

    def __init__(self, w: Any, function: Callable[[Any], Any] = jnp.asarray) -> None:
        super().__init__()
        self.function = function
        self.w = mk.Variable(w, name="w")  # makes the weight
        self.count = mk.Variable(0, trainable=False, name="count")

    def __call__(self, x: Any) -> Any:
        self.count.assign_add(1)
        return self.function(self.w.value) * x


def pipeline(*functions: Callable[[Any], Any]) -> mk.Sequential:
    return mk.Sequential([Pointwise(function) for function in functions])


def found(run: Callable[..., Any], *args: Any) -> str:
    """Returns what `find_nonfinite` says of a call."""
    with pytest.raises(NonFiniteValueError) as raised, mk.find_nonfinite():
        run(*args)
    return str(raised.value)


def finite(run: Callable[..., Any], *args: Any) -> Any:
    with mk.find_nonfinite():
        return jax.block_until_ready(run(*args))


def eagerly(run: Callable[..., Any], *args: Any) -> Any:
    with mk.eager():
        return run(*args)


Function = Callable[[Any], Any]
FORWARD: dict[str, Callable[[Function, Any], Any]] = {
    "eager": lambda f, x: f(x),
    "mk.eager": lambda f, x: eagerly(mk.jit(f), x),
    "jit": lambda f, x: mk.jit(f)(x),
    "jit_in_jit": lambda f, x: mk.jit(lambda x: mk.jit(f)(x))(x),
    "vmap": lambda f, x: mk.vmap(lambda _: f(x))(jnp.arange(1)),
    "vmap_in_jit": lambda f, x: mk.jit(lambda x: mk.vmap(lambda _: f(x))(jnp.arange(1)))(x),
    "scan": lambda f, x: mk.scan(lambda carry, x: (carry, f(x)), None, x[None]),
    "scan_in_jit": lambda f, x: mk.jit(lambda x: mk.scan(lambda carry, x: (carry, f(x)), None, x))(x[None]),
    "cond": lambda f, x: mk.cond(True, f, lambda x: x + f(jnp.ones_like(x)), x),
    "while_loop": lambda f, x: mk.jit(lambda x: mk.while_loop(lambda s: s[0] < 1, lambda s: (1, f(s[1])), (0, x)))(x),
    "remat": lambda f, x: mk.remat(f)(x),
    "remat_in_jit": lambda f, x: mk.jit(mk.remat(f))(x),
    "grad": lambda f, x: mk.grad(lambda x: f(x).sum())(x),
    "jvp": lambda f, x: mk.jvp(f, (x,), (x,)),
    "plain_jit": lambda f, x: jax.jit(f)(x),
    "plain_grad": lambda f, x: jax.grad(lambda x: f(x).sum())(x),
}


@pytest.mark.parametrize("way", FORWARD)
def test_the_module_whose_output_goes_wrong_first_is_named(way: str) -> None:
    model = pipeline(jnp.tanh, jnp.log, jnp.sqrt, jnp.log)
    assert found(FORWARD[way], model, ZERO) == (
        "forward pass of layers[1] = Pointwise(function=log), in its output: 0 nan and 12 inf among 12 values. "
        "It was called with float32[4,3]."
    )


@pytest.mark.parametrize("way", FORWARD)
def test_input_data_that_is_bad_is_not_blamed_on_a_module(way: str) -> None:
    model = pipeline(jnp.tanh, jnp.sqrt)
    assert found(FORWARD[way], model, BAD) == (
        f"forward pass of {OUTSIDE}, in the input of {model!r}: 3 nan and 0 inf among 20 values. "
        "It was called with float32[4,5]."
    )


def test_what_a_module_does_to_the_input_of_a_part_is_its_own_fault() -> None:
    class Dividing(mk.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Pointwise(jnp.tanh)

        def __call__(self, x: Any) -> Any:
            return self.part(x / x)

    for run in (mk.Sequential([Dividing()]), mk.jit(mk.Sequential([Dividing()]))):
        assert found(run, ZERO) == (
            "forward pass of layers[0] = Dividing(), in the input of layers[0].part = Pointwise(function=tanh): "
            "12 nan and 0 inf among 12 values. It was called with float32[4,3]."
        )


BACKWARD: dict[str, Callable[[Function, Any, Any], Any]] = {
    "eager": lambda f, m, x: mk.grad(lambda: f(x).sum(), m)(),
    "mk.eager": lambda f, m, x: eagerly(mk.jit(mk.grad(lambda: f(x).sum(), m))),
    "jit": lambda f, m, x: mk.jit(mk.grad(lambda: f(x).sum(), m))(),
    "of_jit": lambda f, m, x: mk.grad(lambda: mk.jit(f)(x).sum(), m)(),
    "of_scan": lambda f, m, x: mk.jit(mk.grad(lambda: mk.scan(lambda c, x: (c, f(x)), 0, x[None])[1].sum(), m))(),
    "of_vmap": lambda f, m, x: mk.jit(mk.grad(lambda: mk.vmap(f, writes="sum")(x[None]).sum(), m))(),
    "of_remat": lambda f, m, x: mk.grad(lambda: mk.remat(f)(x).sum(), m)(),
    "of_remat_in_jit": lambda f, m, x: mk.jit(mk.grad(lambda: mk.remat(f)(x).sum(), m))(),
    "in_scan": lambda f, m, x: mk.jit(
        lambda: mk.scan(lambda c, _: (c, mk.grad(lambda: f(x).sum(), m)()), 0, length=1)
    )(),
}


@pytest.mark.parametrize("way", BACKWARD)
def test_the_module_whose_gradient_goes_wrong_first_is_named(way: str) -> None:
    model = mk.Sequential([Scaled(0.0), Pointwise(jnp.sqrt), Pointwise(jnp.tanh)])
    assert found(BACKWARD[way], model, model, X) == (
        "backward pass of layers[1] = Pointwise(function=sqrt), in the gradient of its input: "
        "0 nan and 20 inf among 20 values. It was called with float32[4,5]."
    )


@pytest.mark.parametrize("wrap", [lambda f: f, mk.jit], ids=["eager", "jit"])
def test_a_gradient_that_goes_wrong_between_modules_is_the_code_between(wrap: Callable[[Any], Any]) -> None:
    inner, outer = Scaled(0.0), Scaled(1.0)
    step = wrap(mk.grad(lambda: outer(jnp.sqrt(inner(X))).sum(), inner))
    assert found(step) == (
        f"backward pass of {OUTSIDE}, in the gradient that reaches {inner!r}: 0 nan and 20 inf among 20 values. "
        f"It was called with float32[4,5]; built at {origin_of(__file__, 'makes the weight')}."
    )


@pytest.mark.parametrize("wrap", [lambda f: f, mk.jit], ids=["eager", "jit"])
def test_the_loss_and_its_gradient_are_looked_at(wrap: Callable[[Any], Any]) -> None:
    model, w = Scaled(0.0), mk.Variable(jnp.zeros([2]), name="w")
    assert found(wrap(mk.grad(lambda: jnp.log(model(X).sum()), model))) == (
        f"forward pass of {OUTSIDE}, in the loss: 0 nan and 1 inf among 1 values."
    )
    assert found(wrap(mk.grad(lambda: jnp.sqrt(w.value).sum(), [w]))) == (
        "backward pass of the code that uses variable 'w', in its gradient: 0 nan and 2 inf among 2 values."
    )
    assert found(wrap(mk.grad(lambda a, b: jnp.sqrt(b["x"]).sum(), argnums=1)), 1.0, {"x": ZERO}) == (
        "backward pass of the code that uses argument 1, in its gradient: 0 nan and 12 inf among 12 values."
    )


def test_a_variable_of_a_module_whose_own_gradient_goes_wrong_is_named() -> None:
    model = Scaled(jnp.zeros([5]), jnp.sqrt)
    for run in (mk.grad(lambda: model(X).sum(), model), mk.jit(mk.grad(lambda: model(X).sum(), model))):
        assert found(run) == (
            "backward pass of the code that uses variable 'scaled/w', in its gradient: 0 nan and 5 inf among 5 values."
        )


@pytest.mark.parametrize("way", ["eager", "mk.eager", "jit", "scan_in_jit", "vmap_in_jit", "remat"])
def test_a_weight_that_is_bad_already_is_named(way: str) -> None:
    model = mk.Sequential([Pointwise(jnp.tanh), mk.Linear(2)])
    model(X)  # builds the layer
    model.layers[1].w.assign(jnp.ones([5, 2]).at[3, 1].set(jnp.nan))
    assert found(FORWARD[way], model, X) == (
        "forward pass of layers[1] = Linear(output_size=2), in its output: 4 nan and 0 inf among 8 values. "
        f"It was called with float32[4,5]; built at {origin_of(__file__, 'builds the layer')}, for float32[4,5]. "
        "Its variable w holds 1 values that are not finite."
    )


def test_an_optimizer_around_is_not_blamed_and_hides_no_path() -> None:
    optimizer, data = mk.optimizers.SGD(0.1), X * 0
    model = mk.Sequential([Scaled(1.0), Pointwise(jnp.log)])
    step = mk.jit(lambda x: optimizer.minimize(lambda: model(x).sum(), model))
    assert found(step, data) == (
        "forward pass of layers[1] = Pointwise(function=log), in its output: 0 nan and 20 inf among 20 values. "
        "It was called with float32[4,5]."
    )
    assert found(step, BAD) == (
        f"forward pass of the code that calls it, in the input of {model!r}: 3 nan and 0 inf among 20 values. "
        "It was called with float32[4,5]."
    )


def test_lanes_are_counted_together_and_the_call_is_that_of_one() -> None:
    for run in (mk.vmap(Pointwise(jnp.log)), mk.jit(mk.vmap(Pointwise(jnp.log)))):
        assert found(run, jnp.asarray([[1.0, 2.0], [0.0, 1.0], [-1.0, 1.0]])) == (
            "forward pass of Pointwise(function=log), in its output: 1 nan and 1 inf among 6 values. "
            "It was called with float32[2]."
        )

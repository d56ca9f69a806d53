"""Laws of plain JAX transforms around variables: exact, or an error that names the remedy; never silent."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modulekit as mk
from modulekit.errors import ForeignTransformError


class Counting(mk.Module):
    """Writes a variable on each call."""

    def __init__(self) -> None:
        super().__init__()
        self.count = mk.Variable(jnp.zeros([]), trainable=False, name="count")

    def __call__(self, x: Any) -> Any:
        self.count.assign_add(1.0)  # WRITE
        return x * 2.0


class Outer(mk.Module):
    """Holds a writer in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = [Counting()]

    def __call__(self, x: Any) -> Any:
        return self.parts[0](x)


X = jnp.arange(3.0)

PLAIN: dict[str, tuple[Callable[[Callable[[Any], Any]], Any], str]] = {
    "jit": (lambda f: jax.jit(f)(X), "mk.jit"),
    "grad": (lambda f: jax.grad(lambda x: f(x).sum())(X), "grad in place"),
    "value_and_grad": (lambda f: jax.value_and_grad(lambda x: f(x).sum())(X), "mk.value_and_grad"),
    "vmap": (lambda f: jax.vmap(f)(X), "mk.vmap"),
    "scan": (lambda f: jax.lax.scan(lambda c, x: (c, f(x)), None, X), "mk.scan"),
    "while_loop": (
        lambda f: jax.lax.while_loop(lambda v: v[0] < 3, lambda v: (v[0] + 1, f(v[1])), (0, X)),
        "mk.while_loop",
    ),
    "fori_loop": (lambda f: jax.lax.fori_loop(0, 3, lambda _, x: f(x), X), "mk."),
    "cond": (lambda f: jax.lax.cond(X.sum() > 0, f, lambda x: x, X), "mk.cond"),
    "checkpoint": (lambda f: jax.checkpoint(f)(X), "mk.remat"),
    "eval_shape": (lambda f: jax.eval_shape(f, X), "mk.eval_shape"),
    "make_jaxpr": (lambda f: jax.make_jaxpr(f)(X), "mk."),
    "jit of grad": (lambda f: jax.jit(jax.grad(lambda x: f(x).sum()))(X), "mk."),
    "grad of vmap": (lambda f: jax.grad(lambda x: jax.vmap(f)(x).sum())(X), "mk.vmap"),
    "jvp": (lambda f: jax.jvp(f, (X,), (X,)), "mk."),
    "vjp": (lambda f: jax.vjp(f, X), "mk."),
    "linearize": (lambda f: jax.linearize(f, X), "mk."),
}
every_plain_transform = pytest.mark.parametrize("name", PLAIN)


@every_plain_transform
def test_a_write_under_a_plain_transform_raises_at_that_line_and_the_old_value_stays(name: str) -> None:
    transform, remedy = PLAIN[name]
    outer = Outer()
    with pytest.raises(ForeignTransformError) as raised:
        transform(outer)
    text = str(raised.value)
    assert "outer/counting/count" in text
    assert "parts[0].count" in text or "path count" in text
    assert remedy in text
    assert "mk.functionalize" in text
    lines = [str(entry.statement) for entry in raised.traceback]
    assert any("# WRITE" in line for line in lines)
    assert float(outer.parts[0].count) == 0.0
    outer(X)
    assert float(outer.parts[0].count) == 1.0


@every_plain_transform
def test_a_write_under_a_plain_transform_inside_a_transform_of_ours_raises_too(name: str) -> None:
    transform, remedy = PLAIN[name]
    outer = Outer()

    def run() -> None:
        transform(outer)

    for ours in (mk.jit(run), lambda: mk.scan(lambda c, _: (run(), c), None, length=1)):
        with pytest.raises(ForeignTransformError, match="count") as raised:
            ours()
        assert remedy in str(raised.value)
        assert float(outer.parts[0].count) == 0.0


@pytest.mark.parametrize("ours", ["jit", "value_and_grad", "scan", "while_loop", "commit"])
def test_a_writing_transform_of_ours_under_a_plain_jit_raises_and_changes_nothing(ours: str) -> None:
    count, w = mk.Variable(0.0, name="count"), mk.Variable(2.0, name="w")

    def step(x: Any) -> Any:
        count.assign_add(1.0)
        return x * 2.0

    pure, _ = mk.functionalize(step, [count])
    runs: dict[str, Callable[[Any], Any]] = {
        "jit": mk.jit(step),
        "value_and_grad": lambda x: mk.value_and_grad(lambda: step(x) * w, [w])()[0],
        "scan": lambda x: mk.scan(lambda c, _: (step(c), None), x, length=2)[0],
        "while_loop": lambda x: mk.while_loop(lambda c: c < 5, step, x),
        "commit": lambda x: pure.commit([x]),
    }
    with pytest.raises(ForeignTransformError):
        jax.jit(runs[ours])(1.0)
    assert (float(count), float(w)) == (0.0, 2.0)


EXACT: dict[str, Callable[[Callable[[Any], Any]], Any]] = {
    "grad": lambda f: jax.grad(lambda x: f(x).sum())(X),
    "vmap": lambda f: jax.vmap(f)(X),
    "jvp": lambda f: jax.jvp(f, (X,), (X,)),
    "hessian": lambda f: jax.hessian(lambda x: (f(x) ** 2).sum())(X),
    "vmap of grad": lambda f: jax.vmap(jax.grad(f))(X),
    "grad of vmap": lambda f: jax.grad(lambda x: jax.vmap(f)(x).sum())(X),
}


@pytest.mark.parametrize("name", EXACT)
def test_reads_under_plain_grad_and_vmap_are_exact_at_every_call(name: str) -> None:
    w = mk.Variable(3.0, name="w")
    for value in (3.0, 5.0):
        w.assign(value)
        actual = EXACT[name](lambda x: x * w * x)
        expected = EXACT[name](lambda x, value=value: x * value * x)
        jax.tree.map(np.testing.assert_array_equal, actual, expected)


STAGED: dict[str, Callable[[Callable[[Any], Any]], Any]] = {
    "jit": lambda f: jax.jit(f)(X),
    "scan": lambda f: jax.lax.scan(lambda c, x: (c, f(x)), None, X),
    "while_loop": lambda f: jax.lax.while_loop(lambda v: v[0] < 3, lambda v: (v[0] + 1, f(v[1])), (0, X))[1],
    "cond": lambda f: jax.lax.cond(X.sum() > 0, f, lambda x: x, X),
    "jit of grad": lambda f: jax.jit(jax.grad(lambda x: f(x).sum()))(X),
    "jit of vmap": lambda f: jax.jit(jax.vmap(f))(X),
    "grad of jit": lambda f: jax.grad(lambda x: jax.jit(f)(x).sum())(X),
}


@pytest.mark.parametrize("name", STAGED)
def test_a_read_that_a_plain_transform_would_bake_in_raises_and_names_the_remedy(name: str) -> None:
    w = mk.Variable(3.0, name="w")
    with pytest.raises(ForeignTransformError, match=r"'w'.*baked in.*mk\.\w+.*mk\.functionalize"):
        STAGED[name](lambda x: x * w)
    assert float(w) == 3.0


@pytest.mark.parametrize("name", [*STAGED, *(name for name in EXACT if name not in STAGED)])
def test_plain_transforms_inside_our_jit_that_only_read_are_exact_at_every_call(name: str) -> None:
    transform = (STAGED | EXACT)[name]
    w = mk.Variable(3.0, name="w")
    compiled = mk.jit(lambda: transform(lambda x: x * w * x if name != "while_loop" else x * w))
    for value in (3.0, 5.0):
        w.assign(value)
        expected = transform(lambda x, value=value: x * value * x if name != "while_loop" else x * value)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), compiled(), expected)


DEFINED_OUTSIDE: dict[str, Callable[[Callable[[Any], Any]], Callable[[], Any]]] = {
    "jit": lambda f: (lambda plain: lambda: plain(2.0))(jax.jit(f)),
    "scan": lambda f: (lambda step: lambda: jax.lax.scan(step, 0.0, jnp.array([2.0]))[1][0])(lambda c, x: (c, f(x))),
    "cond": lambda f: lambda: jax.lax.cond(jnp.array(True), f, f, 2.0),
    "while_loop": lambda f: (
        lambda cond, body: lambda: jax.lax.while_loop(cond, body, (0, 2.0))[1]
    )(lambda v: v[0] < 1, lambda v: (v[0] + 1, f(v[1]))),
    "checkpoint": lambda f: (lambda plain: lambda: plain(2.0))(jax.checkpoint(f)),
}  # fmt: skip


@pytest.mark.parametrize("name", DEFINED_OUTSIDE)
def test_a_plain_transform_of_a_function_defined_outside_never_serves_a_stale_value_inside_ours(name: str) -> None:
    ws = [mk.Variable(3.0, name=f"w{i}") for i in range(8)]

    def function(x: Any) -> Any:
        for w in ws:
            x = x * w
        return x

    plain = DEFINED_OUTSIDE[name](function)
    first = mk.jit(lambda: plain())
    second = mk.jit(lambda: mk.scan(lambda c, _: (c, plain() + 1), None, length=1)[1][0])
    mk.build(plain)
    for value in (3.0, 5.0, 7.0):
        for w in ws:
            w.assign(1.0)
        ws[-1].assign(value)
        assert float(first()) == 2 * value
        assert float(second()) == 2 * value + 1


def test_gradients_of_ours_under_a_plain_jit_refuse_to_bake_weights_in() -> None:
    w = mk.Variable(3.0, name="w")
    for run in (lambda: mk.grad(lambda: w * w, [w])(), lambda: mk.scan(lambda c, _: (c, w.value), None, length=2)):
        with pytest.raises(ForeignTransformError, match="'w'"):
            jax.jit(run)()


def test_a_functionalized_function_is_exact_under_every_plain_transform() -> None:
    layer = mk.Linear(2)
    layer(X[None])
    pure, values = mk.functionalize(lambda x: layer(x[None])[0], layer)
    expected = layer(X[None])[0]
    np.testing.assert_array_equal(jax.jit(pure)(values, X)[0], expected)
    np.testing.assert_allclose(jax.vmap(pure, (None, 0), (0, None))(values, X[None])[0][0], expected, rtol=1e-6)
    np.testing.assert_array_equal(jax.checkpoint(lambda v, x: pure(v, x)[0])(values, X), expected)
    assert jax.eval_shape(pure, values, X)[0].shape == (2,)


def test_a_plain_jit_inside_a_functionalized_function_keeps_nothing_of_its_trace() -> None:
    layer = mk.Linear(3)
    layer(X[None])
    inner = jax.jit(lambda x: layer(x))
    pure, values = mk.functionalize(lambda x: inner(x).sum(), layer)
    first = jax.jit(pure)(values, X[None])[0]
    gradients = jax.grad(lambda v: pure(v, X[None])[0])(values)  # a trace of its own, of the same inner function
    np.testing.assert_array_equal(gradients[0], np.ones([3]))
    doubled = [2 * value for value in values]
    np.testing.assert_allclose(jax.jit(pure)(doubled, X[None])[0], 2 * first, rtol=1e-6)


def test_writing_an_unlisted_variable_in_a_functionalized_function_names_it() -> None:
    listed, unlisted = mk.Variable(1.0, name="listed"), mk.Variable(1.0, name="unlisted")
    pure, values = mk.functionalize(lambda: unlisted.assign(listed * 2), [listed])
    with pytest.raises(ValueError, match=r"'unlisted'.*add it to the variables given to mk\.functionalize"):
        pure(values)
    assert float(unlisted) == 1.0


# Objects handed to plain JAX.


def test_a_module_that_plain_vmap_hands_through_is_the_module_itself() -> None:
    layer = mk.Linear(2)
    layer(X[None])
    stacked = jnp.stack([X, 2 * X])
    output = jax.vmap(lambda module, x: module(x[None])[0], (None, 0))(layer, stacked)
    np.testing.assert_allclose(output, layer(stacked), rtol=1e-6)


TRANSFORMS_OF_ARGUMENTS: dict[str, Callable[[Any], Any]] = {
    "jit": lambda part: jax.jit(lambda p: 1.0)(part),
    "grad": lambda part: jax.grad(lambda p: 1.0)(part),
    "vmap": lambda part: jax.vmap(lambda p: 1.0)(part),
    "scan": lambda part: jax.lax.scan(lambda c, x: (c, x), part, X),
    "cond": lambda part: jax.lax.cond(True, lambda p: 1.0, lambda p: 2.0, part),
}


@pytest.mark.parametrize("name", TRANSFORMS_OF_ARGUMENTS)
def test_a_module_as_an_argument_of_a_plain_transform_raises_naming_the_remedy(name: str) -> None:
    layer = mk.Linear(2)
    layer(X[None])
    with pytest.raises(TypeError, match=r"mk\.jit"):
        TRANSFORMS_OF_ARGUMENTS[name](layer)


@pytest.mark.parametrize("name", TRANSFORMS_OF_ARGUMENTS)
def test_a_variable_as_an_argument_of_a_plain_transform_raises_naming_value(name: str) -> None:
    with pytest.raises(TypeError, match=r"\.value"):
        TRANSFORMS_OF_ARGUMENTS[name](mk.Variable(X, name="w"))


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "sum": jnp.sum,
    "dot": lambda v: jnp.dot(v, v),
    "where": lambda v: jnp.where(v, 1.0, 2.0),
    "exp": jnp.exp,
    "matmul": lambda v: jnp.matmul(v, v),
    "lax.add": lambda v: jax.lax.add(v, v),
    "lax.exp": jax.lax.exp,
    "maximum": lambda v: jnp.maximum(v, 0.0),
    "relu": jax.nn.relu,
    "mean": jnp.mean,
    "concatenate": lambda v: jnp.concatenate([v, v]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_variable_given_to_a_jax_function_raises_naming_value(name: str) -> None:
    with pytest.raises(TypeError, match=r"\.value"):
        FUNCTIONS[name](mk.Variable(X, name="w"))


def test_a_module_given_to_a_jax_function_raises_naming_what_it_is() -> None:
    with pytest.raises(TypeError, match="a modulekit Module"):
        jnp.sum(mk.Linear(2))

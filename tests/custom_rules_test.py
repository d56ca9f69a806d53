"""Refuse or commit, for `jax.custom_vjp` and `jax.custom_jvp` functions that close over variables.

A custom rule gives gradients with respect to the arguments of its function, and to nothing else. So a gradient with
respect to a variable that the function closes over is refused: zero would be silently wrong. Handed over as an argument
the variable has its gradient; closed over as a constant it is exact or refused, and never stale.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modulekit as mk
from modulekit.core.randomness import default_stream
from modulekit.errors import ForeignTransformError

Loss = Callable[[], Any]
ONE = jnp.zeros(1)
YES = jnp.array(True)


class Gain(mk.Module):
    """A variable that the custom functions close over, and one that they are handed."""

    def __init__(self) -> None:
        super().__init__()
        self.w = mk.Variable(3.0, name="w")
        self.x = mk.Variable(2.0, name="x")


def vjp_that_reads_backward(gain: Gain) -> Callable[[Any], Any]:
    @jax.custom_vjp
    def scaled(x: Any) -> Any:
        return x * gain.w

    scaled.defvjp(lambda x: (x * gain.w, None), lambda _, g: (g * gain.w,))
    return scaled


def vjp_that_keeps_the_value(gain: Gain) -> Callable[[Any], Any]:
    @jax.custom_vjp
    def scaled(x: Any) -> Any:
        return x * gain.w

    scaled.defvjp(lambda x: (x * gain.w, gain.w.value), lambda w, g: (g * w,))
    return scaled


def jvp(gain: Gain) -> Callable[[Any], Any]:
    @jax.custom_jvp
    def scaled(x: Any) -> Any:
        return x * gain.w

    scaled.defjvp(lambda primals, tangents: (scaled(*primals), tangents[0] * gain.w))
    return scaled


def jvp_by_argument(gain: Gain) -> Callable[[Any], Any]:
    @jax.custom_jvp
    def scaled(x: Any) -> Any:
        return x * gain.w

    scaled.defjvps(lambda tangent, _, x: tangent * gain.w)
    return scaled


RULES = [vjp_that_reads_backward, vjp_that_keeps_the_value, jvp, jvp_by_argument]


def in_scan(loss: Loss) -> Any:
    return mk.scan(lambda total, _: (total + loss(), None), 0.0, length=1)[0]


def functionalized(loss: Loss, variables: Sequence[mk.Variable]) -> tuple[Callable[[Any], Any], Any]:
    pure, values = mk.functionalize(loss, variables)
    return lambda values: pure(values)[0], values


def by_plain_grad(loss: Loss, variables: Sequence[mk.Variable], compiled: bool) -> Any:
    pure, values = functionalized(loss, variables)
    gradient = jax.grad(pure)
    return (jax.jit(gradient) if compiled else gradient)(values)


def by_implicit_variables(loss: Loss, variables: Sequence[mk.Variable]) -> Any:
    found = {v: g for g, v in mk.implicit_value_and_gradients(loss)()[1]}
    return [found[v] for v in variables]


# Ways to a gradient. For a variable that the rule closes over as a constant each is exact ("constant"), or refused.
WAYS: dict[str, tuple[str, Callable[[Loss, Sequence[mk.Variable]], Any]]] = {
    "mk.grad": ("constant", lambda loss, vs: mk.grad(loss, vs)()),
    "mk.jit of mk.grad": ("constant", lambda loss, vs: mk.jit(mk.grad(loss, vs))()),
    "mk.grad of mk.jit": ("refused", lambda loss, vs: mk.grad(mk.jit(loss), vs)()),
    "mk.grad of jax.jit": ("refused", lambda loss, vs: mk.grad(jax.jit(loss), vs)()),
    "mk.grad of mk.remat": ("refused", lambda loss, vs: mk.grad(mk.remat(loss), vs)()),
    "mk.grad of jax.checkpoint": ("refused", lambda loss, vs: mk.grad(jax.checkpoint(loss), vs)()),
    "mk.grad of mk.scan": ("refused", lambda loss, vs: mk.grad(lambda: in_scan(loss), vs)()),
    "mk.grad of mk.cond": ("refused", lambda loss, vs: mk.grad(lambda: mk.cond(YES, loss, lambda: 0.0), vs)()),
    "mk.grad of mk.vmap": ("constant", lambda loss, vs: mk.grad(lambda: mk.vmap(lambda _: loss())(ONE).sum(), vs)()),
    "mk.grad of jax.vmap": ("constant", lambda loss, vs: mk.grad(lambda: jax.vmap(lambda _: loss())(ONE).sum(), vs)()),
    "mk.vmap of mk.grad": ("constant", lambda loss, vs: [g[0] for g in mk.vmap(lambda _: mk.grad(loss, vs)())(ONE)]),
    "jax.vmap of mk.grad": ("constant", lambda loss, vs: [g[0] for g in jax.vmap(lambda _: mk.grad(loss, vs)())(ONE)]),
    "jax.jit of mk.grad": ("refused", lambda loss, vs: jax.jit(mk.grad(loss, vs))()),
    "jax.grad of functionalize": ("constant", lambda loss, vs: by_plain_grad(loss, vs, compiled=False)),
    "jax.jit of jax.grad of functionalize": ("refused", lambda loss, vs: by_plain_grad(loss, vs, compiled=True)),
    "mk.implicit_value_and_gradients": ("constant", by_implicit_variables),
}
# What JAX says of a closed-over value that it would have to differentiate, and what we say of one that is baked in.
REFUSAL = r"closed-over value|unexpected tracer|No constant handler|variable 'gain/[wx]' .*is read inside"
Way = Callable[[Loss, Sequence[mk.Variable]], Any]
every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)


def assert_as_before(gain: Gain, w: float) -> None:
    assert (float(gain.w), float(gain.x)) == (w, 2.0)


@every_rule
@pytest.mark.parametrize("way", WAYS)
def test_a_gradient_that_a_rule_does_not_give_is_refused_and_never_zero(rule: Any, way: str) -> None:
    gain = Gain()
    scaled = rule(gain)
    for w in (3.0, 5.0):
        gain.w.assign(w)
        for variables in ([gain.w], [gain.w, gain.x]):
            with pytest.raises(Exception, match=REFUSAL):
                WAYS[way][1](lambda: scaled(gain.x.value), variables)
            assert_as_before(gain, w)
        assert float(scaled(gain.x.value)) == 2.0 * w


@every_rule
@pytest.mark.parametrize("way", WAYS)
def test_a_variable_that_a_rule_reads_as_a_constant_is_never_stale(rule: Any, way: str) -> None:
    gain = Gain()
    gain.w.trainable = False
    scaled = rule(gain)
    outcome, gradient = WAYS[way]
    for w in (3.0, 5.0):
        gain.w.assign(w)
        if outcome == "constant":
            assert [float(g) for g in gradient(lambda: scaled(gain.x.value), [gain.x])] == [w]
        else:
            with pytest.raises(ForeignTransformError, match=r"variable 'gain/[wx]' .*is read inside"):
                gradient(lambda: scaled(gain.x.value), [gain.x])
        assert_as_before(gain, w)


@pytest.mark.parametrize("way", WAYS)
def test_a_variable_that_is_an_argument_of_a_custom_function_has_its_gradient(way: str) -> None:
    @jax.custom_vjp
    def product(x: Any, w: Any) -> Any:
        return x * w

    product.defvjp(lambda x, w: (x * w, (x, w)), lambda kept, g: (g * kept[1], g * kept[0]))
    gain = Gain()
    for w in (3.0, 5.0):
        gain.w.assign(w)
        run = functools.partial(WAYS[way][1], lambda: product(gain.x.value, gain.w.value), [gain.w, gain.x])
        if way == "jax.jit of mk.grad":  # whose own reads of the variables would be baked in
            with pytest.raises(ForeignTransformError, match="'gain/w'"):
                run()
        else:
            assert [float(g) for g in run()] == [2.0, w]
        assert_as_before(gain, w)


def test_a_rule_that_reads_backward_sees_what_the_function_wrote_before() -> None:
    gain = Gain()
    scaled = vjp_that_reads_backward(gain)

    def loss() -> Any:
        gain.w.assign(5.0)
        return scaled(gain.x.value)

    for transform in (mk.value_and_grad, lambda *args: mk.jit(mk.value_and_grad(*args))):
        gain.w.assign(3.0)
        value, (gradient,) = transform(loss, [gain.x])()
        assert (float(value), float(gradient), float(gain.w)) == (10.0, 5.0, 5.0)


def test_a_rule_that_reads_backward_what_each_lane_had_for_itself_is_refused() -> None:
    factors = mk.Variable([1.0, 10.0, 100.0], trainable=False, name="factors")
    x = mk.Variable(jnp.ones([3, 3]), name="x")
    scaled = jax.custom_vjp(lambda x: x * factors)
    scaled.defvjp(lambda x: (x * factors, None), lambda _, g: (g * factors.value,))  # all lanes' factors at once
    with pytest.raises(ForeignTransformError, match=r"variable 'factors' .* residuals"):
        mk.grad(lambda: mk.vmap(scaled, stacked=[factors])(x.value).sum(), [x])()
    scaled.defvjp(lambda x: (x * factors, factors.value), lambda kept, g: (g * kept,))
    (gradient,) = mk.grad(lambda: mk.vmap(scaled, stacked=[factors])(x.value).sum(), [x])()
    np.testing.assert_array_equal(gradient, np.repeat([[1.0], [10.0], [100.0]], 3, axis=1))


# Writes, draws and first calls inside a custom function.


def writing(gain: Gain) -> Callable[[Any], Any]:
    def run(x: Any) -> Any:
        gain.w.assign_add(1.0)
        return 2.0 * x

    scaled = jax.custom_vjp(run)
    scaled.defvjp(lambda x: (run(x), None), lambda _, g: (2.0 * g,))
    return scaled


def drawing(gain: Gain) -> Callable[[Any], Any]:
    def run(x: Any) -> Any:
        return x * jax.random.normal(mk.next_key())

    scaled = jax.custom_jvp(run)
    scaled.defjvp(lambda primals, tangents: (run(*primals), tangents[0]))
    return scaled


RUNS: dict[str, Callable[[Callable[[Any], Any], Gain], Any]] = {
    "mk.jit": lambda f, _: mk.jit(f)(2.0),
    "mk.grad": lambda f, gain: mk.grad(lambda: f(gain.x.value), [gain.x])(),
    "mk.jit of mk.grad": lambda f, gain: mk.jit(mk.grad(lambda: f(gain.x.value), [gain.x]))(),
    "mk.grad of mk.jit": lambda f, gain: mk.grad(mk.jit(lambda: f(gain.x.value)), [gain.x])(),
    "mk.scan": lambda f, _: mk.scan(lambda c, x: (c, f(x)), None, ONE),
    "mk.cond": lambda f, _: mk.cond(YES, f, lambda x: x, 2.0),
    "mk.vmap": lambda f, _: mk.vmap(f, writes="mean")(ONE),
    "mk.remat": lambda f, _: mk.remat(f)(2.0),
}


@pytest.mark.parametrize("use", [writing, drawing], ids=lambda use: use.__name__)
@pytest.mark.parametrize("name", RUNS)
def test_a_write_or_draw_inside_a_traced_custom_function_is_refused_and_not_lost_in_silence(
    use: Any, name: str
) -> None:
    gain = Gain()
    f = use(gain)
    mk.seed(0)
    for _ in range(2):
        with pytest.raises(ForeignTransformError, match=r"variable '(gain/w|random/(key|counter))'"):
            RUNS[name](f, gain)
        assert_as_before(gain, 3.0)
        assert int(default_stream().counter) == 0
    f(2.0)
    assert (float(gain.w), int(default_stream().counter)) in ((4.0, 0), (3.0, 1))


def test_a_first_call_inside_a_custom_function_is_refused_where_its_gradient_is_missing() -> None:
    mk.seed(0)
    x = jnp.ones([1, 2])
    expected = mk.Linear(1)(x)
    mk.seed(0)
    layer = mk.Linear(1)
    run = jax.custom_vjp(lambda x: layer(x))
    run.defvjp(lambda x: (layer(x), None), lambda _, g: (g * 0.0,))
    for _ in range(2):
        with pytest.raises(Exception, match=REFUSAL):
            mk.grad(lambda: run(x).sum(), layer)()
        np.testing.assert_array_equal(layer(x), expected)
    np.testing.assert_array_equal(mk.jit(run)(x), expected)

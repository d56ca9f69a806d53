"""Laws of errors: what was expected, what came, where, and what to do; and nothing has changed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import X

import modulekit as mk
from modulekit.errors import CheckpointError, ForeignTransformError, UnsettledTraceError


class Encoder(mk.Module):
    """A user's module around a Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mk.Sequential([mk.Linear(4), jnp.tanh, mk.Linear(3)])

    def __call__(self, x: Any) -> Any:
        return self.body(x)


def message(run: Any, kind: type[BaseException] = ValueError) -> str:
    with pytest.raises(kind) as raised:
        run()
    return str(raised.value)


@pytest.mark.parametrize("wrap", [lambda f: f, mk.jit], ids=["eager", "jit"])
def test_a_rank_that_is_too_low_names_layer_shape_and_remedy(wrap: Any) -> None:
    text = message(lambda: wrap(mk.Linear(3))(X[0]))
    for part in ("Linear(output_size=3)", "[batch, ..., input_size]", "float32[5]", "x[None]"):
        assert part in text


@pytest.mark.parametrize("wrap", [lambda f: f, mk.jit], ids=["eager", "jit"])
def test_another_width_than_on_the_first_call_names_both(wrap: Any) -> None:
    layer = mk.Linear(3)
    layer(X)
    text = message(lambda: wrap(layer)(np.ones([2, 7], np.float32)))
    for part in ("Linear(output_size=3)", "width 5", "float32[2,7]", "another layer"):
        assert part in text


def test_integer_inputs_are_refused_with_the_remedy() -> None:
    text = message(lambda: mk.Linear(3)(np.ones([2, 5], np.int32)))
    for part in ("floating-point", "int32[2,5]", "x.astype('float32')"):
        assert part in text


@pytest.mark.parametrize("wrap", [lambda f: f, mk.jit, lambda f: lambda x: mk.grad(lambda: f(x).sum(), f)()])
def test_an_error_deep_inside_names_the_layer_by_its_path_from_the_users_module(wrap: Any) -> None:
    encoder = Encoder()
    encoder(X)
    encoder.body.layers[2] = mk.Sequential([mk.Linear(3), mk.Linear(2)])
    encoder(X)
    encoder.body.layers[2].layers[1] = encoder.body.layers[0]
    text = message(lambda: wrap(encoder)(X))
    assert "path body.layers[0] in Encoder()" in text
    assert "float32[4,3]" in text


def test_a_rejected_input_makes_no_variables() -> None:
    layer = mk.Linear(3)
    for wrong in (X[0], np.ones([2, 5], np.int32)):
        message(lambda wrong=wrong: layer(wrong))
    assert not layer.paths()
    layer(X)
    assert layer.w.shape == (5, 3)


def test_a_transpose_before_its_layer_was_called_says_what_to_call() -> None:
    layer = mk.Linear(3)
    text = message(lambda: layer.transpose()(np.ones([1, 3], np.float32)))
    assert "Linear(output_size=3)" in text
    assert "has not been called yet" in text


@pytest.mark.parametrize("size", [0, -1])
def test_an_impossible_size_is_refused_with_its_value(size: int) -> None:
    assert f"output_size={size}" in message(lambda: mk.Linear(size))


def test_an_initializer_for_a_bias_that_is_not_there_is_refused() -> None:
    zeros = mk.initializers.Zeros()
    assert "b_init" in message(lambda: mk.Linear(3, with_bias=False, b_init=zeros))
    assert "b_init" in message(lambda: mk.nets.MLP([3], with_bias=False, b_init=zeros))


def test_dropout_in_a_network_must_be_told_whether_it_trains() -> None:
    assert "`is_training` argument is required" in message(lambda: mk.nets.MLP([3], dropout_rate=0.5)(X))
    assert "only be used with dropout" in message(lambda: mk.nets.MLP([3])(X, is_training=True))
    assert "rate=1.5" in message(lambda: mk.Dropout(1.5)(X, is_training=True))


def test_a_layer_that_is_no_function_is_refused_with_its_place() -> None:
    assert "layers[1] of Sequential is 3" in message(lambda: mk.Sequential([jnp.tanh, 3]), TypeError)


def test_assigning_inside_a_module_names_the_attribute_path() -> None:
    class Setter(mk.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = {"a": [mk.Variable(jnp.zeros([2]), name="w")]}

        def __call__(self, value: Any) -> None:
            self.parts["a"][0].assign(value)

    setter = Setter()
    for run in (setter, mk.jit(setter)):
        text = message(lambda run=run: run(jnp.ones([3])))
        for part in ("setter/w", "parts['a'][0]", "[2]", "[3]"):
            assert part in text
        assert "dtype" in message(lambda run=run: run(jnp.ones([2], jnp.int32)))
    assert setter.parts["a"][0].value.tolist() == [0.0, 0.0]


def test_a_gradient_of_what_is_no_scalar_shows_what_came_and_the_remedy() -> None:
    w = mk.Variable(jnp.ones([3]), name="w")
    for loss, shown in ((lambda: w * 2, "float32[3]"), (lambda: jnp.array(3), "int32[]")):
        text = message(mk.grad(loss, [w]), TypeError)
        assert shown in text
        assert "loss.mean()" in text


def test_a_gradient_with_respect_to_what_has_none_names_it() -> None:
    count = mk.Variable(0, name="count")
    text = message(mk.grad(lambda: jnp.array(1.0), [count]), TypeError)
    for part in ("'count'", "int32", "trainable=False"):
        assert part in text
    assert "model.trainable_variables" in message(lambda: mk.grad(lambda: 1.0, [jnp.ones([2])]), TypeError)


def test_a_variable_listed_twice_for_a_gradient_is_named() -> None:
    w = mk.Variable(1.0, name="w")
    assert "'w'" in message(lambda: mk.grad(lambda: w * 1.0, [w, w])())


def test_a_condition_that_writes_is_refused_by_name() -> None:
    w = mk.Variable(0.0, name="w")

    def condition(i: Any) -> Any:
        w.assign_add(1.0)
        return i < 3

    assert "'w'" in message(lambda: mk.while_loop(condition, lambda i: i + 1, 0))
    assert float(w) == 0.0


def test_optimizers_refuse_what_does_not_fit_and_change_nothing() -> None:
    w, optimizer = mk.Variable(jnp.ones([2]), name="w"), mk.optimizers.Momentum(0.1, 0.9)
    for updates, part in (
        ([jnp.ones([3])], "'w'"), ([jnp.ones([2], jnp.float16)], "float16"), ([], "same length"), ([None], "No updates"),
    ):  # fmt: skip
        assert part in message(lambda updates=updates: optimizer.apply(updates, [w]))
        assert part in message(lambda updates=updates: mk.jit(lambda: optimizer.apply(updates, [w]))())
    assert w.value.tolist() == [1.0, 1.0]
    assert optimizer.accumulated_momentum == ()


def test_metrics_say_that_they_have_no_value_yet() -> None:
    for metric in (mk.metrics.Mean(), mk.metrics.Sum()):
        assert "no value yet" in message(lambda metric=metric: metric.value)
    assert "[batch]" in message(lambda: mk.metrics.ExampleMean()(jnp.ones([2, 2])))


def test_the_errors_of_our_own_are_runtime_errors() -> None:
    for kind in (ForeignTransformError, UnsettledTraceError, CheckpointError):
        assert issubclass(kind, RuntimeError)


def test_an_error_of_the_users_reaches_the_user_as_it_is() -> None:
    class Mine(Exception):
        pass

    error = Mine("exactly this")

    def run(*_: Any) -> Any:
        raise error

    w = mk.Variable(1.0)
    for wrapped in (mk.jit(run), mk.grad(run, [w]), lambda: mk.scan(run, None, length=1), lambda: mk.build(run),
                    lambda: mk.while_loop(lambda i: i < 1, run, 0), lambda: jax.jit(mk.jit(run))()):  # fmt: skip
        with pytest.raises(Mine) as raised:
            wrapped()
        assert raised.value is error

"""Laws of compiled functions and Python state: a change is seen by the next call, and no change costs no trace."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import X

import modulekit as mk


class Counted:
    """A compiled function that counts how often Python runs its body."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.traces = 0

        def counting(*args: Any, **kwargs: Any) -> Any:
            self.traces += 1
            return function(*args, **kwargs)

        self.function, self.compiled = function, mk.jit(counting)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self.compiled(*args, **kwargs)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), result, self.function(*args, **kwargs))
        return result


class Net(mk.Module):
    """Depends on everything that may change."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = 1.0
        self.activation: Callable[..., Any] = jnp.tanh
        self.first = mk.Linear(5, name="first")
        self.layers: list[Any] = [mk.Linear(5, name="one")]
        self.table = {"a": mk.Linear(5, name="a")}
        self.pair = (mk.Linear(5, name="pair"), [2.0])
        self.note: Any = None

    def __call__(self, x: Any) -> Any:
        x = self.activation(self.first(x)) * self.rate
        for layer in self.layers:
            x = layer(x)
        for key in sorted(self.table):
            x = self.table[key](x)
        return self.pair[0](x) * self.pair[1][0]


def replace_pair(net: Net) -> None:
    net.pair = (mk.Linear(5, name="new"), [3.0])


def change_bias(net: Net) -> None:
    net.first = mk.Linear(5, with_bias=False, name="first")


CHANGES: dict[str, Callable[[Net], Any]] = {
    "a float attribute": lambda net: setattr(net, "rate", 2.0),
    "an activation": lambda net: setattr(net, "activation", jax.nn.relu),
    "a replaced sub-layer": lambda net: setattr(net, "first", mk.Linear(5, name="other")),
    "a sub-layer of another kind": change_bias,
    "a replaced list item": lambda net: net.layers.__setitem__(0, mk.Linear(5, name="other")),
    "an appended layer": lambda net: net.layers.append(mk.Linear(5, name="two")),
    "a removed layer": lambda net: net.layers.clear(),
    "an inserted function": lambda net: net.layers.insert(0, jnp.tanh),
    "a new dict item": lambda net: net.table.update(b=mk.Linear(5, name="b")),
    "a replaced dict item": lambda net: net.table.update(a=mk.Linear(5, name="b")),
    "a replaced tuple": replace_pair,
    "a number in a nested list": lambda net: net.pair[1].__setitem__(0, 4.0),
    "an attribute of a sub-layer": lambda net: setattr(net.first, "with_bias", False),
    "a replaced list": lambda net: setattr(net, "layers", [mk.Linear(5, name="fresh")]),
    "a replaced variable": lambda net: setattr(net.first, "b", mk.Variable(jnp.ones([5]), name="b")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_next_call_sees_a_change_of(change: str) -> None:
    net = Net()
    step = Counted(net)
    step(X)
    net.first.b.assign(jnp.full([5], 0.5))
    before = np.asarray(step(X))
    traces = step.traces
    CHANGES[change](net)
    after = np.asarray(step(X))
    assert step.traces > traces
    assert not np.array_equal(before, after)
    traces = step.traces
    step(X)
    assert step.traces == traces


@pytest.mark.parametrize("change", CHANGES)
def test_a_compiled_function_that_calls_a_compiled_function_sees_a_change_of(change: str) -> None:
    net = Net()
    inner = mk.jit(lambda x: net(x))
    step = Counted(lambda x: inner(x))
    step(X)
    net.first.b.assign(jnp.full([5], 0.5))
    before = np.asarray(step(X))
    CHANGES[change](net)
    np.testing.assert_allclose(step(X), net(X), rtol=1e-5)
    assert not np.array_equal(before, np.asarray(step(X)))


def test_going_back_to_an_earlier_value_gives_the_earlier_result() -> None:
    net = Net()
    step = Counted(net)
    results = {}
    for rate in (1.0, 2.0, 1.0, 2.0, 3.0):
        net.rate = rate
        result = np.asarray(step(X))
        np.testing.assert_array_equal(results.setdefault(rate, result), result)


def test_freezing_and_thawing_a_variable_is_seen() -> None:
    net = mk.nets.MLP([4, 1])
    optimizer = mk.optimizers.SGD(0.1)
    step = mk.jit(lambda: optimizer.minimize(lambda: jnp.square(net(X) - 1).mean(), net))
    step()
    w = net.layers[0].w
    for trainable in (True, False, True, False):
        before = w.numpy()
        w.trainable = trainable
        step()
        assert bool((w.numpy() != before).any()) is trainable


def test_a_change_of_an_optimizers_rate_is_seen() -> None:
    w, optimizer = mk.Variable(1.0, name="w"), mk.optimizers.SGD(0.0)
    step = mk.jit(lambda: optimizer.apply([jnp.array(1.0)], [w]))
    step()
    assert float(w) == 1.0
    optimizer.learning_rate = 0.5
    step()
    assert float(w) == 0.5


def test_a_layer_added_between_steps_trains_and_the_others_keep_their_moments() -> None:
    net, optimizer = mk.Sequential([mk.Linear(5, name="a")]), mk.optimizers.Momentum(0.1, 0.9)
    step = mk.jit(lambda: optimizer.minimize(lambda: jnp.square(net(X) - 1).mean(), net))
    step()
    moments = {v.name: v.numpy() for v in optimizer.accumulated_momentum}
    net.layers.append(mk.Linear(1, name="b"))
    step()
    assert len(optimizer.accumulated_momentum) == 4
    before = net.layers[1].w.numpy()
    step()
    assert (net.layers[1].w.numpy() != before).any()
    assert all(name in {v.name for v in optimizer.accumulated_momentum} for name in moments)


def test_nothing_is_traced_again_while_nothing_changes() -> None:
    net, optimizer = Net(), mk.optimizers.Adam(0.01)
    traces = 0

    @mk.jit
    def step(x: Any) -> Any:
        nonlocal traces
        traces += 1
        return optimizer.minimize(lambda: jnp.square(net(x) - 1).mean(), net)

    step(X)
    first = traces
    for _ in range(5):
        step(X)
        net.first.w.assign(net.first.w * 0.9)
        mk.Linear(3)(X)
        mk.Linear(3).name_of_an_attribute_elsewhere = 3  # another module's change
    assert traces == first


def test_setting_an_attribute_to_an_equal_number_traces_nothing_again() -> None:
    net = Net()
    step = Counted(net)
    step(X)
    traces = step.traces
    net.rate = 1.0
    net.layers[0].output_size = 5
    step(X)
    assert step.traces == traces


def test_state_that_the_body_itself_sets_settles() -> None:
    class Lazy(mk.Module):
        def __call__(self, x: Any) -> Any:
            self.last_shape = x.shape
            if not hasattr(self, "w"):
                with jax.ensure_compile_time_eval():
                    self.w = mk.Variable(jnp.ones([x.shape[-1]]), name="w")
            return x * self.w

    lazy = Lazy()
    step = Counted(lazy)
    for _ in range(3):
        step(X)
    traces = step.traces
    step(X)
    assert step.traces - traces <= 1  # of the comparison itself: none of the compiled function


# Arguments.


def test_numbers_and_arrays_are_traced_and_anything_else_chooses_a_program() -> None:
    seen: list[Any] = []

    @mk.jit
    def f(x: Any, flag: Any) -> Any:
        seen.append(flag)
        return x * (2 if flag else 3)

    assert [float(f(1.0, flag)) for flag in (True, False, None, "word", "", True)] == [2.0, 3.0, 3.0, 2.0, 3.0, 2.0]
    assert {type(flag) for flag in seen} == {bool, type(None), str}


def test_true_and_one_are_different_arguments() -> None:
    @mk.jit
    def kind(x: Any) -> Any:
        return 1.0 if x is True else 2.0

    assert (float(kind(True)), float(kind(1)), float(kind(True))) == (1.0, 2.0, 1.0)


def test_modules_variables_and_functions_are_static_arguments_by_identity() -> None:
    @mk.jit
    def apply(module: Any, x: Any, after: Any) -> Any:
        return after(module(x))

    first, second = mk.Linear(2), mk.Linear(2)
    for module in (first, second, first):
        for after in (jnp.tanh, jnp.exp):
            np.testing.assert_allclose(apply(module, X, after), after(module(X)), rtol=1e-5)
    read = mk.jit(lambda v: v * 2)
    a, b = mk.Variable(1.0), mk.Variable(5.0)
    assert (float(read(a)), float(read(b))) == (2.0, 10.0)
    a.assign(3.0)
    assert float(read(a)) == 6.0


def test_keywords_defaults_and_structures_are_passed_as_they_are() -> None:
    @mk.jit
    def f(x: Any, *rest: Any, scale: Any = 1.0, **options: Any) -> Any:
        return {"sum": x["a"] + x["b"][0] * scale + sum(rest), "options": [options["k"] * 2, None]}

    out = f({"a": 1.0, "b": (jnp.ones([2]), "name")}, 10.0, 20.0, scale=3.0, k=jnp.arange(2))
    assert out["sum"].tolist() == [34.0, 34.0]
    assert out["options"][0].tolist() == [0, 2]
    assert out["options"][1] is None


def test_each_shape_dtype_and_structure_has_its_program_and_none_is_traced_twice() -> None:
    w = mk.Variable(2.0, name="w")
    step = Counted(lambda x: jax.tree.map(lambda leaf: leaf * w, x))
    inputs = [X, X[:2], X.astype(np.float16), [X, X], {"a": X}]
    for x in inputs:
        step(x)
    traces = step.traces
    for x in inputs:
        step(x)
    assert step.traces == traces


def test_an_unhashable_static_argument_is_refused_by_type_and_value() -> None:
    class Settings:
        __hash__ = None  # type: ignore[assignment]

        def __repr__(self) -> str:
            return "Settings()"

    with pytest.raises(TypeError, match=r"Settings is neither an array nor hashable.*Settings\(\)"):
        mk.jit(lambda s: 1.0)(Settings())


def test_decorated_methods_and_calls_are_compiled_per_instance() -> None:
    class Scale(mk.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor
            self.count = mk.Variable(0, trainable=False, name="count")

        @mk.jit
        def __call__(self, x: Any, is_training: bool = False) -> Any:
            self.count.assign_add(1)
            return x * self.factor if is_training else x

        @mk.jit
        def plain(self, x: Any) -> Any:
            return x + self.factor

    two, three = Scale(2.0), Scale(3.0)
    assert [float(s(1.0, is_training=True)) for s in (two, three, two)] == [2.0, 3.0, 2.0]
    assert float(two(1.0)) == 1.0
    assert (int(two.count), int(three.count)) == (3, 1)
    two.factor = 5.0
    assert (float(two(1.0, is_training=True)), float(two.plain(1.0)), float(three.plain(1.0))) == (5.0, 6.0, 4.0)


def test_a_change_of_a_module_that_is_an_argument_is_seen_even_if_no_method_of_it_ran() -> None:
    net = Net()
    scale = mk.jit(lambda module, x: x * module.rate)
    assert float(scale(net, 1.0)) == 1.0
    net.rate = 5.0
    assert float(scale(net, 1.0)) == 5.0


def test_a_compiled_functions_name_and_documentation_are_the_functions() -> None:
    @mk.jit
    def documented(x: Any) -> Any:
        """Says something."""
        return x

    assert (documented.__name__, documented.__doc__) == ("documented", "Says something.")
    assert "hlo" in documented.lower(1.0).as_text().lower()


def test_lowering_makes_variables_and_changes_none() -> None:
    net, count = mk.Linear(2), mk.Variable(0, name="count")

    def f(x: Any) -> Any:
        count.assign_add(1)
        return net(x)

    lowered = mk.jit(f).lower(X)
    assert int(count) == 0
    assert net.w.shape == (5, 2)
    assert lowered.compile().cost_analysis() is not None

"""Laws of surgery: layers come and go between two steps, the survivors go on, the new ones start fresh."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import TRAINED, Row, name_of, state

import modulekit as mk

X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32)
RATE, BETA1, BETA2, EPSILON = 1e-2, 0.9, 0.999, 1e-8


class NumpyAdam:
    """Adam in float64 NumPy: a weight's moments start at zero when it joins, the count of steps is the optimizer's."""

    def __init__(self) -> None:
        self.count = 0
        self.moments: dict[str, tuple[Any, Any]] = {}

    def apply(self, weights: dict[str, Any], gradients: dict[str, Any]) -> dict[str, Any]:
        self.count += 1
        new = {}
        for name, gradient in gradients.items():
            m, v = self.moments.get(name, (0.0, 0.0))
            m = BETA1 * m + (1 - BETA1) * gradient
            v = BETA2 * v + (1 - BETA2) * gradient**2
            self.moments[name] = m, v
            corrected = (m / (1 - BETA1**self.count)) / (np.sqrt(v / (1 - BETA2**self.count)) + EPSILON)
            new[name] = weights[name] - RATE * corrected
        return weights | new


def gradients_of(weights: dict[str, Any], layers: list[str]) -> dict[str, Any]:
    """Returns the gradients of `mean((x w_1 ... w_n - y)^2)`, a chain of matrices, in float64 NumPy."""
    inputs = [X.astype(np.float64)]
    for name in layers:
        inputs.append(inputs[-1] @ weights[name])
    outer = 2 * (inputs[-1] - Y) / Y.size
    found: dict[str, Any] = {}
    for name, before in reversed(list(zip(layers, inputs[:-1], strict=True))):
        found[name] = found.get(name, 0.0) + before.T @ outer
        outer = outer @ weights[name].T
    return found


class Patient:
    """A chain of linear layers under training, and its control in NumPy, which name the layers alike."""

    def __init__(self, names: list[str]) -> None:
        mk.seed(0)
        self.layers = {name: self.layer(name) for name in names}
        self.net = mk.Sequential([self.layers[name] for name in names])
        self.optimizer = mk.optimizers.Adam(RATE, BETA1, BETA2, EPSILON)
        self.step = mk.jit(lambda: self.optimizer.minimize(lambda: jnp.mean((self.net(X) - Y) ** 2), self.net))
        self.control = NumpyAdam()
        self.weights = {name: np.asarray(layer.w, np.float64) for name, layer in self.layers.items()}

    def layer(self, name: str) -> Any:
        made = mk.Linear(4, with_bias=False, name=name)
        made(X)
        return made

    def add(self, name: str) -> Any:
        self.layers[name] = self.layer(name)
        self.weights[name] = np.asarray(self.layers[name].w, np.float64)
        return self.layers[name]

    def run(self, steps: int) -> None:
        """Trains both, and compares weights and moments."""
        for _ in range(steps):
            self.step()
            order = [layer.name for layer in self.net.layers]
            self.weights = self.control.apply(self.weights, gradients_of(self.weights, order))
        slots = {v.name: v for v in self.optimizer.variables}
        for name, (m, v) in self.control.moments.items():
            np.testing.assert_allclose(self.layers[name].w.value, self.weights[name], rtol=2e-4, atol=2e-6)
            np.testing.assert_allclose(slots[f"adam/m/{name}/w"].value, m, rtol=2e-3, atol=2e-6)
            np.testing.assert_allclose(slots[f"adam/v/{name}/w"].value, v, rtol=2e-3, atol=2e-8)


def test_an_added_layer_starts_with_zero_moments_and_the_others_go_on() -> None:
    patient = Patient(["a", "b"])
    patient.run(5)
    patient.net.layers.insert(1, patient.add("c"))
    patient.run(5)
    assert len(patient.step.traces) == 2


def test_a_replaced_layer_starts_anew() -> None:
    patient = Patient(["a", "b", "c"])
    patient.run(5)
    patient.net.layers[1] = patient.add("d")
    patient.run(5)
    assert [layer.name for layer in patient.net.layers] == ["a", "d", "c"]


def test_a_removed_layer_stays_as_it_was_and_may_come_back_with_its_moments() -> None:
    patient = Patient(["a", "b", "c"])
    patient.run(5)
    removed = patient.net.layers.pop(1)
    kept = removed.w.numpy()
    patient.run(5)
    np.testing.assert_array_equal(removed.w.value, kept)
    patient.net.layers.append(removed)
    patient.run(5)


def test_a_layer_that_is_shared_from_now_on_is_one_weight_with_one_set_of_moments() -> None:
    patient = Patient(["a", "b", "c"])
    patient.run(5)
    patient.net.layers[2] = patient.net.layers[0]
    patient.run(5)
    assert [str(tie) for tie in patient.net.ties()] == ["layers[0].w = layers[2].w"]
    assert len(patient.net.trainable_variables) == 2


def test_an_attribute_that_is_a_layer_may_be_replaced_and_removed() -> None:
    class Net(mk.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = mk.Linear(4, name="body"), mk.Linear(4, name="head")

        def __call__(self, x: Any) -> Any:
            hidden = self.body(x)
            return self.head(hidden) if hasattr(self, "head") else hidden

    net, optimizer = Net(), mk.optimizers.Momentum(0.1, 0.9)
    step = mk.jit(lambda: optimizer.minimize(lambda: jnp.mean((net(X) - Y) ** 2), net))
    step()
    body, slot = net.body.w, optimizer.accumulated_momentum[1]
    net.head = mk.Linear(4, name="head")
    step()
    head = "Linear(output_size=4, name='head')"
    assert step.traces[1] == f"<lambda> retraced: net.head changed {head} → another {head}"
    del net.head
    step()
    assert len(step.traces) == 3
    assert net.body.w is body
    assert slot in optimizer.accumulated_momentum
    assert list(net.paths()) == ["body.b", "body.w"]


# Drawing anew.

REDRAWN = [row for row in TRAINED if row.name != "by_name"]


@pytest.mark.parametrize("row", REDRAWN, ids=name_of)
def test_reinitialized_weights_are_those_of_a_fresh_module_under_that_seed(row: Row) -> None:
    module = row.fresh(seed=1)
    mk.build(module, *row.inputs, **row.options)
    expected = {path: v.numpy() for path, v in module.paths().items()}
    module = row.fresh(seed=2)
    row.call(module)
    variables = module.variables
    done = module.reinitialize(seed=1)
    streams = {path for path in module.paths() if "stream" in path}
    assert set(done) == set(expected) - streams
    for path in done:
        np.testing.assert_array_equal(module.paths()[path].value, expected[path], err_msg=path)
    assert all(a is b for a, b in zip(module.variables, variables, strict=True))


def test_only_what_the_pattern_names_is_drawn_anew_and_slots_stay() -> None:
    net, optimizer = mk.nets.MLP([5, 4, 3]), mk.optimizers.Momentum(0.1, 0.9)
    for _ in range(3):
        optimizer.minimize(lambda: jnp.mean(net(X) ** 2), net)
    before, slots = state(net), state(optimizer)
    assert net.reinitialize("layers/2/**", seed=1) == ("layers[2].b", "layers[2].w")
    changed = {path for path, value in state(net).items() if not np.array_equal(value, before[path])}
    assert changed == {"layers[2].b", "layers[2].w"}
    for path, value in state(optimizer).items():
        np.testing.assert_array_equal(value, slots[path])


def test_a_tie_survives_and_moving_averages_and_counts_begin_again() -> None:
    class Tied(mk.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode = mk.Linear(3)
            self.decode = self.encode.transpose()
            self.count = mk.Variable(0, trainable=False, name="count")

        def __call__(self, x: Any) -> Any:
            self.count.assign_add(1)
            return self.decode(self.encode(x))

    tied = Tied()
    tied(X)
    old = tied.encode.w.numpy()
    tied.reinitialize(seed=5)
    assert [str(tie) for tie in tied.ties()] == ["decode.w (transposed) = encode.w"]
    assert not np.array_equal(tied.encode.w.value, old)
    assert int(tied.count) == 0


def test_random_streams_go_on() -> None:
    layer = mk.Dropout(0.5, seed=3)
    layer(jnp.ones([4]), is_training=True)
    with pytest.raises(ValueError, match="no path of Dropout"):
        layer.reinitialize("weights/**", seed=1)
    assert layer.reinitialize(seed=1) == ()
    assert int(layer.stream.counter) == 1


def test_what_cannot_be_drawn_anew_is_named_and_nothing_changes() -> None:
    class Late(mk.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = mk.Linear(3)

        def __call__(self, x: Any) -> Any:
            if not hasattr(self, "gain"):
                self.gain = mk.Variable(2.0, name="gain")
            return self.linear(x) * self.gain

    late = Late()
    late(X)
    before = state(late)
    with pytest.raises(ValueError) as raised:
        late.reinitialize(seed=1)
    assert str(raised.value) == (
        "gain of Late() cannot be drawn anew: a variable can be if its module makes it in a method under @mk.once, called "
        "with arrays and plain values, or in the constructor of a module that was not copied since. Nothing has changed; "
        "assign the others by hand"
    )
    for path, value in state(late).items():
        np.testing.assert_array_equal(value, before[path])
    assert late.reinitialize("linear/**", seed=1) == ("linear.b", "linear.w")
    with pytest.raises(RuntimeError, match="reinitialize was called inside a transform: call it between two steps"):
        mk.jit(lambda: late.linear.reinitialize(seed=1))()
    assert not isinstance(late.linear.w.value, jax.core.Tracer)

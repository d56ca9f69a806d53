"""Laws of compiling ahead of time: `mk.jit(f).compile(*specs)` changes nothing but when the work is done."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modulekit as mk

X, Y = np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3), np.arange(8, dtype=np.int32) % 2
SPECS = jax.ShapeDtypeStruct(X.shape, X.dtype), jax.ShapeDtypeStruct(Y.shape, Y.dtype)


class Training:
    """A classifier, its optimizer and a compiled step."""

    def __init__(self) -> None:
        mk.seed(3)
        self.model, self.optimizer = mk.nets.MLP([4, 2], dropout_rate=0.3), mk.optimizers.Adam(0.1)

        def step(x: Any, y: Any) -> Any:
            def loss() -> Any:
                return mk.losses.softmax_cross_entropy(self.model(x, is_training=True), y).mean()

            value, gradients = mk.value_and_grad(loss, self.model)()
            self.optimizer.apply(gradients, self.model.trainable_variables)
            return value

        self.step = mk.jit(step)

    def values(self) -> dict[str, np.ndarray]:
        modules = {"model": self.model, "optimizer": self.optimizer}
        return {f"{name}.{path}": v.numpy() for name, m in modules.items() for path, v in m.paths().items()}


@contextmanager
def programs_compiled() -> Iterator[list[str]]:
    """Context that notes each program that XLA compiles, or that is read from the folder of the run."""
    compiled: list[str] = []

    def note(event: str, seconds: float, **about: Any) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(str(about.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def test_steps_give_the_same_as_without() -> None:
    def outcome(ahead: bool) -> tuple[list[float], dict[str, Any]]:
        training = Training()
        if ahead:
            training.step.compile(*SPECS)
        losses = [float(training.step(X, Y)) for _ in range(3)]
        return losses, {path: value.tolist() for path, value in training.values().items()}

    assert outcome(ahead=True) == outcome(ahead=False)


def test_the_first_call_compiles_and_traces_nothing() -> None:
    training = Training()
    training.step.compile(*SPECS)
    assert len(training.step.traces) == 1
    with programs_compiled() as compiled:
        training.step(X, Y)
    assert len(training.step.traces) == 1
    assert not [name for name in compiled if "arranged" in name]


def test_the_law_above_can_fail() -> None:
    training = Training()
    with programs_compiled() as compiled:
        training.step(X, Y)
    assert [name for name in compiled if "arranged" in name]


def test_it_makes_the_variables_and_changes_none() -> None:
    training = Training()
    assert training.step.compile(*SPECS) is training.step
    before = training.values()
    assert len(before) > 8  # weights and slots
    training.step.compile(*SPECS)
    training.step.compile(X[:4], Y[:4])
    after = training.values()
    assert {path: value.tolist() for path, value in after.items()} == {
        path: value.tolist() for path, value in before.items()
    }
    assert len(training.step.traces) == 2
    training.step(X[:4], Y[:4])
    assert len(training.step.traces) == 2


def test_a_change_between_the_compilation_and_the_call_is_seen() -> None:
    training = Training()
    training.step.compile(*SPECS)
    training.optimizer.learning_rate = 0.0
    before = [v.numpy() for v in training.model.trainable_variables]
    training.step(X, Y)
    for value, variable in zip(before, training.model.trainable_variables, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    assert len(training.step.traces) == 2


def test_static_arguments_are_those_of_a_call() -> None:
    @mk.jit
    def scaled(x: Any, how: str, twice: bool = False) -> Any:
        return (2 if twice else 1) * (x if how == "as_is" else -x)

    spec = jax.ShapeDtypeStruct([2], jnp.float32)
    scaled.compile(spec, "negative", twice=True)
    assert scaled(jnp.ones(2), "negative", twice=True).tolist() == [-2.0, -2.0]
    assert len(scaled.traces) == 1


def test_a_method_is_compiled_for_its_object() -> None:
    class Counter(mk.Module):
        def __init__(self) -> None:
            super().__init__()
            self.count = mk.Variable(0, name="count")

        @mk.jit
        def add(self, x: Any) -> Any:
            self.count.assign_add(x)
            return self.count.value

    counter = Counter()
    counter.add.compile(jax.ShapeDtypeStruct([], jnp.int32))
    assert int(counter.count) == 0
    assert int(counter.add(jnp.int32(3))) == 3
    assert len(counter.add.traces) == 1


@pytest.mark.parametrize("transform", [jax.jit, mk.jit, mk.grad], ids=["jax.jit", "mk.jit", "mk.grad"])
def test_inside_a_transform_it_is_refused(transform: Callable[..., Any]) -> None:
    training = Training()

    def outer(x: Any) -> Any:
        training.step.compile(*SPECS)
        return x.sum()

    with pytest.raises(
        RuntimeError,
        match=re.escape("step was to be compiled inside a transform, which compiles it by itself: do it outside"),
    ):
        (transform(outer, []) if transform is mk.grad else transform(outer))(jnp.ones(3))


def test_with_compilation_switched_off_it_does_nothing() -> None:
    training = Training()
    with jax.disable_jit():
        training.step.compile(*SPECS)
        training.step(X, Y)
    assert training.step.traces == ()

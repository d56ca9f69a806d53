"""Laws of surgery: layers come, go and are shared between two compiled steps, and what survives trains as if undisturbed."""

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import assert_bitwise

import modulekit as mk

Arrays = dict[str, np.ndarray]
BATCHES = np.random.default_rng(0).normal(size=(30, 8, 4)).astype(np.float32)
X = BATCHES[0]
RATE = 0.01


class Tower(mk.Module):
    """Layers of one width in a list, and a head."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = [mk.Linear(4, name=f"layer_{index}") for index in range(count)]
        self.head = mk.Linear(2, name="head")

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return self.head(x)


def loss_of(output: Any) -> Any:
    return jnp.square(output - 0.5).mean()


# The control: the same equation in plain JAX, and Adam in float64 NumPy with moments of its own for each weight.


@functools.partial(jax.jit, static_argnums=1)
@jax.grad
def gradients(p: Any, order: tuple[str, ...], x: Any) -> Any:
    for name in order:
        x = jnp.tanh(x @ p[f"{name}.w"] + p[f"{name}.b"])
    return loss_of(x @ p["head.w"] + p["head.b"])


class Control:
    """Trains weights by name; layers are named in the order in which they are called."""

    def __init__(self) -> None:
        self.p: Arrays = {}
        self.m: Arrays = {}
        self.v: Arrays = {}
        self.t = 0

    def take(self, name: str, layer: mk.Linear) -> None:
        """Gets the weights of a layer, with moments that are zero."""
        for key, variable in ((f"{name}.w", layer.w), (f"{name}.b", layer.b)):
            self.p[key] = variable.numpy().astype(np.float64)
            self.m[key], self.v[key] = np.zeros_like(self.p[key]), np.zeros_like(self.p[key])

    def train(self, order: list[str], batches: Any) -> None:
        used = {f"{name}.{part}" for name in (*order, "head") for part in "wb"}
        for x in batches:
            self.t += 1
            grads = gradients({key: jnp.asarray(self.p[key], jnp.float32) for key in used}, tuple(order), x)
            for key in used:
                g = np.asarray(grads[key], np.float64)
                self.m[key] = 0.9 * self.m[key] + 0.1 * g
                self.v[key] = 0.999 * self.v[key] + 0.001 * g**2
                m, v = self.m[key] / (1 - 0.9**self.t), self.v[key] / (1 - 0.999**self.t)
                self.p[key] = self.p[key] - RATE * m / (np.sqrt(v) + 1e-8)


class Trained:
    """A tower in training beside its control."""

    def __init__(self, count: int) -> None:
        mk.seed(4)
        self.tower, self.optimizer, self.control = Tower(count), mk.optimizers.Adam(RATE), Control()
        self.names = [f"layer_{index}" for index in range(count)]
        self.step = mk.jit(lambda x: self.optimizer.minimize(lambda: loss_of(self.tower(x)), self.tower))
        self._batches = iter(BATCHES)
        self.adopt()

    def adopt(self) -> None:
        """Lets the control have the weights of layers that it does not know yet."""
        mk.build(self.tower, X)
        for name, layer in self._named().items():
            if f"{name}.w" not in self.control.p:
                self.control.take(name, layer)

    def _named(self) -> dict[str, mk.Linear]:
        return dict(zip(self.names, self.tower.layers, strict=True)) | {"head": self.tower.head}

    def train(self, steps: int) -> None:
        batches = [next(self._batches) for _ in range(steps)]
        for x in batches:
            self.step(x)
        self.control.train(self.names, batches)

    def check(self) -> None:
        """Asserts that weights and moments are those of the control, up to what float32 rounds."""
        moments = {v.name: v for v in (*self.optimizer.m, *self.optimizer.v)}
        for name, layer in self._named().items():
            for part, variable in (("w", layer.w), ("b", layer.b)):
                key = f"{name}.{part}"
                np.testing.assert_allclose(variable.numpy(), self.control.p[key], atol=1e-5, err_msg=key)
                for kind, kept in (("m", self.control.m), ("v", self.control.v)):
                    slot = moments[f"adam/{kind}/{variable.name}"]
                    np.testing.assert_allclose(slot.numpy(), kept[key], rtol=1e-3, atol=1e-6, err_msg=slot.name)


def add(trained: Trained) -> None:
    trained.tower.layers.insert(1, mk.Linear(4, name="added"))
    trained.names.insert(1, "added")


def remove(trained: Trained) -> None:
    del trained.tower.layers[0], trained.names[0]


def replace(trained: Trained) -> None:
    trained.tower.layers[1], trained.names[1] = mk.Linear(4, name="other"), "other"


def replace_head(trained: Trained) -> None:
    trained.tower.head = mk.Linear(2, name="new_head")
    for key in ("head.w", "head.b"):
        del trained.control.p[key]


def share(trained: Trained) -> None:
    trained.tower.layers[2], trained.names[2] = trained.tower.layers[0], trained.names[0]


def swap(trained: Trained) -> None:
    trained.tower.layers.reverse()
    trained.names.reverse()


def grow_twice(trained: Trained) -> None:
    add(trained)
    trained.tower.layers.append(mk.Linear(4, name="last"))
    trained.names.append("last")


@pytest.mark.parametrize("change", [add, remove, replace, replace_head, share, swap, grow_twice])
def test_between_two_steps_layers_change_and_the_survivors_keep_weights_and_moments(change: Any) -> None:
    trained = Trained(3)
    trained.train(4)
    trained.check()
    held = list(trained.optimizer.paths().values())
    change(trained)
    trained.adopt()
    trained.train(4)
    trained.check()
    assert [v for v in trained.optimizer.paths().values() if v in held] == held
    assert len(trained.step.traces) == 2


def test_a_layer_that_comes_back_has_its_moments_still() -> None:
    trained = Trained(3)
    trained.train(5)
    gone = trained.tower.layers.pop(1)
    trained.names.remove("layer_1")
    trained.train(5)
    trained.tower.layers.append(gone)
    trained.names.append("layer_1")
    trained.train(5)
    trained.check()
    assert len(trained.optimizer.m) == 8


def test_after_a_copy_surgery_goes_on_in_the_copy_alone() -> None:
    trained = Trained(2)
    trained.train(3)
    other, optimizer = copy.deepcopy((trained.tower, trained.optimizer))
    other.layers.append(mk.Linear(4, name="added"))
    step = mk.jit(lambda x: optimizer.minimize(lambda: loss_of(other(x)), other))
    step(BATCHES[3])
    assert (len(optimizer.m), len(trained.optimizer.m)) == (8, 6)
    trained.train(3)
    trained.check()


# Drawing anew.


class Block(mk.Module):
    """Variables from the constructor and from a method under once, a shared weight, a stream, statistics."""

    def __init__(self, size: int, name: str) -> None:
        super().__init__(name=name)
        self.gain = mk.Variable(mk.initializers.RandomNormal()([size], jnp.float32), name="gain")
        self.mean = mk.Variable(jnp.zeros([size]), trainable=False, name="mean")
        self.encode = mk.Linear(size, w_init=mk.initializers.RandomNormal(), b_init=mk.initializers.RandomNormal())
        self.decode = self.encode.transpose(b_init=mk.initializers.RandomNormal())
        self.noise = mk.Dropout(0.5, seed=3)

    @mk.once
    def _initialize(self, x: jax.Array) -> None:
        self.bias = mk.Variable(mk.initializers.RandomNormal()([x.shape[-1]], x.dtype), name="bias")
        self.pair = {"s": [mk.Variable(mk.initializers.RandomNormal()([], x.dtype), name="scale")]}

    def __call__(self, x: jax.Array) -> jax.Array:
        self._initialize(x)
        y = self.noise(self.encode(x) * self.gain, is_training=True)
        self.mean.assign(y.mean(axis=0))
        return self.decode(y) * self.pair["s"][0] + self.bias


class Net(mk.Module):
    """Two blocks of one class and a head, in the order in which they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = [Block(3, "first"), Block(3, "second")]
        self.head = mk.nets.MLP([5, 2], name="head")

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def built(seed: int) -> Net:
    mk.seed(seed)
    made = Net()
    mk.build(made, X)
    return made


def values(module: mk.Module) -> Arrays:
    return {path: v.numpy() for path, v in module.paths().items()}


@functools.cache
def trained() -> tuple[Net, mk.optimizers.Adam, Any, Arrays, Arrays]:
    """Returns a model after a compiled step, always the same one, with the values that it and its slots have then."""
    module, optimizer = built(0), mk.optimizers.Adam(0.1)
    step = mk.jit(lambda x: optimizer.minimize(lambda: loss_of(module(x)), module))
    step(X)
    return module, optimizer, step, values(module), values(optimizer)


PATTERNS: dict[str, Callable[[str], bool]] = {
    "**": lambda path: True,
    "head/**": lambda path: path.startswith("head"),
    "head/layers/1": lambda path: path.startswith("head.layers[1]"),
    "blocks/1": lambda path: path.startswith("blocks[1]"),
    "blocks/*/gain": lambda path: path.endswith("gain"),
    "blocks[1].pair": lambda path: path.startswith("blocks[1].pair"),
    "blocks/0/decode": lambda path: path.startswith("blocks[0].decode") or path == "blocks[0].encode.w",
    "**/w": lambda path: path.endswith(".w"),
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_fits_is_drawn_as_a_fresh_model_draws_it_and_all_else_stays(pattern: str) -> None:
    fresh, (module, optimizer, step, before, slots) = values(built(1)), trained()
    module.assign(before), optimizer.assign(slots)
    held, ties = module.paths(), [str(tie) for tie in module.ties()]
    found = module.reinitialize(pattern, seed=1)
    streams = ("stream.key", "stream.counter")
    assert set(found) == {path for path in before if PATTERNS[pattern](path) and not path.endswith(streams)}
    for path, value in values(module).items():
        np.testing.assert_array_equal(value, fresh[path] if path in found else before[path], err_msg=path)
    assert all(module.paths()[path] is v for path, v in held.items())
    assert [str(tie) for tie in module.ties()] == ties and len(ties) == 2
    assert_bitwise(values(optimizer), slots)
    step(X)
    assert len(step.traces) == 1


def test_siblings_of_one_name_are_drawn_differently_whether_at_once_or_one_by_one() -> None:
    mk.seed(0)
    at_once = mk.Sequential([mk.Linear(4), mk.Linear(4), mk.Linear(4)])
    at_once(X)
    one_by_one = copy.deepcopy(at_once)
    at_once.reinitialize(seed=1)
    for index in (2, 0, 1):
        one_by_one.reinitialize(f"layers/{index}", seed=1)
    assert_bitwise(values(one_by_one), values(at_once))
    first, second, third = (layer.w.numpy() for layer in at_once.layers)
    assert not np.array_equal(first, second) and not np.array_equal(second, third)


def test_later_draws_are_not_disturbed() -> None:
    def later(change: Callable[[Net], Any]) -> Arrays:
        change(built(5))
        more = Net()
        mk.build(more, X)
        return values(more)

    assert_bitwise(later(lambda module: module.reinitialize("head", seed=9)), later(lambda module: None))


def test_a_built_module_that_makes_tied_layers_is_drawn_anew_without_a_warning() -> None:
    class Pair(mk.Module):
        @mk.once
        def _initialize(self) -> None:
            self.encode = mk.Linear(3)
            self.decode = self.encode.transpose()
            self.gain = mk.Variable(mk.initializers.RandomNormal()([], jnp.float32), name="gain")

        def __call__(self, x: jax.Array) -> jax.Array:
            self._initialize()
            return self.decode(self.encode(x)) * self.gain

    pair = Pair()
    pair(X)
    gain = float(pair.gain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pair.reinitialize("gain", seed=8)
    assert float(pair.gain) != gain and str(pair.ties()[0]) == "decode.w (transposed) = encode.w"


class Appending(mk.Module):
    """Makes its variables into a list of the constructor's."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[mk.Variable] = []

    @mk.once
    def _initialize(self) -> None:
        self.weights.append(mk.Variable(mk.initializers.RandomNormal()([3], jnp.float32), name="w"))

    def __call__(self, x: jax.Array) -> jax.Array:
        self._initialize()
        return x.sum() * self.weights[0]


def assigned() -> mk.Module:
    module = mk.Linear(2)
    module(X)
    module.extra = mk.Variable(1.0, name="extra")
    return module


def appending() -> mk.Module:
    module = Appending()
    module(X)
    return module


def stacked() -> mk.Module:
    module = mk.stack(mk.Linear(4), 3)
    module(X)
    return module


@pytest.mark.parametrize(
    ("make", "paths"),
    [(assigned, "extra"), (appending, "weights[0]"), (stacked, "layer.b, layer.w")],
    ids=["assigned by hand", "appended", "stacked"],
)
def test_what_cannot_be_drawn_anew_is_named_and_nothing_has_changed(make: Any, paths: str) -> None:
    module = make()
    for variable in module.variables:
        variable.assign_add(jnp.ones(variable.shape))
    before, held = values(module), module.paths()
    with pytest.raises(ValueError) as raised:
        module.reinitialize(seed=1)
    assert str(raised.value) == (
        f"{paths} of {module!r} cannot be drawn anew: a variable can be if its module makes it in a method under @mk.once, "
        "called with arrays and plain values, or in the constructor of a module that was not copied since. Nothing has "
        "changed; assign the others by hand"
    )
    assert_bitwise(values(module), before)
    assert module.paths() == held


def test_drawing_anew_inside_a_transform_raises() -> None:
    with pytest.raises(RuntimeError, match=r"^reinitialize was called inside a transform: call it between two steps"):
        mk.jit(lambda: assigned().reinitialize(seed=1))()


def test_a_compiled_step_and_a_handed_out_array_survive_a_new_draw() -> None:
    module, _, step, before, _ = trained()
    module.assign(before)
    held = module.head.layers[0].w.value
    copied = np.asarray(held).copy()
    with mk.trial() as attempt:
        module.reinitialize("head", seed=1)
        step(X)
        attempt.rollback()
    np.testing.assert_array_equal(module.head.layers[0].w.numpy(), copied)
    module.reinitialize("head", seed=1)
    step(X), step(X)
    np.testing.assert_array_equal(np.asarray(held), copied)

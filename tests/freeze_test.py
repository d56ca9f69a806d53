"""Laws of freezing: what is frozen stays bit for bit, the rest trains as if it were alone, and a thaw goes on from there."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import assert_bitwise

import modulekit as mk
import scenarios

State = dict[str, np.ndarray]
WARM, FROZEN, THAWED = 5, 100, 20
BATCHES = np.random.default_rng(0).normal(size=(WARM + FROZEN + THAWED, 6, 5)).astype(np.float32)
X = BATCHES[0]
ENCODER = {"encoder.b", "encoder.w", "encoder.mean"}


class Encoder(mk.Module):
    """A layer that keeps a moving mean of its outputs and takes it away."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = mk.Variable(jnp.zeros([4]), trainable=False, name="mean")

    @mk.once
    def _initialize(self, x: jax.Array) -> None:
        self.w = mk.Variable(mk.initializers.TruncatedNormal(0.5)([x.shape[-1], 4], x.dtype), name="w")
        self.b = mk.Variable(jnp.zeros([4]), name="b")

    def __call__(self, x: jax.Array) -> jax.Array:
        self._initialize(x)
        y = jnp.tanh(x @ self.w + self.b)
        self.mean.assign(0.9 * self.mean + 0.1 * y.mean(axis=0))
        return y - self.mean


class Net(mk.Module):
    """An encoder with statistics, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.head = mk.Linear(3, name="head")

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.encoder(x))


class Pair(mk.Module):
    """A layer and its transpose: one weight, two paths."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = mk.Linear(3)
        self.decode = self.encode.transpose()

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.decode(jnp.tanh(self.encode(x)))


class Plain(mk.Optimizer):
    """A third party's optimizer, which knows nothing of freezing."""

    def apply(self, updates: Any, parameters: Any) -> None:
        for update, parameter in zip(updates, parameters, strict=True):
            parameter.assign_sub(0.1 * update)


def net() -> Net:
    mk.seed(3)
    made = Net()
    mk.build(made, X)
    return made


def state(module: mk.Module) -> State:
    return {path: variable.numpy() for path, variable in module.paths().items()}


def loss_of(module: Any, x: Any) -> jax.Array:
    return jnp.mean(jnp.square(module(x) - 0.5))


def stepper(module: Any, optimizer: Any) -> Any:
    return mk.jit(lambda x: optimizer.minimize(lambda: loss_of(module, x), module))


# The reference: plain JAX and optax over a dict, with a state for each of its keys.


def plain_loss(trained: dict[str, Any], others: dict[str, Any], x: Any) -> tuple[Any, Any]:
    p = trained | others
    y = jnp.tanh(x @ p["encoder.w"] + p["encoder.b"])
    mean = p["encoder.mean"] if "encoder.w" in others else 0.9 * p["encoder.mean"] + 0.1 * y.mean(axis=0)
    out = (y - mean) @ p["head.w"] + p["head.b"]
    return jnp.mean(jnp.square(out - 0.5)), mean


def by_key(function: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    """Applies a function to the dicts in two optax states, and takes the rest from the right one."""
    is_dict = lambda node: isinstance(node, dict)  # noqa: E731
    return jax.tree.map(lambda a, b: function(a, b) if is_dict(a) else b, left, right, is_leaf=is_dict)


def reference(rule: optax.GradientTransformation, start: State) -> tuple[State, State, State]:
    """Returns the variables after training all of them, then the head alone, then all of them again."""
    params = {key: jnp.asarray(value) for key, value in start.items()}
    weights = sorted(set(params) - {"encoder.mean"})
    rules = rule.init({key: params[key] for key in weights})

    @jax.jit
    def step(trained: Any, others: Any, rules: Any, x: Any) -> Any:
        (_, mean), grads = jax.value_and_grad(plain_loss, has_aux=True)(trained, others, x)
        steps, rules = rule.update(grads, rules, trained)
        return optax.apply_updates(trained, steps), mean, rules

    found, batches = [], iter(BATCHES)
    for count, keys in ((WARM, weights), (FROZEN, ["head.b", "head.w"]), (THAWED, weights)):
        own = by_key(lambda a, _, keys=keys: {k: a[k] for k in keys}, rules, rules)
        for _ in range(count):
            others = {key: value for key, value in params.items() if key not in keys}
            trained, mean, own = step({key: params[key] for key in keys}, others, own, next(batches))
            params = {**params, **trained, "encoder.mean": mean}
        rules = by_key(lambda a, b: {**a, **b}, rules, own)
        found.append({key: np.asarray(value) for key, value in params.items()})
    return tuple(found)


RULES: dict[str, tuple[Callable[[], Any], optax.GradientTransformation]] = {
    "adamw": (
        lambda: mk.optimizers.Optax(optax.adamw(1e-3, weight_decay=0.1)),
        optax.adamw(1e-3, weight_decay=0.1),
    ),
    "adam": (
        lambda: mk.optimizers.Adam(1e-2),
        optax.chain(optax.scale_by_adam(0.9, 0.999, 1e-8), optax.scale(-1e-2)),
    ),
    "momentum": (lambda: mk.optimizers.Momentum(0.1, 0.9), optax.chain(optax.trace(0.9), optax.scale(-0.1))),
}


@pytest.mark.parametrize("name", RULES)
def test_the_frozen_stay_and_the_others_train_alone_and_a_thaw_goes_on_with_the_kept_moments(name: str) -> None:
    make, rule = RULES[name]
    module, optimizer = net(), make()
    expected = reference(rule, state(module))
    step, batches = stepper(module, optimizer), iter(BATCHES)

    def check(want: State) -> None:  # XLA may fuse the two programs differently: the last bit of float32, 125 times
        for path, value in state(module).items():
            np.testing.assert_allclose(value, want[path], rtol=1e-6, atol=1e-6, err_msg=path)

    for _ in range(WARM):
        step(next(batches))
    check(expected[0])
    before, slots, held = state(module), state(optimizer), list(optimizer.paths().values())
    own = {path for path, v in optimizer.paths().items() if v.name.partition("/")[2].find("encoder/") >= 0}
    assert len(own) == 2 * (1 if name == "momentum" else 2) and any(slots[path].any() for path in own)
    assert module.freeze("encoder/**") == ("encoder.b", "encoder.mean", "encoder.w")
    for _ in range(FROZEN):
        step(next(batches))
    assert_bitwise({k: v for k, v in state(module).items() if k in ENCODER}, {k: before[k] for k in ENCODER})
    assert_bitwise({k: v for k, v in state(optimizer).items() if k in own}, {k: slots[k] for k in own})
    check(expected[1])
    assert module.thaw("encoder/**") == ("encoder.b", "encoder.mean", "encoder.w")
    for _ in range(THAWED):
        step(next(batches))
    check(expected[2])
    assert len(step.traces) == 3
    assert [id(v) for v in optimizer.paths().values()] == [id(v) for v in held]
    assert all(not np.array_equal(value, before[path]) for path, value in state(module).items())


def test_a_retrace_says_what_was_frozen() -> None:
    module, optimizer = net(), mk.optimizers.SGD(0.1)

    @mk.jit
    def step(x: Any) -> Any:
        return optimizer.minimize(lambda: loss_of(module, x), module)

    step(X)
    module.freeze("head/w")
    step(X), step(X)
    module.freeze("head/w")  # nothing new
    step(X)
    module.thaw("head")
    step(X)
    assert step.traces == (
        "step traced: argument x f32[6,5]",
        "step retraced: module.head.w.frozen changed False → True",
        "step retraced: module.head.w.frozen changed True → False",
    )


# What freezing means for gradients, writes and random numbers.


def test_a_frozen_variable_has_a_zero_gradient_if_it_is_listed_and_none_if_the_module_is() -> None:
    module = net()
    listed = [module.encoder.w, module.head.w]
    free = mk.grad(lambda: loss_of(module, X), listed)()
    module.freeze("encoder/w")
    for way in (mk.grad(lambda: loss_of(module, X), listed), mk.jit(mk.grad(lambda: loss_of(module, X), listed))):
        frozen, other = way()
        assert frozen.shape == (5, 4) and not np.asarray(frozen).any() and np.asarray(free[0]).any()
        assert np.asarray(other).any()
    assert [v.name for v in module.trainable_variables] == ["net/encoder/b", "net/head/b", "net/head/w"]
    assert len(mk.grad(lambda: loss_of(module, X), module)()) == 3
    read = [v for _, v in mk.implicit_value_and_gradients(lambda: loss_of(module, X))()[1]]
    assert module.encoder.w not in read and module.encoder.b in read


def by_grad_of_jit(module: Any, optimizer: Any) -> None:
    compiled = mk.jit(lambda x: loss_of(module, x))
    for x in BATCHES[:4]:
        optimizer.apply(mk.grad(compiled, module.paths().values())(x)[:], list(module.paths().values()))


def by_scan(module: Any, optimizer: Any) -> None:
    mk.scan(lambda c, x: (c, optimizer.minimize(lambda: loss_of(module, x), module)), None, BATCHES[:4])


def by_jit_of_scan(module: Any, optimizer: Any) -> None:
    mk.jit(lambda: by_scan(module, optimizer))()


def by_eager_steps(module: Any, optimizer: Any) -> None:
    for x in BATCHES[:4]:
        optimizer.minimize(lambda x=x: loss_of(module, x), module)


@pytest.mark.parametrize("way", [by_scan, by_jit_of_scan, by_grad_of_jit, by_eager_steps])
@pytest.mark.parametrize("make", [lambda: mk.optimizers.Optax(optax.adamw(0.1, weight_decay=0.5)), Plain])
def test_the_frozen_stay_in_loops_and_under_other_optimizers(way: Any, make: Any) -> None:
    module, optimizer = net(), make()
    module.encoder.mean.trainable = False
    module.freeze("encoder")
    before = state(module)
    way(module, optimizer)
    after = state(module)
    assert_bitwise({k: after[k] for k in ENCODER}, {k: before[k] for k in ENCODER})
    assert all(not np.array_equal(after[k], before[k]) for k in set(after) - ENCODER)


def test_what_a_module_writes_is_dropped_and_what_is_assigned_outside_is_done() -> None:
    module = net()
    module.freeze("encoder/mean")
    module(X), mk.jit(module)(X)
    assert not module.encoder.mean.numpy().any()
    module.encoder.mean.assign(jnp.full([4], 2.0))
    assert module.encoder.mean.numpy().tolist() == [2.0] * 4
    mk.jit(lambda: module.encoder.mean.assign_add(jnp.ones([4])))()
    assert module.encoder.mean.numpy().tolist() == [3.0] * 4
    module.assign({path: 0 * value for path, value in state(module).items()})
    assert not any(value.any() for value in state(module).values())
    with pytest.raises(ValueError, match=r"has shape \[4\] and cannot be assigned shape \[3\]"):
        module.encoder.mean.assign(jnp.zeros([3]))
    module.thaw("encoder/mean")
    module(X)
    assert module.encoder.mean.numpy().any() or not module.encoder.w.numpy().any()


def test_random_streams_go_on() -> None:
    module = mk.Sequential([mk.Linear(4), lambda x: dropout(x, is_training=True)])
    dropout = mk.Dropout(0.5, seed=1)
    module.dropout = dropout
    module(X)
    assert module.freeze() == ("layers[0].b", "layers[0].w")
    compiled = mk.jit(module)
    masks = [np.asarray(compiled(X)) == 0 for _ in range(3)]
    assert int(dropout.stream.counter) == 4
    assert not np.array_equal(masks[0], masks[1]) and not np.array_equal(masks[1], masks[2])
    assert not any(v.frozen for v in dropout.variables)


@pytest.mark.parametrize("pattern", ["encode/w", "decode/w", "decode.w", "*/w", "encode", "decode"])
def test_a_tied_weight_is_frozen_through_either_path(pattern: str) -> None:
    mk.seed(1)
    module, optimizer = Pair(), mk.optimizers.Adam(0.1)
    module(X)
    assert "decode.w" in module.freeze(pattern)
    assert module.encode.w is module.decode.w and module.encode.w.frozen
    before, b = module.encode.w.numpy(), module.encode.b.numpy()
    step = stepper(module, optimizer)
    step(X), step(X)
    np.testing.assert_array_equal(module.encode.w.numpy(), before)
    assert module.encode.b.frozen == np.array_equal(module.encode.b.numpy(), b)
    assert "decode.w" in module.thaw("encode/w")
    assert not module.decode.w.frozen


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_is_frozen_where_the_original_is_and_apart_from_it_afterwards(copied: Any) -> None:
    module, optimizer = net(), mk.optimizers.Adam(0.1)
    stepper(module, optimizer)(X)
    module.freeze("encoder")
    other, theirs = copied((module, optimizer))
    assert {path for path, v in other.paths().items() if v.frozen} == ENCODER
    module.thaw(), other.freeze("head/b")
    before = state(other)
    step = stepper(other, theirs)
    step(X), step(X)
    changed = {path for path, value in state(other).items() if not np.array_equal(value, before[path])}
    assert changed == {"head.w"} and not any(v.frozen for v in module.variables)
    other.thaw()
    step(X)
    assert not any(np.array_equal(value, before[path]) for path, value in state(other).items())


def test_frozen_and_trainable_are_two_flags() -> None:
    module = net()
    module.freeze()
    assert repr(module.head.w) == "Variable('net/head/w', float32[4,3], frozen)"
    assert repr(module.encoder.mean) == "Variable('net/encoder/mean', float32[4], trainable=False, frozen)"
    module.head.w.trainable = False
    module.thaw()
    assert not module.head.w.trainable and module.head.b.trainable and not module.encoder.mean.trainable


# What an optimizer does with a part of the parameters.


def test_the_global_norm_is_that_of_the_unfrozen() -> None:
    a, b = mk.Variable(jnp.zeros([2]), name="a"), mk.Variable(jnp.zeros([]), name="b")
    optimizer = mk.optimizers.Optax(optax.chain(optax.clip_by_global_norm(1.0), optax.scale(-1.0)))
    a.freeze()
    optimizer.apply([jnp.full([2], 100.0), jnp.array(0.5)], [a, b])
    assert a.numpy().tolist() == [0.0, 0.0] and float(b) == -0.5
    a.thaw()
    optimizer.apply([jnp.array([3.0, 0.0]), jnp.array(4.0)], [a, b])
    np.testing.assert_allclose([*a.numpy(), float(b)], [-0.6, 0.0, -1.3], rtol=1e-6)


def test_where_all_is_frozen_nothing_happens() -> None:
    module, optimizer = net(), mk.optimizers.Adam(0.1)
    step = stepper(module, optimizer)
    step(X)
    module.freeze()
    before, slots = state(module), state(optimizer)
    loss = step(X)
    assert float(loss) == pytest.approx(float(loss_of(module, X)), rel=1e-6)
    optimizer.minimize(lambda: loss_of(module, X), [module])
    optimizer.apply([jnp.ones(v.shape) for v in module.variables], module.variables)
    optimizer.apply_gradients({}, module)
    assert_bitwise(state(module), before)
    assert_bitwise(state(optimizer), slots)
    with pytest.raises(ValueError, match="`parameters` cannot be empty"):
        optimizer.minimize(lambda: jnp.zeros([]), [])


def test_a_scenario_trains_what_is_not_frozen_and_resumes(tmp_path: Any) -> None:
    def run(steps: int, directory: Any) -> tuple[Net, scenarios.Result]:
        module = net()
        module.freeze("encoder")
        train = scenarios.Supervised(steps, batch_size=6, save_dir=directory, progress=False, log_interval=5)
        data = (BATCHES.reshape(-1, 5)[:60], np.zeros([60, 3], np.float32))
        return module, train(module, mk.optimizers.Adam(0.01), mk.losses.squared_error, data=data)

    before = state(net())
    module, result = run(30, tmp_path / "whole")
    after = state(module)
    assert result.parameters == 4 * 3 + 3
    assert_bitwise({k: after[k] for k in ENCODER}, {k: before[k] for k in ENCODER})
    assert all(not np.array_equal(after[k], before[k]) for k in ("head.b", "head.w"))
    run(10, tmp_path / "part")
    assert_bitwise(state(run(30, tmp_path / "part")[0]), after)

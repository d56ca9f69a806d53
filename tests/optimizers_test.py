"""Optimizers: their equations, optax's arithmetic, and slots that belong to the variable."""

import copy
import functools
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import modulekit as mk
from modulekit import optimizers

Arrays = list[np.ndarray]
SHAPES = [(4, 3), (3,), (2, 4)]
STEPS = 20


@pytest.fixture(autouse=True)
def _start() -> None:
    mk.seed(0)


def arrays(seed: int, shapes: Sequence[tuple[int, ...]] = SHAPES) -> Arrays:
    generator = np.random.default_rng(seed)
    return [generator.normal(size=shape).astype(np.float32) for shape in shapes]


def variables(values: Arrays) -> list[mk.Variable]:
    return [mk.Variable(value, name=f"v{index}") for index, value in enumerate(values)]


def numpy_of(listed: Sequence[mk.Variable]) -> Arrays:
    return [variable.numpy() for variable in listed]


def check_bitwise(ours: Sequence[Any], expected: Sequence[Any]) -> None:
    assert len(ours) == len(expected)
    for left, right in zip(ours, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))


# References in float64, from the docstrings' equations: each takes the parameter and the gradients of all steps.


def sgd_reference(p: np.ndarray, gradients: Arrays) -> np.ndarray:
    for g in gradients:
        p = p - 0.1 * g
    return p


def momentum_reference(p: np.ndarray, gradients: Arrays, use_nesterov: bool) -> np.ndarray:
    a = np.zeros_like(p)
    for g in gradients:
        a = 0.9 * a + g
        p = p - 0.1 * (0.9 * a + g if use_nesterov else a)
    return p


def adam_reference(p: np.ndarray, gradients: Arrays, beta1: float, beta2: float, epsilon: float) -> np.ndarray:
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(gradients, 1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        p = p - 0.1 * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + epsilon)
    return p


def rms_prop_reference(p: np.ndarray, gradients: Arrays, momentum: float, epsilon: float, centered: bool) -> np.ndarray:
    s, mean, a = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    for g in gradients:
        s = 0.8 * s + 0.2 * g**2
        mean = 0.8 * mean + 0.2 * g
        a = momentum * a + 0.1 * g / np.sqrt(s - (mean**2 if centered else 0) + epsilon)
        p = p - a
    return p


REFERENCES: dict[str, tuple[Callable[[], optimizers.Optimizer], Callable[..., np.ndarray]]] = {
    "sgd": (lambda: optimizers.SGD(0.1), sgd_reference),
    "momentum": (lambda: optimizers.Momentum(0.1, 0.9), functools.partial(momentum_reference, use_nesterov=False)),
    "nesterov": (
        lambda: optimizers.Momentum(0.1, 0.9, use_nesterov=True),
        functools.partial(momentum_reference, use_nesterov=True),
    ),
    "adam": (lambda: optimizers.Adam(0.1), functools.partial(adam_reference, beta1=0.9, beta2=0.999, epsilon=1e-8)),
    "adam with its own decays": (
        lambda: optimizers.Adam(0.1, beta1=0.5, beta2=0.8, epsilon=0.1),
        functools.partial(adam_reference, beta1=0.5, beta2=0.8, epsilon=0.1),
    ),
    "rms_prop": (
        lambda: optimizers.RMSProp(0.1, 0.8),
        functools.partial(rms_prop_reference, momentum=0.0, epsilon=1e-10, centered=False),
    ),
    "rms_prop with momentum": (
        lambda: optimizers.RMSProp(0.1, 0.8, momentum=0.7, epsilon=1e-2),
        functools.partial(rms_prop_reference, momentum=0.7, epsilon=1e-2, centered=False),
    ),
    "centered rms_prop": (
        lambda: optimizers.RMSProp(0.1, 0.8, momentum=0.7, epsilon=1e-2, centered=True),
        functools.partial(rms_prop_reference, momentum=0.7, epsilon=1e-2, centered=True),
    ),
}


def halved_at_three(count: jax.Array) -> jax.Array:
    """A schedule that can be pickled."""
    return jnp.where(count < 3, 0.1, 0.05)


MAKERS = {name: make for name, (make, _) in REFERENCES.items()} | {
    "adamw by optax": lambda: optimizers.Optax(optax.adamw(0.1)),
    "clipped adam": lambda: optimizers.Clipped(optimizers.Adam(0.1), max_norm=1e6, max_value=0.5),
    "scheduled momentum": lambda: optimizers.Scheduled(optimizers.Momentum(0.1, 0.9), learning_rate=halved_at_three),
    "scaled adam": lambda: optimizers.LossScaled(optimizers.Adam(0.1)),
    "accumulated rms_prop": lambda: optimizers.Accumulated(optimizers.RMSProp(0.1, 0.8, 0.7), every=1),
}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("name", REFERENCES)
def test_twenty_steps_follow_the_docstring(name: str, compiled: bool) -> None:
    make, reference = REFERENCES[name]
    parameters, gradients = variables(arrays(0)), [arrays(seed) for seed in range(1, STEPS + 1)]
    optimizer = make()
    apply = mk.jit(lambda g: optimizer.apply(g, parameters)) if compiled else lambda g: optimizer.apply(g, parameters)
    for step in gradients:
        apply(list(map(jnp.asarray, step)))
    for index, (parameter, start) in enumerate(zip(parameters, arrays(0), strict=True)):
        expected = reference(start.astype(np.float64), [step[index].astype(np.float64) for step in gradients])
        np.testing.assert_allclose(parameter.numpy(), expected, rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_eager_steps_equal_compiled_ones(name: str) -> None:
    eager, compiled = variables(arrays(0)), variables(arrays(0))
    first, second = MAKERS[name](), MAKERS[name]()
    step = mk.jit(lambda g: second.apply(g, compiled))
    for seed in range(1, 6):
        gradients = list(map(jnp.asarray, arrays(seed)))
        first.apply(gradients, eager)
        step(gradients)
    for left, right in zip(numpy_of(compiled), numpy_of(eager), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MAKERS)
def test_the_first_apply_inside_jit_makes_concrete_slots(name: str) -> None:
    parameters, optimizer = variables(arrays(0)), MAKERS[name]()
    mk.jit(lambda g: optimizer.apply(g, parameters))(list(map(jnp.asarray, arrays(1))))
    held = optimizer.variables if name != "sgd" else ()
    assert len(held) == len(set(held))
    assert not any(isinstance(v.value, jax.core.Tracer) for v in (*held, *parameters))
    assert all(not variable.trainable for variable in held)
    eager = MAKERS[name]()
    eager.apply(list(map(jnp.asarray, arrays(1))), variables(arrays(0)))
    assert [(v.name, v.shape) for v in held] == [(v.name, v.shape) for v in (eager.variables if name != "sgd" else ())]


def test_slots_have_sonnets_names() -> None:
    layer = mk.Linear(2)
    layer(jnp.ones([1, 3]))
    gradients = [jnp.ones(v.shape) for v in layer.variables]
    expected = {
        optimizers.Adam: {"adam/t", "adam/m/linear/b", "adam/m/linear/w", "adam/v/linear/b", "adam/v/linear/w"},
        functools.partial(optimizers.Momentum, 0.1, 0.9): {
            "momentum/accumulated_momentum/linear/b",
            "momentum/accumulated_momentum/linear/w",
        },
        functools.partial(optimizers.RMSProp, 0.1, centered=True): {
            f"rms_prop/{slot}/linear/{name}" for slot in ("momentum", "rms", "mg") for name in "bw"
        },
    }
    for make, names in expected.items():
        optimizer = make()
        optimizer.apply(gradients, layer.variables)
        assert {v.name for v in optimizer.variables} == names


# Any optax transformation.


def callable_mask(parameters: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim > 1, parameters)


TRANSFORMATIONS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "adamw": lambda: optax.adamw(1e-2),
    "clip by global norm": lambda: optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1, momentum=0.9)),
    "lion": lambda: optax.lion(1e-2),
    "lamb": lambda: optax.lamb(1e-2),
    "lars": lambda: optax.lars(1e-2),
    "amsgrad": lambda: optax.amsgrad(1e-2),
    "schedule": lambda: optax.sgd(optax.linear_schedule(0.1, 0.01, 5), momentum=0.9),
    "masked decay with a schedule": lambda: optax.chain(
        optax.masked(optax.add_decayed_weights(0.1), callable_mask), optax.adam(optax.cosine_decay_schedule(0.1, 10))
    ),
    "mask by place": lambda: optax.chain(optax.masked(optax.trace(0.9), [True, False, True]), optax.scale(-0.1)),
    "accumulation over steps": lambda: optax.MultiSteps(optax.adam(0.01), 3).gradient_transformation(),
    "steps that must be finite": lambda: optax.apply_if_finite(optax.adam(0.01), 3),
    "adafactor": lambda: optax.adafactor(0.01),
    # States that do not start at zero.
    "adagrad": lambda: optax.adagrad(0.1),
    "yogi": lambda: optax.yogi(0.01),
    "rms_prop from one": lambda: optax.rmsprop(0.01, initial_scale=1.0),
    "rprop": lambda: optax.rprop(0.01),
    "injected hyperparameters": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.01),
    "schedule-free": lambda: optax.contrib.schedule_free_sgd(0.1),
    "noise": lambda: optax.noisy_sgd(0.1, key=jax.random.key(0)),
    # States with a structure of their own.
    "one per label": lambda: optax.multi_transform({"a": optax.adam(0.01), "b": optax.sgd(0.1)}, ["a", "b", "a"]),
    "muon": lambda: optax.contrib.muon(0.01),
    "sm3": lambda: optax.sm3(0.01),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_optax_transformations_do_what_they_do_in_optax(name: str) -> None:
    transformation = TRANSFORMATIONS[name]()
    expected = list(map(jnp.asarray, arrays(0)))
    state = transformation.init(expected)
    ours, optimizer = variables(arrays(0)), optimizers.Optax(TRANSFORMATIONS[name]())
    compiled, other = variables(arrays(0)), optimizers.Optax(TRANSFORMATIONS[name]())
    step = mk.jit(lambda g: other.apply(g, compiled))
    for seed in range(1, 8):
        gradients = list(map(jnp.asarray, arrays(seed)))
        updates, state = transformation.update(gradients, state, expected)
        expected = optax.apply_updates(expected, updates)
        optimizer.apply(gradients, ours)
        step(gradients)
    check_bitwise(numpy_of(ours), expected)
    for left, right in zip(numpy_of(compiled), expected, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


def test_named_optimizers_are_optaxs() -> None:
    pairs = [
        (optimizers.SGD(0.1), optax.sgd(0.1)),
        (optimizers.Momentum(0.1, 0.9), optax.sgd(0.1, momentum=0.9)),
        (optimizers.Momentum(0.1, 0.9, use_nesterov=True), optax.sgd(0.1, momentum=0.9, nesterov=True)),
        (optimizers.Adam(0.1), optax.adam(0.1)),
    ]
    for optimizer, transformation in pairs:
        parameters, expected = variables(arrays(0)), list(map(jnp.asarray, arrays(0)))
        state = transformation.init(expected)
        for seed in range(1, 6):
            gradients = list(map(jnp.asarray, arrays(seed)))
            optimizer.apply(gradients, parameters)
            updates, state = transformation.update(gradients, state)
            expected = optax.apply_updates(expected, updates)
        for left, right in zip(numpy_of(parameters), expected, strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-7)


# Slots belong to the variable.

STATEFUL = [name for name in MAKERS if name != "sgd"]
Plan = list[list[int]]  # the parameters of each step, in the order in which they are handed over


def follow(make: Callable[[], optimizers.Optimizer], plan: Plan, compiled: bool) -> list[Arrays]:
    """Trains parameters as planned; returns each parameter's value, and its slots.

    A parameter's gradient depends on the step and on the parameter alone.
    """
    parameters, optimizer = variables(arrays(0)), make()
    steps = {
        places: (lambda g, used=tuple(parameters[place] for place in places): optimizer.apply(g, used))
        for places in {tuple(places) for places in plan}
    }
    if compiled:
        steps = {places: mk.jit(step) for places, step in steps.items()}
    for seed, places in enumerate(plan, 1):
        gradients = arrays(seed)
        steps[tuple(places)]([jnp.asarray(gradients[place]) for place in places])
    return [
        numpy_of([parameter, *(v for v in optimizer.variables if v.name.endswith("/" + parameter.name))])
        for parameter in parameters
    ]


def check_survivors(ours: list[Arrays], expected: list[Arrays], compiled: bool) -> None:
    """Checks values and slots.

    The slots are equal bit for bit; where steps are compiled, up to a rounding, as XLA joins a product and a sum in one
    rounding or in two, depending on what stands around them. A value may be off by a rounding in any case: XLA compiles
    optax's bias correction for the whole list of parameters.
    """
    for (value, *slots), (expected_value, *expected_slots) in zip(ours, expected, strict=True):
        assert slots
        if not compiled:
            check_bitwise(slots, expected_slots)
        for slot, expected_slot in zip(slots, expected_slots, strict=True):
            np.testing.assert_allclose(slot, expected_slot, rtol=5e-7, atol=5e-8)
        np.testing.assert_allclose(value, expected_value, rtol=2e-6, atol=2e-7)


SURVIVALS: dict[str, tuple[Plan, Plan, int]] = {
    "added behind": ([[0]] * 3 + [[0, 1]] * 3, [[0]] * 6, 1),
    "added before": ([[0]] * 3 + [[1, 0]] * 3, [[0]] * 6, 1),
    "removed": ([[1, 0, 2]] * 3 + [[0]] * 3, [[0]] * 6, 1),
    "reordered": ([[0, 1], [1, 0]] * 3, [[0, 1]] * 6, 2),
    "one comes and goes": ([[0, 1]] * 2 + [[2, 1, 0]] * 2 + [[1, 0]] * 2, [[0, 1]] * 6, 2),
}


@pytest.mark.parametrize("change", SURVIVALS)
@pytest.mark.parametrize(
    ("name", "compiled"),
    [*((name, False) for name in STATEFUL), ("adam", True), ("momentum", True), ("adamw by optax", True)],
)
def test_survivors_keep_their_moments(name: str, compiled: bool, change: str) -> None:
    plan, control, survivors = SURVIVALS[change]
    ours, expected = (follow(MAKERS[name], which, compiled)[:survivors] for which in (plan, control))
    check_survivors(ours, expected, compiled)


def test_survivors_of_momentum_are_equal_bit_for_bit() -> None:
    for plan, control, survivors in SURVIVALS.values():
        ours, expected = (follow(MAKERS["momentum"], which, False)[:survivors] for which in (plan, control))
        for some, others in zip(ours, expected, strict=True):
            check_bitwise(some, others)


@pytest.mark.parametrize("name", STATEFUL)
def test_a_parameter_that_returns_finds_its_moments(name: str) -> None:
    parameters, optimizer = variables(arrays(0)), MAKERS[name]()
    optimizer.apply(list(map(jnp.asarray, arrays(1))), parameters)
    held = {v: v.numpy() for v in optimizer.variables if "/v1" in v.name}
    optimizer.apply([jnp.asarray(arrays(2)[0])], parameters[:1])
    check_bitwise([v.numpy() for v in held], list(held.values()))
    count = len(optimizer.variables)
    optimizer.apply(list(map(jnp.asarray, arrays(3))), parameters)
    assert len(optimizer.variables) == count
    assert any((v.numpy() != before).any() for v, before in held.items())


@pytest.mark.parametrize("name", STATEFUL)
def test_an_update_of_none_leaves_parameter_and_slots(name: str) -> None:
    parameters, optimizer = variables(arrays(0)), MAKERS[name]()
    optimizer.apply(list(map(jnp.asarray, arrays(1))), parameters)
    frozen = [parameters[1], *(v for v in optimizer.variables if v.name.endswith("/v1"))]
    before = numpy_of(frozen)
    gradients = list(map(jnp.asarray, arrays(2)))
    optimizer.apply([gradients[0], None, gradients[2]], parameters)
    check_bitwise(numpy_of(frozen), before)
    control, other = variables(arrays(0)), MAKERS[name]()
    other.apply(list(map(jnp.asarray, arrays(1))), control)
    other.apply([gradients[0], gradients[2]], [control[0], control[2]])
    check_bitwise(numpy_of(parameters), numpy_of(control))


def test_none_in_the_first_step_inside_jit() -> None:
    parameters, optimizer = variables(arrays(0)), optimizers.Adam(0.1)
    step = mk.jit(lambda g: optimizer.apply([g, None, None], parameters))
    step(jnp.asarray(arrays(1)[0]))
    check_bitwise(numpy_of(parameters[1:]), arrays(0)[1:])
    assert (parameters[0].numpy() != arrays(0)[0]).all()


@pytest.mark.parametrize("name", MAKERS)
def test_one_variable_twice_is_updated_twice(name: str) -> None:
    (once_more,), optimizer = variables(arrays(0)[:1]), MAKERS[name]()
    separate, other = variables([np.zeros_like(arrays(0)[0])] * 2), MAKERS[name]()
    gradients = list(map(jnp.asarray, arrays(1, [SHAPES[0]] * 2)))
    optimizer.apply(gradients, [once_more, once_more])
    if name != "adamw by optax":  # whose decay depends on the parameter
        other.apply(gradients, separate)
        moved = arrays(0)[0] + separate[0].numpy() + separate[1].numpy()
        np.testing.assert_allclose(once_more.numpy(), moved, rtol=1e-5, atol=1e-6)
    before = once_more.numpy()
    optimizer.apply([None, gradients[1]], [once_more, once_more])
    assert (once_more.numpy() != before).any()


def test_variables_of_one_name_have_slots_of_their_own() -> None:
    twins = [mk.Variable(value, name="w") for value in arrays(0, [(3,), (3,)])]
    apart = [mk.Variable(value, name=name) for value, name in zip(arrays(0, [(3,), (3,)]), "ab", strict=True)]
    first, second = optimizers.Adam(0.1), optimizers.Adam(0.1)
    for seed in range(1, 5):
        gradients = list(map(jnp.asarray, arrays(seed, [(3,), (3,)])))
        first.apply(gradients, twins)
        second.apply(gradients, apart)
    check_bitwise(numpy_of(twins), numpy_of(apart))
    assert len(first.variables) == 5
    assert len(set(first.paths())) == 5


# Hyperparameters.


def test_a_learning_rate_may_be_a_variable_assigned_between_steps() -> None:
    rate = mk.Variable(0.5, trainable=False, name="learning_rate")
    w = mk.Variable(1.0, name="w")
    optimizer = optimizers.SGD(rate)
    step = mk.jit(lambda: optimizer.apply([jnp.array(1.0)], [w]))
    for value, expected in ((0.5, 0.5), (0.25, 0.25), (0.125, 0.125)):
        rate.assign(value)
        step()
        assert float(w) == expected
    rate.assign(1.0)
    optimizer.apply([jnp.array(1.0)], [w])
    assert float(w) == -0.875
    assert rate in optimizer.variables


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "rms_prop"])
def test_a_changed_learning_rate_reaches_the_compiled_step(name: str) -> None:
    (w,), (control,) = variables(arrays(0)[:1]), variables(arrays(0)[:1])
    compiled, eager = MAKERS[name](), MAKERS[name]()
    step = mk.jit(lambda g: compiled.apply([g], [w]))
    for seed, rate in enumerate((0.1, 0.1, 0.01, 0.5, 0.1), 1):
        compiled.learning_rate = eager.learning_rate = rate
        gradient = jnp.asarray(arrays(seed)[0])
        step(gradient)
        eager.apply([gradient], [control])
        np.testing.assert_allclose(w.numpy(), control.numpy(), rtol=1e-5, atol=1e-6)


def test_any_hyperparameter_may_be_a_variable() -> None:
    w, control = mk.Variable(jnp.ones([3]), name="w"), mk.Variable(jnp.ones([3]), name="w")
    kinds = {"learning_rate": 0.1, "beta1": 0.5, "beta2": 0.7, "epsilon": 0.01}
    boxes = {key: mk.Variable(value, trainable=False, name=key) for key, value in kinds.items()}
    boxed, plain = optimizers.Adam(**boxes), optimizers.Adam(**kinds)
    step = mk.jit(lambda g: boxed.apply([g], [w]))
    for seed in range(3):
        gradient = jnp.asarray(arrays(seed, [(3,)])[0])
        step(gradient)
        plain.apply([gradient], [control])
    np.testing.assert_allclose(w.numpy(), control.numpy(), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=lambda d: jnp.dtype(d).name)
@pytest.mark.parametrize("name", MAKERS)
def test_parameters_keep_their_half_precision(name: str, dtype: Any) -> None:
    w = mk.Variable(jnp.ones([3], dtype), name="w")
    optimizer = MAKERS[name]()
    for _ in range(2):
        optimizer.apply([jnp.ones([3], dtype)], [w])
    assert w.dtype == dtype
    assert np.isfinite(w.numpy().astype(np.float32)).all()
    assert (w.numpy().astype(np.float32) < 1).all()


# The verbs beside apply.


def test_apply_gradients_takes_numpy_arrays_in_pairs() -> None:
    ours, control = variables(arrays(0)), variables(arrays(0))
    first, second = optimizers.Adam(0.1), optimizers.Adam(0.1)
    for seed in range(1, 4):
        first.apply_gradients(zip(arrays(seed), ours, strict=True))
        second.apply(list(map(jnp.asarray, arrays(seed))), control)
    check_bitwise(numpy_of(ours), numpy_of(control))
    first.apply_gradients([(None, ours[0]), (arrays(4)[1], ours[1])])
    check_bitwise(numpy_of(ours[:1]), numpy_of(control[:1]))


def test_updates_may_be_variables() -> None:
    w, g = mk.Variable(jnp.ones([2]), name="w"), mk.Variable(jnp.array([1.0, 2.0]), name="g")
    optimizers.SGD(0.5).apply([g], [w])
    assert w.numpy().tolist() == [0.5, 0.0]


def quadratic() -> tuple[mk.nets.MLP, Callable[[], Any]]:
    mk.seed(1)
    model = mk.nets.MLP([4, 1], activation=jnp.tanh)
    x = np.linspace(-1, 1, 10, dtype=np.float32).reshape(5, 2)
    return model, lambda: (model(x) ** 2).mean()


def test_compute_gradients_pairs_gradients_with_variables() -> None:
    model, loss = quadratic()
    optimizer = optimizers.SGD(0.1)
    pairs = optimizer.compute_gradients(loss, model)
    assert [variable for _, variable in pairs] == list(model.trainable_variables)
    check_bitwise([g for g, _ in pairs], mk.grad(loss, model.trainable_variables)())
    chosen = list(model.trainable_variables[::-1][:2])
    listed = optimizer.compute_gradients(loss, chosen)
    assert [variable for _, variable in listed] == chosen
    assert all(g.shape == v.shape for g, v in listed)
    before = numpy_of(model.variables)
    optimizer.apply_gradients(pairs)
    for old, variable, (gradient, _) in zip(before, model.variables, pairs, strict=True):
        np.testing.assert_allclose(variable.numpy(), old - 0.1 * np.asarray(gradient), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("listed", [False, True], ids=["module", "list"])
def test_minimize_returns_the_loss_before_its_step(listed: bool) -> None:
    model, loss = quadratic()
    optimizer = optimizers.Adam(0.05)
    if listed:
        loss()
    targets = list(model.trainable_variables) if listed else model
    first = float(optimizer.minimize(loss, targets))
    assert float(loss()) < first
    second = optimizer.minimize(loss, targets)
    assert float(second) < first
    compiled = mk.jit(lambda: optimizer.minimize(loss, targets))
    assert [float(compiled()) for _ in range(50)][-1] < 0.05 * first


def test_minimize_hands_out_what_the_loss_returns_beside_it() -> None:
    found = []
    for has_aux in (False, True):
        w, optimizer = mk.Variable(jnp.array([1.0, -2.0]), name="w"), optimizers.Adam(0.1)

        def loss(w: Any = w, has_aux: bool = has_aux) -> Any:
            value = jnp.square(w.value).sum()
            return (value, {"norm": jnp.sqrt(value)}) if has_aux else value

        step = mk.jit(
            lambda optimizer=optimizer, loss=loss, w=w, aux=has_aux: optimizer.minimize(loss, [w], has_aux=aux)
        )
        found.append((step(), w.numpy()))
    (plain, first), ((value, aux), second) = found
    assert float(value) == float(plain) == 5.0
    assert float(aux["norm"]) == pytest.approx(5**0.5)
    assert first.tobytes() == second.tobytes()


def test_minimize_changes_nothing_but_its_list() -> None:
    model, loss = quadratic()
    loss()
    bias, *others = model.trainable_variables
    before = numpy_of(others)
    optimizers.SGD(0.1).minimize(loss, [bias])
    check_bitwise(numpy_of(others), before)


def test_a_frozen_variable_is_left_out_and_thawed_with_its_moments() -> None:
    model, loss = quadratic()
    optimizer = optimizers.Adam(0.05)
    step = mk.jit(lambda: optimizer.minimize(loss, model))
    step()
    frozen = model.layers[0].w
    frozen.trainable = False
    before = frozen.numpy()
    step()
    check_bitwise([frozen.numpy()], [before])
    frozen.trainable = True
    count = len(optimizer.variables)
    step()
    assert (frozen.numpy() != before).any()
    assert len(optimizer.variables) == count


def test_a_step_that_reads_no_frozen_variable_notices_its_thaw() -> None:
    (a, b), optimizer = variables([np.ones(2, np.float32)] * 2), optimizers.SGD(0.5)
    step = mk.jit(lambda g: optimizer.apply([g, g], [a, b]))
    step(jnp.ones(2))
    b.freeze()
    step(jnp.ones(2))
    b.thaw()
    step(jnp.ones(2))
    assert (a.numpy().tolist(), b.numpy().tolist()) == ([-0.5, -0.5], [0.0, 0.0])


# What is refused.


def one() -> mk.Variable:
    return mk.Variable(jnp.ones([2, 3]), name="w")


APPLY_ERRORS: list[tuple[Callable[[], tuple[list[Any], list[Any]]], type[Exception], str]] = [
    (
        lambda: ([jnp.ones([2, 3])], []),
        ValueError,
        "`updates` and `parameters` must be the same length. Received: 1 updates and 0 parameters",
    ),
    (lambda: ([], []), ValueError, "`parameters` cannot be empty."),
    (lambda: ([None, None], [one(), one()]), ValueError, "No updates provided for any parameter."),
    (
        lambda: ([jnp.ones([3])], [one()]),
        ValueError,
        "Shape of update float32[3] is not equal to that of parameter variable 'w', [2, 3]",
    ),
    (
        lambda: ([jnp.ones([2, 3], jnp.float16)], [one()]),
        ValueError,
        "DType of update float16[2,3] is not equal to that of parameter variable 'w', float32",
    ),
    (
        lambda: ([jnp.ones([2, 3])], [jnp.ones([2, 3])]),
        TypeError,
        "parameters must be variables. Received: float32[2,3]",
    ),
]


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(("arguments", "kind", "text"), APPLY_ERRORS)
def test_apply_says_what_does_not_fit(arguments: Any, kind: type[Exception], text: str, name: str) -> None:
    with pytest.raises(kind) as caught:
        MAKERS[name]().apply(*arguments())
    assert str(caught.value) == text


@pytest.mark.parametrize("name", MAKERS)
def test_a_refused_apply_changes_nothing(name: str) -> None:
    parameters, optimizer = variables(arrays(0)), MAKERS[name]()
    optimizer.apply(list(map(jnp.asarray, arrays(1))), parameters)
    everything = [*parameters, *(optimizer.variables if name != "sgd" else ())]
    before = numpy_of(everything)
    gradients = list(map(jnp.asarray, arrays(2)))
    with pytest.raises(ValueError, match="Shape of update"):
        optimizer.apply([*gradients[:2], jnp.ones([9])], parameters)
    check_bitwise(numpy_of(everything), before)


def test_an_optimizer_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        mk.Optimizer()  # type: ignore[abstract]


# Copies.


def pickled(pair: Any) -> Any:
    return pickle.loads(pickle.dumps(pair))


# Optax's transformations are closures, which can be copied but not pickled.
COPIES = [
    (name, copier)
    for name in MAKERS
    for copier in (copy.deepcopy, pickled)
    if "optax" not in name or copier is not pickled
]


@pytest.mark.parametrize(("name", "copier"), COPIES)
def test_a_copied_model_and_optimizer_train_on_as_the_original(name: str, copier: Callable[[Any], Any]) -> None:
    def step(model: mk.nets.MLP, optimizer: optimizers.Optimizer, seed: int) -> None:
        x = arrays(seed, [(4, 3)])[0]
        gradients = mk.grad(lambda: (model(x) ** 2).sum(), model)()
        optimizer.apply(gradients, model.trainable_variables)

    model, optimizer = mk.nets.MLP([4, 2], activation=jnp.tanh), MAKERS[name]()
    for seed in range(3):
        step(model, optimizer, seed)
    twin, its_optimizer = copier((model, optimizer))
    assert not set(twin.variables) & set(model.variables)
    before = numpy_of(twin.variables)
    for seed in range(3, 6):
        step(model, optimizer, seed)
    check_bitwise(numpy_of(twin.variables), before)
    for seed in range(3, 6):
        step(twin, its_optimizer, seed)
    check_bitwise(numpy_of(twin.variables), numpy_of(model.variables))
    if name != "sgd":
        check_bitwise(numpy_of(its_optimizer.variables), numpy_of(optimizer.variables))

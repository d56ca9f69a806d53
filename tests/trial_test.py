"""Laws of `mk.trial`: what is taken back has never happened, bit for bit, whichever way it happened."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import assert_bitwise
from catalogue import state as state_of

import modulekit as mk
import scenarios
from modulekit.core.randomness import default_stream

State = dict[str, np.ndarray]
BATCHES = np.random.default_rng(0).normal(size=(40, 4, 5)).astype(np.float32)
X = BATCHES[0]


class Net(mk.Module):
    """Dropout from the default stream and from one of its own, and statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = mk.Linear(6, name="hidden")
        self.output = mk.Linear(2, name="output")
        self.dropout = mk.Dropout(0.4)
        self.own = mk.Dropout(0.3, seed=5)
        self.mean = mk.Variable(jnp.zeros([6]), trainable=False, name="mean")

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.own(self.dropout(jnp.tanh(self.hidden(x)), is_training=True), is_training=True)
        self.mean.assign(0.9 * self.mean + 0.1 * h.mean(axis=0))
        return self.output(h - self.mean)


class Run:
    """A model in training, and the ways to take steps."""

    def __init__(self, is_built: bool) -> None:
        mk.seed(9)
        self.net, self.optimizer = Net(), mk.optimizers.Adam(0.05)
        self.compiled = mk.jit(self.plain)
        self.scanned = mk.jit(self.by_scan)
        if is_built:
            self.compiled(X), self.compiled(X)

    def plain(self, x: Any) -> Any:
        return self.optimizer.minimize(lambda: jnp.square(self.net(x) - 0.5).mean(), self.net)

    def eagerly(self, x: Any) -> None:
        with mk.eager():
            self.compiled(x)

    def by_scan(self, x: Any) -> None:
        mk.scan(lambda carry, row: (carry, self.plain(row)), None, jnp.stack([x, 2 * x]))

    def by_jit_of_scan(self, x: Any) -> None:
        self.scanned(x)

    def by_while_loop(self, x: Any) -> None:
        mk.while_loop(lambda count: count < 2, lambda count: (self.plain(x), count + 1)[1], 0)

    def by_functionalize(self, x: Any) -> None:
        mk.build(self.plain, x)
        variables = [*self.net.variables, *self.optimizer.variables, *default_stream().variables]
        pure, values = mk.functionalize(self.plain, variables)
        pure.commit(jax.jit(pure)(values, x)[1])

    def by_assignment(self, x: Any) -> None:
        for variable in [*self.net.paths().values(), *self.optimizer.paths().values()]:
            variable.assign(jnp.ones_like(variable.value))
        mk.next_key()

    def paths(self) -> dict[str, mk.Variable]:
        return self.net.paths() | {f"optimizer.{path}": v for path, v in self.optimizer.paths().items()}

    def state(self) -> State:
        return state_of(self.net) | {path: v.numpy() for path, v in self.paths().items()}

    def steps(self, batches: Any) -> list[State]:
        """Returns the state after each of some steps."""
        return [(self.compiled(x), self.state())[1] for x in batches]


@functools.cache
def never_tried(is_built: bool) -> list[State]:
    """Returns the state of a run without any trial: at its start, and after each of ten steps."""
    run = Run(is_built)
    return [run.state(), *run.steps(BATCHES[10:20])]


@functools.cache
def _one_run() -> tuple[Run, dict[mk.Variable, np.ndarray]]:
    run = Run(is_built=True)
    return run, {v: v.numpy() for v in (*run.paths().values(), *default_stream().variables)}


def started() -> Run:
    """Returns a run at its start; it is always the same one, since its programs take long to compile."""
    run, start = _one_run()
    for variable, value in start.items():
        variable.assign(value)
    return run


WAYS = [
    "compiled",
    "plain",
    "eagerly",
    "by_scan",
    "by_jit_of_scan",
    "by_while_loop",
    "by_functionalize",
    "by_assignment",
]


@contextlib.contextmanager
def taken_back(by: str) -> Iterator[None]:
    """A trial that is taken back by an exception, by a request, or by one in the middle and one at the end."""
    if by == "exception":
        with pytest.raises(KeyboardInterrupt, match="mine"), mk.trial():
            yield
            raise KeyboardInterrupt("mine")
    else:
        with mk.trial() as attempt:
            yield
            attempt.rollback()
    assert attempt_is_over()


def attempt_is_over() -> bool:
    """Whether writes are kept again: no trial is open that would note them."""
    probe = mk.Variable(0.0)
    with contextlib.suppress(ZeroDivisionError):
        probe.assign(1.0)
        raise ZeroDivisionError
    return float(probe) == 1.0


def check_never_tried(run: Run, is_built: bool = True) -> None:
    """Asserts that a run stands where it started, and goes on as one that has tried nothing."""
    before, *later = never_tried(is_built)
    after = run.state()
    assert_bitwise({path: after[path] for path in before}, before)
    for state, expected in zip(run.steps(BATCHES[10:20]), later, strict=True):
        assert_bitwise(state, expected)


@pytest.mark.parametrize("way", WAYS)
def test_after_a_trial_that_is_taken_back_all_goes_on_as_if_it_had_never_been(way: str) -> None:
    before, run = never_tried(True)[0], started()
    for by in ("exception", "request"):
        with taken_back(by):
            getattr(run, way)(BATCHES[2]), getattr(run, way)(BATCHES[3])
            assert not np.array_equal(run.net.hidden.w.numpy(), before["hidden.w"])
        assert_bitwise(run.state(), before)
    check_never_tried(run)


@pytest.mark.parametrize("way", ["compiled", "plain", "by_scan"])
def test_a_model_that_is_made_inside_has_its_first_values(way: str) -> None:
    never_tried(False)
    run = Run(is_built=False)
    with taken_back("request"):
        getattr(run, way)(X), getattr(run, way)(X)
    check_never_tried(run, is_built=False)


@pytest.mark.parametrize("donate", [True, False], ids=["donated", "not donated"])
def test_arrays_that_were_handed_out_stay_valid(donate: bool) -> None:
    run = started()
    step = run.compiled if donate else mk.jit(run.plain, donate=False)
    outside = {path: (v.value, v.numpy()) for path, v in run.paths().items()}
    with mk.trial() as attempt:
        step(X)
        inside = {path: (v.value, v.numpy()) for path, v in run.paths().items()}
        step(X)
        attempt.rollback()
        again = {path: (v.value, v.numpy()) for path, v in run.paths().items()}
        step(X), step(X)
    step(X)
    for held in (outside, inside, again):
        for path, (array, copied) in held.items():
            np.testing.assert_array_equal(np.asarray(array), copied, err_msg=path)
    assert_bitwise({k: v for k, (_, v) in again.items()}, {k: v for k, (_, v) in outside.items()})
    assert not np.array_equal(inside["hidden.w"][1], outside["hidden.w"][1])


def test_a_trial_that_is_not_taken_back_keeps_everything() -> None:
    run = started()
    with mk.trial():
        run.compiled(BATCHES[10])
    assert_bitwise(run.state(), never_tried(True)[1])


def test_a_second_rollback_takes_back_what_came_after_the_first() -> None:
    run = started()
    with mk.trial() as attempt:
        for way in (run.compiled, run.by_assignment, run.compiled):
            way(X)
            attempt.rollback()
            assert_bitwise(run.state(), never_tried(True)[0])
            attempt.rollback()
            assert_bitwise(run.state(), never_tried(True)[0])
        run.compiled(BATCHES[10])
    assert_bitwise(run.state(), never_tried(True)[1])


@pytest.mark.parametrize("outer", ["kept", "request", "exception"])
@pytest.mark.parametrize("inner", ["kept", "request", "exception"])
def test_trials_nest(inner: str, outer: str) -> None:
    ways = {"kept": mk.trial, "request": lambda: taken_back("request"), "exception": lambda: taken_back("exception")}
    states, run = never_tried(True), started()
    with ways[outer]():
        run.compiled(BATCHES[10])
        with ways[inner]():
            run.compiled(BATCHES[11])
            assert_bitwise(run.state(), states[2])
        assert_bitwise(run.state(), states[2 if inner == "kept" else 1])
        if inner == "kept":
            run.compiled(BATCHES[12])
    assert_bitwise(run.state(), states[0] if outer != "kept" else states[3 if inner == "kept" else 1])


def test_an_exception_that_passes_two_trials_takes_both_back() -> None:
    run = started()
    with pytest.raises(ZeroDivisionError), mk.trial():
        run.compiled(X)
        with mk.trial():
            run.compiled(X)
            raise ZeroDivisionError
    assert_bitwise(run.state(), never_tried(True)[0])


def test_what_is_made_inside_has_its_first_value_and_others_are_not_touched() -> None:
    untouched = mk.Variable(1.0, name="untouched")
    with mk.VariableStore() as store, mk.trial() as attempt:
        made = mk.Variable(2.0, name="made")
        made.assign(3.0)
        shared = mk.get_variable("shared", [2])
        shared.assign_add(1.0)
        attempt.rollback()
    assert float(made) == 2.0 and shared.numpy().tolist() == [0.0, 0.0] and list(store.by_name) == ["shared"]
    assert untouched.version == 0 and made.version == 2


def test_attributes_and_flags_are_not_taken_back() -> None:
    layer = mk.Linear(2)
    layer(X)
    with mk.trial() as attempt:
        layer.label = "new"
        layer.freeze("w")
        attempt.rollback()
    assert layer.label == "new" and layer.w.frozen


def test_a_failed_step_inside_changes_nothing_and_does_not_end_the_trial() -> None:
    run = started()
    with mk.trial():
        run.compiled(BATCHES[10])
        with pytest.raises(ValueError, match="expects inputs of width 5"):
            run.compiled(X[:, :3])
    assert_bitwise(run.state(), never_tried(True)[1])


def test_a_scenario_is_taken_back() -> None:
    mk.seed(2)
    model, optimizer = mk.nets.MLP([6, 2], dropout_rate=0.3), mk.optimizers.Adam(0.05)
    data = (BATCHES.reshape(-1, 5)[:40], np.ones([40, 2], np.float32))

    def train(steps: int) -> None:
        scenario = scenarios.Supervised(steps, batch_size=10, progress=False)
        scenario(model, optimizer, mk.losses.squared_error, data=data)

    train(5)
    before, slots = state_of(model), {path: v.numpy() for path, v in optimizer.paths().items()}
    with taken_back("request"):
        train(20)
        assert not np.array_equal(model.layers[0].w.numpy(), before["layers[0].w"])
    assert_bitwise(state_of(model), before)
    assert_bitwise({path: v.numpy() for path, v in optimizer.paths().items()}, slots)


# Where a trial cannot be.

INSIDE: dict[str, Callable[[Callable[[], Any]], Any]] = {
    "jit": lambda f: mk.jit(f)(),
    "grad": lambda f: mk.grad(lambda x: (f(), x)[1])(1.0),
    "vmap": lambda f: mk.vmap(lambda x: (f(), x)[1])(X),
    "scan": lambda f: mk.scan(lambda c, _: (f(), (c, None))[1], 0.0, length=2),
    "build": lambda f: mk.build(f),
}


@pytest.mark.parametrize("transform", INSIDE)
def test_a_trial_is_neither_opened_nor_taken_back_inside_a_transform(transform: str) -> None:
    w = mk.Variable(1.0, name="w")

    def opens() -> None:
        with mk.trial():
            w.assign(2.0)

    with pytest.raises(RuntimeError) as raised:
        INSIDE[transform](opens)
    assert str(raised.value) == (
        "mk.trial was opened inside a transform: open it outside, around the calls of compiled steps"
    )
    with mk.trial() as attempt:
        w.assign(5.0)
        with pytest.raises(RuntimeError) as raised:
            INSIDE[transform](attempt.rollback)
        assert float(w) == 5.0
    assert str(raised.value) == (
        "mk.trial was rolled back inside a transform: roll it back outside, around the calls of compiled steps"
    )
    assert float(w) == 5.0 and attempt_is_over()


def test_a_trial_is_that_of_its_thread() -> None:
    ours, theirs, both = (mk.Variable(0.0, name=name) for name in ("ours", "theirs", "both"))

    @mk.jit
    def step() -> None:
        theirs.assign_add(1.0)
        both.assign_add(1.0)

    step()
    with mk.trial() as attempt:
        ours.assign(1.0)
        thread = threading.Thread(target=lambda: (step(), step()))
        thread.start()
        thread.join()
        attempt.rollback()
        assert (float(ours), float(theirs), float(both)) == (0.0, 3.0, 3.0)
        both.assign(9.0)
        attempt.rollback()
    assert (float(ours), float(theirs), float(both)) == (0.0, 3.0, 3.0)


def test_two_threads_take_back_their_own_models_at_once() -> None:
    models = [mk.Linear(3), mk.Linear(3)]
    optimizers = [mk.optimizers.Momentum(0.1, 0.9) for _ in models]
    barrier, errors = threading.Barrier(2), []

    def work(model: Any, optimizer: Any) -> None:
        step = mk.jit(lambda x: optimizer.minimize(lambda: jnp.square(model(x)).mean(), model))
        try:
            step(X)
            before, slots = model.w.numpy(), optimizer.accumulated_momentum[1].numpy()
            with mk.trial() as attempt:
                barrier.wait(60)
                for x in BATCHES[:50]:
                    step(x)
                barrier.wait(60)
                assert not np.array_equal(model.w.numpy(), before)
                attempt.rollback()
            np.testing.assert_array_equal(model.w.numpy(), before)
            np.testing.assert_array_equal(optimizer.accumulated_momentum[1].numpy(), slots)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(models, optimizers, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors

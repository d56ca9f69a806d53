"""Laws of where a variable was made, how often it was written, and which line wrote it last."""

import contextlib
import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import X
from diagnostics import origin_of

import modulekit as mk
import scenarios
from modulekit.core.provenance import Origin

Write = Callable[[Any], Any]


def line(marker: str) -> Origin:
    return origin_of(__file__, marker)


def fresh() -> mk.Variable:
    return mk.Variable(jnp.ones([3]), name="w")  # makes w


def history(w: mk.Variable) -> tuple[Origin, int, Origin]:
    return w.origin, w.version, w.last_writer


def test_a_new_variable_was_written_by_the_line_that_made_it_and_never_since() -> None:
    assert history(fresh()) == (line("makes w"), 0, line("makes w"))


def test_an_origin_reads_as_file_and_line() -> None:
    w = fresh()
    assert str(w.origin) == f"{__file__}:{line('makes w').line}"
    assert w.origin == (__file__, line("makes w").line)


def test_a_layer_of_the_library_is_made_by_the_users_line_that_called_it() -> None:
    net = mk.Sequential([mk.Linear(3)])

    class Outer(mk.Module):
        def __call__(self, x: Any) -> Any:
            return net(x)  # calls the net

    for run in (Outer(), mk.jit(Outer()), lambda x: mk.vmap(Outer())(x[None])):
        net = mk.Sequential([mk.Linear(3)])
        run(X)
        assert {v.origin for v in net.variables} == {line("calls the net")}
        assert {(v.version, v.last_writer) for v in net.variables} == {(0, line("calls the net"))}


EAGER: dict[str, Write] = {
    "assign": lambda w: w.assign(jnp.zeros([3])),  # assign
    "assign_add": lambda w: w.assign_add(1.0),  # assign_add
    "assign_sub": lambda w: w.assign_sub(1.0),  # assign_sub
    "scan": lambda w: mk.scan(lambda c, x: (w.assign_add(x), (c, x))[1], 0, jnp.arange(3.0)),  # scan
    "while_loop": lambda w: mk.while_loop(lambda i: i < 3, lambda i: (w.assign_add(i), i + 1)[1], 0.0),  # while_loop
    "cond": lambda w: mk.cond(True, lambda: w.assign_add(1.0), lambda: None),  # cond
    "vmap": lambda w: mk.vmap(lambda x: (w.assign_add(x), x)[1], writes="sum")(jnp.arange(3.0)),  # vmap
    "grad": lambda w: mk.grad(lambda x: (w.assign_add(x), x)[1])(1.0),  # grad
    "remat": lambda w: mk.remat(lambda x: (w.assign_add(x), x)[1])(1.0),  # remat
    "twice": lambda w: mk.remat(lambda: [w.assign_add(1.0) for _ in range(2)] and None)(),  # twice
    "optimizer": lambda w: mk.optimizers.SGD(0.1).apply([jnp.ones([3])], [w]),  # optimizer
    "minimize": lambda w: mk.optimizers.SGD(0.1).minimize(lambda: w.value.sum(), [w]),  # minimize
}


@pytest.mark.parametrize("name", EAGER)
def test_a_write_step_by_step_counts_one_and_tells_the_users_line(name: str) -> None:
    w = fresh()
    EAGER[name](w)
    assert history(w) == (line("makes w"), 1, line(name))
    EAGER[name](w)
    assert history(w) == (line("makes w"), 2, line(name))


@pytest.mark.parametrize("switch", [contextlib.nullcontext, mk.eager, mk.find_nonfinite])
@pytest.mark.parametrize("name", EAGER)
def test_a_compiled_step_is_one_write_at_the_line_in_the_step(name: str, switch: Callable[[], Any]) -> None:
    w = fresh()
    step = mk.jit(lambda: (EAGER[name](w), None)[1])
    with switch():
        for count in (1, 2, 3):
            step()
            assert history(w) == (line("makes w"), count, line(name))


def test_a_step_that_writes_several_times_is_one_write_at_the_last_line() -> None:
    w = fresh()

    @mk.jit
    def step() -> None:
        w.assign_add(1.0)
        w.assign_add(2.0)  # the last of two

    mk.jit(lambda: [step() for _ in range(3)] and None)()
    assert history(w) == (line("makes w"), 1, line("the last of two"))


def test_writes_step_by_step_and_in_several_programs_are_told_in_their_order() -> None:
    w = fresh()
    first = mk.jit(lambda: w.assign_add(1.0))  # in the first program
    second = mk.jit(lambda: w.assign_add(1.0))  # in the second program
    for count, (write, marker) in enumerate(
        [
            (first, "in the first program"),
            (second, "in the second program"),
            (first, "in the first program"),
            (lambda: w.assign_add(1.0), "by hand"),  # by hand
            (second, "in the second program"),
        ],
        1,
    ):
        write()
        assert history(w) == (line("makes w"), count, line(marker))


def test_a_step_that_is_traced_again_goes_on_counting() -> None:
    w = fresh()
    step = mk.jit(lambda x, flag: w.assign_add(x.sum()))  # traced again
    for count, arguments in enumerate([(X, True), (X[:1], True), (X, False), (X, True)], 1):
        step(*arguments)
        assert history(w) == (line("makes w"), count, line("traced again"))


def test_each_form_of_the_arguments_counts_what_it_writes() -> None:
    w, b = fresh(), fresh()

    @mk.jit
    def step(x: Any) -> None:
        w.assign_add(x.sum()) if len(x) > 2 else b.assign_add(x.sum())  # one or the other

    steps = ((X, 1, 0), (X[:2], 1, 1), (X, 2, 1), (X[:1], 2, 2), (X, 3, 2), (X[:1], 3, 3))
    for x, count, other in steps:
        step(x)
        assert history(w) == (line("makes w"), count, line("one or the other"))
        assert history(b) == (line("makes w"), other, line("one or the other" if other else "makes w"))


def test_each_form_of_the_arguments_tells_its_own_line() -> None:
    w = fresh()

    @mk.jit
    def step(x: Any) -> None:
        if len(x) > 2:
            w.assign_add(1.0)  # for many
        else:
            w.assign_sub(1.0)  # for few

    for count, (x, marker) in enumerate([(X, "for many"), (X[:1], "for few"), (X, "for many"), (X[:1], "for few")], 1):
        mk.jit(step)(x) if count == 3 else step(x)
        assert history(w) == (line("makes w"), count, line(marker))


def test_an_optimizer_tells_the_line_that_applied_it_for_weights_slots_and_counters() -> None:
    layer, optimizer = mk.Linear(2), mk.optimizers.Adam(0.1)  # makes the optimizer

    @mk.jit
    def step() -> None:
        gradients = mk.grad(lambda: layer(X).sum(), layer)()  # makes the layer
        optimizer.apply(gradients, layer.trainable_variables)  # applies

    step()
    step()
    for variable in layer.variables:
        assert history(variable) == (line("makes the layer"), 2, line("applies"))
    for variable in (*optimizer.m, *optimizer.v):
        assert history(variable) == (line("applies"), 2, line("applies"))
    assert history(optimizer.step) == (line("makes the optimizer"), 2, line("applies"))


def test_a_random_stream_counts_its_draws() -> None:
    stream = mk.RandomStream(0)
    stream.next_key()  # draws
    (counter,) = (v for v in stream.variables if v.version)
    assert history(counter)[1:] == (1, line("draws"))


def test_reading_changes_nothing() -> None:
    layer = mk.Linear(2)
    layer(X)
    before = [history(v) for v in layer.variables]
    for read in (layer, mk.jit(layer), mk.vmap(layer), mk.remat(layer), lambda x: mk.build(layer, [4, 5])):
        read(X[None])
    mk.grad(lambda: layer(X).sum(), layer)()
    mk.functionalize(layer, layer)
    copy.deepcopy(layer), pickle.dumps(layer), layer.summary(), layer.w.numpy()
    layer.freeze()
    layer.thaw()
    assert [history(v) for v in layer.variables] == before


REFUSED: dict[str, Write] = {
    "shape": lambda w: w.assign(jnp.zeros([4])),
    "dtype": lambda w: w.assign(jnp.zeros([3], jnp.int32)),
    "change": lambda w: w.assign_add(jnp.zeros([4])),
    "step": lambda w: mk.jit(lambda: (w.assign_add(1.0), fail()))(),
    "step_by_step": lambda w: eagerly(mk.jit(lambda: (w.assign_add(1.0), fail()))),
    "grad": lambda w: mk.grad(lambda x: (w.assign_add(1.0), fail()))(1.0),
    "scan": lambda w: mk.scan(lambda c, x: (w.assign_add(1.0), fail()), 0, jnp.arange(2)),
    "plain_jit": lambda w: jax.jit(lambda: w.assign_add(1.0))(),
    "running_step": lambda w: mk.jit(lambda: (w.assign_add(1.0), jax.pure_callback(fail, jnp.ones([])))[1])(),
    "not_finite": lambda w: watched(
        mk.jit(lambda: (w.assign_add(1.0), mk.grad(lambda: w.value.sum() * jnp.nan, [w])()))
    ),
}


def fail(*_: Any) -> Any:
    raise ValueError("refused")


def eagerly(run: Callable[[], Any]) -> Any:
    with mk.eager():
        return run()


def watched(run: Callable[[], Any]) -> Any:
    with mk.find_nonfinite():
        return run()


@pytest.mark.parametrize("name", REFUSED)
def test_a_write_that_did_not_happen_does_not_count(name: str) -> None:
    w = fresh()
    w.assign_add(1.0)  # before
    for _ in range(2):
        with pytest.raises(Exception):  # noqa: B017 (ten kinds of errors)
            REFUSED[name](w)
        assert history(w) == (line("makes w"), 1, line("before"))
        assert w.value.tolist() == [2.0, 2.0, 2.0]


def test_a_rollback_is_a_write_by_the_line_that_asked_for_it() -> None:
    w = fresh()
    with mk.trial() as attempt:
        w.assign_add(1.0)
        attempt.rollback()  # rolls back
        assert history(w) == (line("makes w"), 2, line("rolls back"))
    assert w.version == 2
    with pytest.raises(KeyError), mk.trial():  # leaves by an error
        mk.jit(lambda: w.assign_add(1.0))()
        raise KeyError
    assert history(w) == (line("makes w"), 4, line("leaves by an error"))


COPIES = [copy.copy, copy.deepcopy, lambda w: pickle.loads(pickle.dumps(w))]


@pytest.mark.parametrize("duplicate", COPIES, ids=["copy", "deepcopy", "pickle"])
def test_copies_keep_all_of_it_and_go_on_by_themselves(duplicate: Callable[[Any], Any]) -> None:
    w = fresh()
    step = mk.jit(lambda: w.assign_add(1.0))  # in a step
    step()
    step()
    twin = duplicate(w)
    assert history(twin) == history(w) == (line("makes w"), 2, line("in a step"))
    step()
    assert history(twin) == (line("makes w"), 2, line("in a step"))
    twin.assign_add(1.0)  # of the copy
    assert history(twin) == (line("makes w"), 3, line("of the copy"))
    assert history(w) == (line("makes w"), 3, line("in a step"))


def test_assigning_by_path_reinitializing_and_taking_values_back_are_writes() -> None:
    layer = mk.Linear(2)
    layer(X)  # makes the weights
    made = line("makes the weights")
    layer.assign({path: v.value * 2 for path, v in layer.paths().items()})  # assigns by path
    assert {history(v) for v in layer.variables} == {(made, 1, line("assigns by path"))}
    layer.reinitialize("w", seed=1)  # draws anew
    assert history(layer.w) == (made, 2, line("draws anew"))
    assert history(layer.b) == (made, 1, line("assigns by path"))
    pure, values = mk.functionalize(layer, layer)
    pure.commit(values)  # takes back
    assert {v.last_writer for v in layer.variables} == {line("takes back")}


def test_a_frozen_variable_that_a_module_writes_was_not_written() -> None:
    class Counting(mk.Module):
        def __init__(self) -> None:
            super().__init__()
            self.count = mk.Variable(0, trainable=False, name="count")  # makes the counter

        def __call__(self) -> None:
            self.count.assign_add(1)  # counts

    counting = Counting()
    step = mk.jit(counting)
    step()
    counting.freeze()
    counting()
    step()
    assert history(counting.count) == (line("makes the counter"), 1, line("counts"))


def test_restoring_a_run_is_a_write(tmp_path: Path) -> None:
    def run(layer: Any, steps: int) -> None:
        train = scenarios.Supervised(steps, batch_size=4, progress=False, save_dir=str(tmp_path))
        train(layer, mk.optimizers.SGD(0.1), mk.losses.squared_error, data=(X, X[:, :2]))  # runs

    first, second = mk.Linear(2), mk.Linear(2)
    run(first, 2)
    second(np.ones([1, 5], np.float32))  # makes the second
    run(second, 2)
    np.testing.assert_array_equal(second.w.numpy(), first.w.numpy())
    assert history(second.w) == (line("makes the second"), 1, line("runs"))

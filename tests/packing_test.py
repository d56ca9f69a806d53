"""Small variables lie in one buffer between compiled steps, and nobody can tell: values, errors, copies are as without.

Values are compared up to the last bits, as XLA joins a product and a sum in one rounding or in two, depending on what it
fuses; and bit for bit in a process that may not join them.
"""

import copy
import functools
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import modulekit as mk
from modulekit.core import storage
from modulekit.core.packs import layouts
from modulekit.core.pieces import SMALL, Grouping, join, split, stack, tracing, unstack

# Pieces.

SHAPES = st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=6)


def filled(shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """Returns arrays of these shapes, no two numbers alike."""
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    return [
        np.arange(end - int(np.prod(shape)), end, dtype=np.float32).reshape(shape)
        for end, shape in zip(ends, shapes, strict=True)
    ]


@settings(deadline=None, max_examples=40)
@given(SHAPES)
def test_split_undoes_join(shapes: list[tuple[int, ...]]) -> None:
    arrays = filled(shapes)
    for array, expected in zip(split(join(list(map(jnp.asarray, arrays))), shapes), arrays, strict=True):
        np.testing.assert_array_equal(array, expected)


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.sampled_from([np.float32, np.int32]), st.randoms(use_true_random=False))
def test_a_grouping_gives_back_what_it_was_given(shapes: list[tuple[int, ...]], dtype: Any, random: Any) -> None:
    dtypes = [np.dtype(dtype if random.random() < 0.5 else np.float16) for _ in shapes]
    arrays = [array.astype(kind) for array, kind in zip(filled(shapes), dtypes, strict=True)]
    grouping = Grouping(list(zip(shapes, dtypes, strict=True)))
    for array, expected in zip(grouping.split(grouping.joined(arrays)), arrays, strict=True):
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)


def operations(function: Callable[..., Any], *args: Any) -> list[str]:
    """Returns the names of the operations of a program that something comes of."""
    jaxpr = jax.make_jaxpr(function)(*args)
    needed, names = set(map(id, jaxpr.jaxpr.outvars)), []
    for equation in reversed(jaxpr.eqns):
        if needed & set(map(id, equation.outvars)):
            needed |= set(map(id, equation.invars))
            names.append(equation.primitive.name)
    return names[::-1]


def test_pieces_in_their_old_order_are_joined_without_a_copy() -> None:
    def there_and_back(flat: Any) -> Any:
        with tracing({}):
            return join(split(flat, [(2, 3), (4,), ()]))

    assert operations(there_and_back, jnp.arange(11.0)) == []


def test_a_stretch_of_pieces_is_a_slice() -> None:
    def some(flat: Any) -> Any:
        with tracing({}):
            return join(split(flat, [(2, 3), (4,), ()])[1:])

    assert operations(some, jnp.arange(11.0)) == ["slice"]
    np.testing.assert_array_equal(some(jnp.arange(11.0)), np.arange(6.0, 11.0))


def test_pieces_that_are_stacked_and_taken_apart_are_where_they_were() -> None:
    def there_and_back(flat: Any) -> Any:
        with tracing({}):
            return join(unstack(stack(split(flat, [(2, 2)] * 3))))

    assert operations(there_and_back, jnp.arange(12.0)) == []


def test_pieces_out_of_order_are_copied() -> None:
    def turned(flat: Any) -> Any:
        with tracing({}):
            return join(split(flat, [(2,), (3,)])[::-1])

    np.testing.assert_array_equal(turned(jnp.arange(5.0)), [2, 3, 4, 0, 1])
    np.testing.assert_array_equal(jax.jit(turned)(jnp.arange(5.0)), [2, 3, 4, 0, 1])


# Compiled steps, against a twin whose variables have an array each.

X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)


@contextmanager
def unpacked() -> Iterator[None]:
    """Context in which no variable is put into a pack."""
    with mock.patch.object(storage, "packed", lambda variables: None):
        yield


class Subject:
    """A network in training, and what can be done to it."""

    def __init__(self) -> None:
        mk.seed(3)
        self.model = mk.Sequential([mk.Linear(5), mk.LayerNorm(-1, True, True), jnp.tanh, mk.Linear(3)])
        self.optimizer = mk.optimizers.Adam(0.05)
        mk.build(self.model, [6, 4])
        self.compile()

    def compile(self) -> None:
        """Makes the compiled functions anew."""
        self.train, self.scale = mk.jit(self._train), mk.jit(self._scale)
        self.predict = mk.jit(lambda x: self.model(x))

    def _train(self, x: Any, y: Any) -> Any:
        return self.optimizer.minimize(lambda: ((self.model(x) - y) ** 2).mean(), self.model)

    def _scale(self, factor: Any) -> Any:
        for variable in self.model.layers[0].variables:
            variable.assign(variable * factor)

    def values(self) -> list[np.ndarray]:
        """Returns the values of everything."""
        return [v.numpy() for v in (*self.model.variables, *self.optimizer.variables)]

    def bits(self) -> list[bytes]:
        """Returns the bits of everything."""
        return [value.tobytes() for value in self.values()]


def _step(subject: Subject, number: int) -> Any:
    return subject.train(X + number, Y)


def _predict(subject: Subject, number: int) -> Any:
    return subject.predict(X - number)


def _scale(subject: Subject, number: int) -> Any:
    return subject.scale(1 + number / 8)


def _read(subject: Subject, number: int) -> Any:
    variables = (*subject.model.variables, *subject.optimizer.variables)
    return variables[number % len(variables)].value


def _assign(subject: Subject, number: int) -> Any:
    variables = subject.model.variables
    variable = variables[number % len(variables)]
    variable.assign(jnp.full(variable.shape, number / 8))


def _add(subject: Subject, number: int) -> Any:
    subject.model.layers[3].b.assign_add(number / 4)


def _freeze(subject: Subject, number: int) -> Any:
    layer = subject.model.layers[3 * (number % 2)]
    (layer.freeze if number % 3 else layer.thaw)()


def _copy(subject: Subject, number: int) -> Any:
    pair = (subject.model, subject.optimizer)
    subject.model, subject.optimizer = copy.deepcopy(pair) if number % 2 else pickle.loads(pickle.dumps(pair))
    subject.compile()


def _replace(subject: Subject, number: int) -> Any:
    mk.seed(number)
    layer = mk.Linear(3)
    subject.model.layers = [*subject.model.layers[:3], layer]
    mk.build(subject.model, [6, 4])


def _try(subject: Subject, number: int) -> Any:
    with mk.trial() as trial:
        loss = subject.train(X * number, Y)
        trial.rollback()
    return loss


def _save(subject: Subject, number: int) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        mk.weights.save(path, subject.model)
        loss = subject.train(X - number, Y)
        mk.weights.load(path, subject.model)
    return loss


OPERATIONS = [_step, _step, _predict, _scale, _read, _assign, _add, _freeze, _copy, _replace, _try, _save]
Calls = st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 11)), max_size=9)


def check_both(calls: list[Any], same: Callable[[Any, Any], None]) -> None:
    """Does the same with packs and without, and compares what was returned, and all values at the end."""
    ours, twin = Subject(), Subject()
    for operation, number in [(_step, 1), *calls, (_step, 2)]:
        found = operation(ours, number)
        with unpacked():
            expected = operation(twin, number)
        assert (found is None) == (expected is None)
        if found is not None:
            same(np.asarray(found), np.asarray(expected))
    for value, wanted in zip(ours.values(), twin.values(), strict=True):
        same(value, wanted)


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(Calls)
def test_whatever_is_done_the_values_are_those_without_packs(calls: list[Any]) -> None:
    check_both(calls, functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6))


def test_and_are_bit_for_bit_where_each_product_and_each_sum_is_rounded() -> None:
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    program = [sys.executable, here / "subprocesses" / "pack_bit_for_bit.py"]
    run = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert int(run.stdout) >= 20


def packs_of(variables: Any) -> set[Any]:
    """Returns the packs in which variables lie, None for an array of its own."""
    return {storage.pack_of(v) for v in variables}


def test_a_step_takes_and_gives_one_buffer_for_all_small_variables_of_a_dtype() -> None:
    subject = Subject()
    subject.train(X, Y)
    (pack,) = packs_of([*subject.model.variables, *subject.optimizer.m, *subject.optimizer.v])
    assert pack is not None
    donated = jax.tree.leaves(subject.train.lower(X, Y).args_info[0][0])
    assert [info.shape for info in donated] == [pack.buffer.shape, ()]  # and the counter


def test_large_variables_stay_apart() -> None:
    large, small, other = mk.Variable(jnp.zeros(SMALL + 1)), mk.Variable(jnp.zeros(3)), mk.Variable(jnp.zeros([]))

    @mk.jit
    def step() -> None:
        for variable in (large, small, other):
            variable.assign_add(jnp.ones(variable.shape))

    step()
    assert storage.pack_of(large) is None
    assert storage.pack_of(small) is storage.pack_of(other) is not None


def test_functions_that_share_variables_never_move_them() -> None:
    subject = Subject()
    subject.train(X, Y)
    subject.predict(X)
    subject.scale(2.0)
    formed, traces = layouts.count, subject.train.traces
    for _ in range(3):
        subject.train(X, Y)
        subject.predict(X)
        subject.scale(0.5)
        float(subject.model.layers[3].b.value[0])
    assert layouts.count == formed
    assert subject.train.traces == traces


def test_an_array_that_was_read_stays_valid_and_as_it_was() -> None:
    subject = Subject()
    subject.train(X, Y)
    weight = subject.model.layers[0].w.value
    before = np.array(weight)
    for _ in range(3):
        subject.train(X, Y)
    np.testing.assert_array_equal(weight, before)
    assert not np.array_equal(subject.model.layers[0].w.value, before)


def test_what_left_its_place_while_another_function_was_compiled_comes_back() -> None:
    subject = Subject()
    subject.train(X, Y)
    subject.model.layers[0].freeze()
    subject.model.layers[3].b.assign_add(1.0)
    subject.train(X, Y)  # compiled while the bias is not in its place
    subject.scale(2.0)
    subject.model.layers[3].b.assign_add(1.0)
    for _ in range(3):
        subject.train(X, Y)
    assert all(np.isfinite(value).all() for value in subject.values())


def test_reading_after_each_step_and_not_reading_at_all_train_alike() -> None:
    read, unread = Subject(), Subject()
    for _ in range(4):
        read.train(X, Y)
        read.bits()
        unread.train(X, Y)
    assert read.bits() == unread.bits()


def test_variables_are_read_by_a_program_for_each_shape(caplog: pytest.LogCaptureFixture) -> None:
    variables = [mk.Variable(jnp.full([4, 1 + k % 3], float(k))) for k in range(60)]

    @mk.jit
    def step() -> None:
        for variable in variables:
            variable.assign_add(jnp.ones(variable.shape))

    step()
    with jax.log_compiles(), caplog.at_level("WARNING"):
        values = [variable.numpy() for variable in variables]
    cuts = [record for record in caplog.records if "Finished XLA compilation of jit(_cut)" in record.getMessage()]
    assert 0 < len(cuts) <= 3
    for k, value in enumerate(values):
        np.testing.assert_array_equal(value, np.full([4, 1 + k % 3], k + 1.0))


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_variables_get_back_what_they_held_and_others_keep_what_they_have(data: st.DataObject) -> None:
    subject = Subject()
    step = mk.jit(lambda: subject.train(X, Y), donate=False)
    everything = [*subject.model.variables, *subject.optimizer.variables]
    if data.draw(st.booleans(), "packed before"):
        step()
    chosen = data.draw(st.lists(st.sampled_from(everything), unique_by=id), "chosen")
    before = [variable.numpy().copy() for variable in everything]
    held = storage.Holdings(chosen)
    step()
    if data.draw(st.booleans(), "one is assigned"):
        data.draw(st.sampled_from(subject.model.trainable_variables), "which").assign_add(1.0)
    after = [variable.numpy().copy() for variable in everything]
    held.give_back()
    for variable, old, new in zip(everything, before, after, strict=True):
        np.testing.assert_array_equal(variable.numpy(), old if any(variable is v for v in chosen) else new)
    step()
    assert all(np.isfinite(value).all() for value in subject.values())


def test_a_step_that_raises_leaves_all_as_it_was() -> None:
    subject = Subject()
    subject.train(X, Y)
    before = subject.bits()
    with pytest.raises(Exception, match="shape"):
        subject.train(X, np.zeros([6, 7], np.float32))
    assert subject.bits() == before
    subject.train(X, Y)
    assert subject.bits() != before


TO_TWO_DEVICES = """
import jax
jax.config.update("jax_num_cpu_devices", 2)
import numpy as np, packing_test as test
from jax.sharding import Mesh, NamedSharding, PartitionSpec
subject, twin = test.Subject(), test.Subject()
mesh = Mesh(np.array(jax.devices()), ("data",))
for step in range(4):
    if step == 2:
        for variable in (*subject.model.variables, *subject.optimizer.variables):
            variable.assign(jax.device_put(variable.value, NamedSharding(mesh, PartitionSpec())))
    loss, expected = subject.train(test.X, test.Y), twin.train(test.X, test.Y)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
assert {len(v.value.sharding.device_set) for v in subject.model.variables} == {2}
"""


def test_a_pack_is_given_up_where_its_members_move_to_two_devices() -> None:
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}
    run = subprocess.run([sys.executable, "-c", TO_TWO_DEVICES], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_threads_may_read_while_another_one_steps() -> None:
    subject = Subject()
    subject.train(X, Y)
    failures: list[BaseException] = []

    def reading() -> None:
        try:
            for _ in range(200):
                assert np.isfinite(np.asarray(subject.model.layers[0].w.value)).all()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=reading) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        subject.train(X, Y)
    for thread in threads:
        thread.join()
    assert not failures


def test_a_compiled_loop_carries_small_variables_in_one_array() -> None:
    weights = [mk.Variable(jnp.ones([2, 3]), name=f"w{i}") for i in range(4)]

    def body(i: Any) -> Any:
        for number, weight in enumerate(weights):
            weight.assign(weight * (number + 1))
        return i + 1

    run = mk.jit(lambda: mk.while_loop(lambda i: i < 3, body, 0))
    run()
    for number, weight in enumerate(weights):
        np.testing.assert_array_equal(weight.value, np.full([2, 3], (number + 1.0) ** 3))

"""Laws of streams: whatever they read, a saved position goes on with the batches that would have come."""

import collections
import copy
import itertools
import json
import pickle
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import grain
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from foreign_loaders import Capsule, EagerTensor, Endless, RewindingDataset, ShufflingLoader, Tensor
from hypothesis import example, given, settings
from hypothesis import strategies as st

import modulekit as mk
from modulekit.data.encoding import decode_state, encode_state

Make = Callable[[], Any]
Pair = collections.namedtuple("Pair", ["x", "y"])

quick = settings(deadline=None, max_examples=40)


def grain_map() -> Any:
    return grain.MapDataset.source(np.arange(10)).seed(3).shuffle().map(lambda x: {"x": x}).batch(4)


def grain_loader() -> Any:
    sampler = grain.samplers.IndexSampler(10, shuffle=True, num_epochs=1, seed=1)
    batches = [grain.transforms.Batch(4)]
    return grain.DataLoader(data_source=list(range(10)), sampler=sampler, operations=batches, worker_count=0)


def examples() -> mk.data.Pipeline:
    return mk.data.pipeline(np.arange(10)).shuffle(seed=1)


def noisy(example: Any, generator: np.random.Generator) -> Any:
    return example + generator.normal(size=[2])


# Each makes, in one process as in another, a source that can resume.
RESUMABLE: dict[str, Make] = {
    "grain.MapDataset": grain_map,
    "grain.IterDataset": lambda: grain_map().to_iter_dataset(),
    "grain.DataLoader": grain_loader,
    "a function that returns a Grain data set": lambda: grain_map,
    "a loader that shuffles": ShufflingLoader,
    "a data set that rewinds": RewindingDataset,
    "an endless loader": Endless,
    "a list": lambda: [np.zeros([2]), np.ones([3])],
    "a pipeline": lambda: examples().map(noisy, random=True).batch(3),
    "a pipeline with threads": lambda: examples().map(noisy, random=True, workers=2).batch(3),
    "a pipeline without end": lambda: examples().repeat().batch(3),
    "arrays on the host": lambda: mk.data.IndexedBatches(mk.data.Arrays(np.arange(10)), batch_size=3, seed=0),
}
# Those end when their iterator does.
ENDING: dict[str, Make] = {
    "a Grain iterator": lambda: iter(grain_map()),
    "a generator": lambda: (np.full([2], i) for i in range(3)),
}
NOT_RESUMABLE: dict[str, Make] = {
    "an iterable": lambda: Iterable([np.zeros([2]), np.ones([2])]),
    "a generator function": lambda: generated,
    "a generator": ENDING["a generator"],
}


class Iterable:
    """What tf.data is: it can be iterated over many times, and tells nothing else."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches
        self.opened = 0

    def __iter__(self) -> Iterator[Any]:
        self.opened += 1
        return iter(self.batches)


def generated() -> Iterator[np.ndarray]:
    yield np.zeros([2])
    yield np.ones([2])


def listed(batches: Any, count: int) -> list[Any]:
    """The next batches as lists, which compare by value."""
    return [repr(batch) for batch in itertools.islice(batches, count)]


@pytest.mark.parametrize("name", RESUMABLE)
def test_a_position_restored_by_another_stream_gives_the_batches_that_would_have_come(name: str) -> None:
    straight = mk.data.stream(RESUMABLE[name]())
    assert straight.resumable
    states, batches = [straight.state()], []
    for _ in range(8):  # of epochs of 2 to 4 batches
        batches += listed(straight, 1)
        states.append(straight.state())
    for done, state in enumerate(states):
        other = mk.data.stream(RESUMABLE[name]())
        other.restore(json.loads(json.dumps(state, allow_nan=False)))
        assert other.state() == state
        assert listed(other, 8 - done) == batches[done:]


@pytest.mark.parametrize("name", RESUMABLE)
def test_a_stream_goes_back_to_a_position_of_its_own(name: str) -> None:
    stream = mk.data.stream(RESUMABLE[name]())
    start = stream.state()
    first = listed(stream, 3)
    middle = stream.state()
    second = listed(stream, 4)
    stream.restore(middle)
    assert listed(stream, 4) == second
    stream.restore(start)
    assert listed(stream, 7) == first + second


@pytest.mark.parametrize("name", RESUMABLE)
def test_to_ask_for_the_position_changes_nothing(name: str) -> None:
    silent, asked = mk.data.stream(RESUMABLE[name]()), mk.data.stream(RESUMABLE[name]())
    expected = listed(silent, 8)
    for batch in expected:
        assert asked.state() == asked.state()
        assert listed(asked, 1) == [batch]


# Those that Python can pickle once batches were read.
PICKLED = ["a list", "a pipeline", "a pipeline with threads", "a pipeline without end", "arrays on the host"]


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda stream: pickle.loads(pickle.dumps(stream))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("name", PICKLED)
def test_a_copy_stands_where_the_stream_does_and_goes_its_own_way(name: str, copied: Any) -> None:
    stream, straight = mk.data.stream(RESUMABLE[name]()), mk.data.stream(RESUMABLE[name]())
    expected = listed(straight, 9)
    for done in range(4):
        other = copied(stream)
        assert listed(other, 4) == expected[done : done + 4]
        assert listed(copied(other), 1) == expected[done + 4 : done + 5]
        assert listed(stream, 1) == expected[done : done + 1]


@pytest.mark.parametrize("make", [lambda: generated, lambda: Iterable([np.zeros([2]), np.ones([2])])])
def test_a_copy_of_what_tells_no_position_is_one_of_its_beginning_and_none_later(make: Make) -> None:
    stream = mk.data.stream(make())
    other = pickle.loads(pickle.dumps(stream))
    assert listed(other, 3) == listed(mk.data.stream(make()), 3)
    next(stream)
    message = "^a stream that has begun cannot be copied or pickled where it stands: .*, which cannot resume exactly"
    with pytest.raises(TypeError, match=message):
        copy.deepcopy(stream)


@pytest.mark.parametrize("name", ENDING)
def test_an_iterator_ends(name: str) -> None:
    stream = mk.data.stream(ENDING[name]())
    assert len(list(stream)) == 3
    with pytest.raises(StopIteration):
        next(stream)
    assert "iterator" in stream.describe()


def test_an_iterator_of_grain_resumes() -> None:
    straight, other = mk.data.stream(iter(grain_map())), mk.data.stream(iter(grain_map()))
    next(straight)
    other.restore(straight.state())
    assert listed(other, 9) == listed(straight, 9)
    assert straight.resumable


@pytest.mark.parametrize("name", NOT_RESUMABLE)
def test_what_cannot_resume_says_so(name: str) -> None:
    stream = mk.data.stream(NOT_RESUMABLE[name]())
    assert not stream.resumable
    assert "cannot resume exactly" in stream.describe()
    assert "\n" not in stream.describe()


def test_what_cannot_resume_begins_its_epoch_again() -> None:
    batches = [np.full([1], i) for i in range(3)]
    stream = mk.data.stream(Iterable(batches))
    listed(stream, 4)
    state = stream.state()
    assert state == {"kind": "none", "epoch": 1, "batch": 1, "position": None}
    other = mk.data.stream(Iterable(batches))
    other.restore(state)
    assert other.state() == {"kind": "none", "epoch": 1, "batch": 0, "position": None}
    assert [int(batch[0]) for batch in itertools.islice(other, 4)] == [0, 1, 2, 0]


def test_an_epoch_follows_another_and_each_is_opened_once() -> None:
    source = Iterable([np.full([1], i) for i in range(3)])
    stream = mk.data.stream(source)
    assert [int(batch[0]) for batch in itertools.islice(stream, 7)] == [0, 1, 2, 0, 1, 2, 0]
    assert source.opened == 3
    assert (stream.state()["epoch"], stream.state()["batch"]) == (2, 1)


def test_a_function_is_called_at_each_epoch() -> None:
    calls = []

    def source() -> list[np.ndarray]:
        calls.append(len(calls))
        return [np.full([1], calls[-1])]

    assert [int(batch[0]) for batch in itertools.islice(mk.data.stream(source), 3)] == [0, 1, 2]


def test_the_last_batch_of_an_epoch_may_be_smaller() -> None:
    sizes = [len(batch) for batch in itertools.islice(mk.data.stream(examples().batch(4)), 6)]
    assert sizes == [4, 4, 2, 4, 4, 2]


def test_a_stream_is_its_own_stream() -> None:
    stream = mk.data.stream([np.zeros([2])])
    assert mk.data.stream(stream) is stream
    assert iter(stream) is stream


def test_indexed_batches_are_those_of_batch_indices() -> None:
    data = np.arange(10) * 7
    stream = mk.data.IndexedBatches(mk.data.Arrays({"x": data}), batch_size=4, seed=2)
    indices = mk.data.batch_indices(10, 4, seed=2, step=0, count=9)
    for row in indices:
        np.testing.assert_array_equal(next(stream)["x"], data[row])
    stream.restore({"kind": "step", "step": 10**12})
    np.testing.assert_array_equal(next(stream)["x"], data[mk.data.batch_indices(10, 4, 2, 10**12, 1)[0]])


# What batches are made of.

VALUES = np.array([[1, 2], [3, 4], [5, 6]])
LEAVES: dict[str, tuple[Any, Any]] = {
    "64 bits": (VALUES, np.int32),
    "doubles": (VALUES.astype(float), np.float32),
    "jax": (jnp.asarray(VALUES, jnp.int8), np.int8),
    "bfloat16 of jax": (jnp.asarray(VALUES, jnp.bfloat16), ml_dtypes.bfloat16),
    "torch": (Tensor(VALUES), np.int32),
    "tensorflow": (EagerTensor(VALUES.astype(np.float32)), np.float32),
    "DLPack": (Capsule(VALUES.astype(np.int16)), np.int16),
    "another byte order": (VALUES.astype(">f4"), np.float32),
}


@pytest.mark.parametrize("name", LEAVES)
def test_tensors_become_arrays_of_at_most_32_bits(name: str) -> None:
    leaf, dtype = LEAVES[name]
    batch = next(mk.data.stream([leaf]))
    assert type(batch) is np.ndarray
    assert batch.dtype == dtype and batch.dtype.isnative
    np.testing.assert_array_equal(batch.astype(float), VALUES)


def test_containers_stay_what_they_are() -> None:
    batch = next(mk.data.stream([Pair(Tensor(VALUES), {"a": [VALUES, (VALUES,)]})]))
    assert type(batch) is Pair
    assert type(batch.y["a"]) is list and type(batch.y["a"][1]) is tuple


def test_what_numpy_can_use_as_it_is_is_not_copied() -> None:
    array = VALUES.astype(np.float32)
    assert np.shares_memory(next(mk.data.stream([Tensor(array)])), array)


# The encoding of positions.

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.binary(max_size=9)
)
positions = st.recursive(
    scalars,
    lambda child: (
        st.lists(child, max_size=3)
        | st.lists(child, max_size=3).map(tuple)
        | st.dictionaries(st.text("%ab", max_size=2), child, max_size=3)
        | st.dictionaries(st.integers() | st.text("%", max_size=1) | st.tuples(st.integers()), child, max_size=3)
    ),
    max_leaves=8,
)


@quick
@given(positions)
@example({"%": "tuple", "value": [1]})
@example((float("inf"), [float("-inf")], {}, (), b"", {1: {"%": b"\0"}}))
def test_a_position_reads_back_as_it_was_written(position: Any) -> None:
    back = decode_state(json.loads(json.dumps(encode_state(position), allow_nan=False)))
    assert back == position
    assert repr(back) == repr(position)  # True is no 1, and a tuple no list


@pytest.mark.parametrize("dtype", ["u1", ">i4", "f8", "c8", "?", "U3", "S2", "M8[s]"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)], ids=str)
def test_an_array_in_a_position_reads_back_with_its_dtype(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(np.int64).astype(dtype)
    back = decode_state(json.loads(json.dumps(encode_state({"a": array}))))["a"]
    assert type(back) is np.ndarray and back.dtype == array.dtype and back.shape == shape
    np.testing.assert_array_equal(back, array)
    assert back.flags.writeable


def test_numbers_of_numpy_in_a_position_stay_such() -> None:
    back = decode_state(json.loads(json.dumps(encode_state([np.int64(3), np.float32("nan")]))))
    assert type(back[0]) is np.int64 and back[0] == 3
    assert type(back[1]) is np.float32 and np.isnan(back[1])
    assert np.isnan(decode_state(encode_state(float("nan"))))


def test_a_tensor_in_a_position_reads_back_as_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = type("Tensor", (EagerTensor,), {"__module__": "torch"})(np.arange(3, dtype=np.uint8))
    torch = ModuleType("torch")
    torch.from_numpy = type(kept)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    back = decode_state(json.loads(json.dumps(encode_state({"generator": kept}))))["generator"]
    assert type(back) is type(kept)
    np.testing.assert_array_equal(back.array, kept.array)


# Errors.


class Once:
    """An iterable that can be iterated over only once, though it does not look like it."""

    def __init__(self) -> None:
        self.left = iter([np.zeros([2])])

    def __iter__(self) -> Iterator[Any]:
        return itertools.chain(self.left)


def drawn(source: Any, count: int = 1) -> None:
    for _ in range(count):
        next(mk.data.stream(source) if count == 1 else source)


def restored(source: Any, kind: str) -> None:
    mk.data.stream(source).restore({"kind": kind, "epoch": 0, "batch": 1, "position": 1})


ARRAYS = "for arrays in memory, IndexedBatches(Arrays(data), batch_size, seed)"
ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no batch at all": (lambda: drawn([]), ValueError, "epoch 0 has no batch, of a sequence (list)"),
    "no batch in the next epoch": (
        lambda: drawn(mk.data.stream(Once()), 2),
        ValueError,
        "epoch 1 has no batch, of Once, which cannot resume exactly: it tells no position, and begins its epoch again; "
        "give a source with at least one batch, which begins again each time it is iterated over",
    ),
    "arrays": (
        lambda: mk.data.stream((np.zeros([2]), np.zeros([2]))),
        TypeError,
        f"expected a source of batches, got tuple: (array([0., 0.]), array([0., 0.])); {ARRAYS}",
    ),
    "a number": (lambda: mk.data.stream(3), TypeError, "or a function that returns one; got int: 3; " + ARRAYS),
    "a function of nothing": (
        lambda: mk.data.stream(lambda: None),
        TypeError,
        "a function given as a source must return an iterable of batches, got NoneType from <function",
    ),
    "another kind": (
        lambda: restored([VALUES], "state_dict"),
        ValueError,
        "saved from a source of kind 'state_dict', and this one is of kind 'index': a sequence (list), which resumes",
    ),
    "another kind than steps": (
        lambda: restored(mk.data.IndexedBatches(mk.data.Arrays(VALUES), 2, 0), "index"),
        ValueError,
        "kind 'index', and this one is of kind 'step': Arrays(size=3, data: int32[3, 2]) in batches of 2",
    ),
    "a batch that is too large": (
        lambda: mk.data.IndexedBatches(mk.data.Arrays(VALUES), 4, 0),
        ValueError,
        "batch_size=4 is larger than the data's 3 examples",
    ),
    "a scalar": (lambda: drawn([{"x": 1.0}]), ValueError, "batch['x'] must have a first axis that counts examples"),
    "text": (lambda: drawn([["a"]]), TypeError, "batch[0] must hold numbers or booleans, got str with dtype <U1"),
    "lengths": (lambda: drawn([(VALUES, VALUES[:1])]), ValueError, "but batch[0] has 3, batch[1] has 1"),
    "no example": (lambda: drawn([VALUES[:0]]), ValueError, "batch must hold at least one example, got batch of shape"),
    "no leaf": (lambda: drawn([()]), ValueError, "batch must hold at least one array, got an empty structure"),
    "too large": (lambda: drawn([np.array([2**40])]), ValueError, "batch holds 1099511627776 at index (0,)"),
    "a tensor of no kind": (
        lambda: drawn([Capsule(np.array([None]))]),
        TypeError,
        "batch cannot become a NumPy array: got Capsule, and converting it says: ",
    ),
    "a position of objects": (
        lambda: encode_state({"a": [object]}),
        TypeError,
        "a position must hold numbers, strings, bytes, arrays, tuples, lists and dicts, got type: <class 'object'>; "
        "let the source's state return one of those",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_came_and_what_to_do(name: str) -> None:
    call, kind, text = ERRORS[name]
    with pytest.raises(kind) as caught:
        call()
    assert text in str(caught.value)
    assert ";" in str(caught.value)


def test_an_error_in_a_batch_names_the_batch_and_the_source() -> None:
    stream = mk.data.stream([VALUES, VALUES, (1.0,)])
    drawn(stream, 2)
    with pytest.raises(ValueError) as caught:
        next(stream)
    assert caught.value.__notes__ == [
        "in batch 2 of epoch 0 of a sequence (list), which resumes exactly (by its index)"
    ]

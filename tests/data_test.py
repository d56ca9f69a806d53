"""Laws of the in-memory data set, and of the order in which training and evaluation walk over it."""

import collections
import itertools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modulekit import data as data_package
from modulekit.data import Arrays, batch_indices, epoch_order, evaluation_batches, order

Pair = collections.namedtuple("Pair", ["image", "label"])

quick = settings(deadline=None, max_examples=60)
sizes = st.integers(1, 40)
seeds = st.integers(0, 2**64 - 1)


@st.composite
def streams(draw: st.DrawFn) -> dict[str, Any]:
    """Settings of a training stream: a size, a batch size that fits it, a seed, and whether it is shuffled."""
    size = draw(sizes)
    batch_size, seed, shuffle = draw(st.tuples(st.integers(1, size), st.integers(0, 5), st.booleans()))
    return {"size": size, "batch_size": batch_size, "seed": seed, "shuffle": shuffle}


@st.composite
def structures(draw: st.DrawFn, size: int = 3) -> Any:
    """Nested tuples, lists and dicts of integer arrays with one common length and at least one array."""
    leaf = st.builds(lambda width, start: np.arange(size * width).reshape(size, width) + start, sizes, sizes)
    names = st.text("abc'", min_size=1, max_size=3)
    return draw(
        st.recursive(
            leaf,
            lambda child: (
                st.lists(child, min_size=1, max_size=3)
                | st.lists(child, min_size=1, max_size=3).map(tuple)
                | st.dictionaries(names, child, min_size=1, max_size=3)
            ),
            max_leaves=5,
        )
    )


def flat(structure: Any) -> list[np.ndarray]:
    """The arrays of a structure, by a walk that shares nothing with the library's."""
    if isinstance(structure, np.ndarray):
        return [structure]
    children = structure.values() if isinstance(structure, dict) else structure
    return [array for child in children for array in flat(child)]


def outline(structure: Any) -> Any:
    """The containers of a structure, with every array replaced by None."""
    if isinstance(structure, np.ndarray):
        return None
    if isinstance(structure, dict):
        return {key: outline(child) for key, child in structure.items()}
    return type(structure)([outline(child) for child in structure])


def test_exports() -> None:
    """The package exports exactly what it promises, and every name exists."""
    promised = {"Arrays", "digits", "mnist", "read_idx", "epoch_order", "batch_indices", "evaluation_batches"}
    promised |= {
        "Group",
        "IndexedBatches",
        "Pipeline",
        "Prefetch",
        "Stream",
        "download",
        "padded",
        "pipeline",
        "stream",
    }
    assert set(data_package.__all__) == promised
    assert all(callable(getattr(data_package, name)) for name in promised)


# Arrays.


@quick
@given(structures())
def test_arrays_keeps_the_structure_and_the_values(structure: Any) -> None:
    """Containers stay what they are, and leaves keep their values in the structure's order."""
    data = Arrays(structure)
    assert data.size == 3
    assert outline(data.arrays) == outline(structure)
    assert len(data.leaves) == len(flat(structure))
    for (_, leaf), array, original in zip(data.leaves, flat(data.arrays), flat(structure), strict=True):
        assert leaf is array
        assert leaf.dtype == np.int32
        np.testing.assert_array_equal(leaf, original)


@quick
@given(structures())
def test_a_leaf_path_is_the_expression_that_finds_the_leaf(structure: Any) -> None:
    """Evaluating a path, with the structure under the name `data`, gives that leaf; so paths are unique."""
    arrays = Arrays(structure)
    for path, leaf in arrays.leaves:
        assert eval(path, {"data": arrays.arrays}) is leaf
    assert len({path for path, _ in arrays.leaves}) == len(arrays.leaves)


@quick
@given(structures(), st.lists(st.integers(0, 2), max_size=7))
def test_take_gathers_every_leaf(structure: Any, indices: list[int]) -> None:
    """Example i of what was taken is example indices[i] of the data, in each leaf."""
    data = Arrays(structure)
    taken = data.take(np.array(indices, np.int32))
    assert outline(taken) == outline(structure)
    for got, (_, leaf) in zip(flat(taken), data.leaves, strict=True):
        assert got.shape == (len(indices), *leaf.shape[1:])
        assert got.tolist() == [leaf[index].tolist() for index in indices]


def test_take_follows_the_shape_of_the_indices() -> None:
    """Indices [count, batch] gather leaves [count, batch, ...], a scalar gathers one example, a slice gives a view."""
    data = Arrays(np.arange(12).reshape(6, 2))
    assert data.take([[0, 5, 1], [2, 3, 4]]).shape == (2, 3, 2)
    assert data.take(5).tolist() == [10, 11]
    part = data.take(slice(2, 5))
    assert np.shares_memory(part, data.arrays)
    np.testing.assert_array_equal(part, data.take([2, 3, 4]))


def test_named_tuples_stay_named_tuples() -> None:
    """A named tuple is found by its fields after conversion and after taking."""
    data = Arrays(Pair(image=np.zeros([4, 2]), label=np.arange(4)))
    assert isinstance(data.arrays, Pair)
    assert data.take([3, 1]).label.tolist() == [3, 1]


@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: (data, np.arange(4))], ids=["whole", "part"])
def test_arrays_of_arrays_is_an_equal_view(wrap: Any) -> None:
    """An Arrays inside the data stands for its structure and shares its memory."""
    inner = Arrays({"x": np.ones([4, 2])})
    outer = Arrays(wrap(inner))
    found = outer.arrays if isinstance(outer.arrays, dict) else outer.arrays[0]
    assert found["x"] is inner.arrays["x"]
    assert (outer.fingerprint() == inner.fingerprint()) == (len(outer.leaves) == 1)


def test_repr_names_every_leaf() -> None:
    """The repr shows the size, and each leaf's path, dtype and shape."""
    data = Arrays((np.zeros([2, 3]), {"label": np.array([True, False])}))
    assert repr(data) == "Arrays(size=2, data[0]: float32[2, 3], data[1]['label']: bool[2])"


KEPT_AS = {
    "float32": ["float32", "float64", "longdouble", ">f8", ">f4"],
    "int32": ["int32", "int64", ">i4"],
    "uint32": ["uint64"],
    "complex64": ["complex64", "complex128"],
    "int16": ["int16", ">i2"],
    "bfloat16": [ml_dtypes.bfloat16],
} | {name: [name] for name in ["float16", "uint8", "bool"]}


@pytest.mark.parametrize(("given_dtype", "kept"), [(given, kept) for kept, many in KEPT_AS.items() for given in many])
def test_leaves_get_the_types_that_jax_has_by_default(given_dtype: Any, kept: str) -> None:
    """64-bit types become their 32-bit counterparts in native byte order; all others stay."""
    leaf = Arrays(np.array([0, 1, 1], given_dtype)).arrays
    assert leaf.dtype.name == kept
    assert leaf.dtype.isnative
    assert leaf.tolist() == [0, 1, 1]
    assert len(Arrays(leaf).fingerprint()) == 16


def test_what_fits_is_kept() -> None:
    """A float32 array is held and not copied; the limits of int32 pass, and so do infinities and NaN."""
    array = np.ones([3, 2], np.float32)
    assert Arrays(array).arrays is array
    assert Arrays(np.array([-(2**31), 2**31 - 1])).arrays.tolist() == [-(2**31), 2**31 - 1]
    np.testing.assert_array_equal(Arrays(np.array([np.inf, np.nan])).arrays, np.array([np.inf, np.nan], np.float32))


def test_fingerprint_is_stable() -> None:
    """Saved fingerprints stay valid: these digits may never change."""
    assert Arrays((np.arange(3), np.ones([3, 2]))).fingerprint() == "928adeb3059980a9"


@quick
@given(structures(), st.data())
def test_fingerprint_sees_every_value(structure: Any, choice: st.DataObject) -> None:
    """Equal data have equal fingerprints, and changing any one value changes it."""
    before = Arrays(structure).fingerprint()
    assert Arrays(structure).fingerprint() == before
    array = choice.draw(st.sampled_from(flat(structure)))
    array.flat[choice.draw(st.integers(0, array.size - 1))] += 1
    assert Arrays(structure).fingerprint() != before


def test_fingerprint_sees_shape_dtype_and_place_but_not_layout() -> None:
    """The same bytes in another shape, type or place are other data; a transposed layout or dict order is not."""
    x, y = np.arange(6, dtype=np.int32).reshape(3, 2), np.ones(3, np.int32)
    distinct = [x, x.reshape(3, 2, 1), x.view(np.float32), (x,), (x, y), (y, x), {"x": x, "y": y}, {"x": y, "y": x}]
    assert len({Arrays(each).fingerprint() for each in distinct}) == len(distinct)
    assert Arrays(np.asfortranarray(x)).fingerprint() == Arrays(x).fingerprint()
    assert Arrays({"y": y, "x": x}).fingerprint() == Arrays({"x": x, "y": y}).fingerprint()
    assert Arrays(np.zeros([3, 0])).fingerprint() != Arrays(np.zeros([4, 0])).fingerprint()


# The order of training and evaluation.


@quick
@given(sizes, seeds, seeds)
def test_every_epoch_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    """Every example comes once, whatever the seed and the epoch, and asking again gives the same order."""
    first = epoch_order(size, seed, epoch)
    assert first.dtype == np.int32
    assert sorted(first.tolist()) == list(range(size))
    order._shuffled.cache_clear()
    np.testing.assert_array_equal(epoch_order(size, seed, epoch), first)


def test_epoch_order_is_stable() -> None:
    """Saved runs resume exactly: these orders may never change, on any machine or NumPy version."""
    assert epoch_order(10, seed=3, epoch=2).tolist() == [8, 2, 4, 1, 3, 6, 5, 0, 7, 9]
    assert epoch_order(1, seed=0, epoch=0).tolist() == [0]


def test_seeds_and_epochs_give_different_orders() -> None:
    """No two of 8 seeds times 8 epochs share an order; (seed, epoch) is not (epoch, seed)."""
    drawn = {tuple(epoch_order(30, seed, epoch)) for seed, epoch in itertools.product(range(8), repeat=2)}
    assert len(drawn) == 64


def test_orders_are_uniform() -> None:
    """Over 3,000 epochs each of the 6 orders of 3 examples comes about 500 times (5 standard deviations: 102)."""
    counts = collections.Counter(tuple(epoch_order(3, 1, epoch).tolist()) for epoch in range(3000))
    assert len(counts) == 6
    assert all(abs(count - 500) < 102 for count in counts.values())


def test_an_order_cannot_be_changed() -> None:
    """A remembered order is read-only, so no caller can disturb another's batches."""
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(5, 0, 0)[0] = 3
    batch_indices(5, 5, 0, 0, 1)[:] = 0
    assert sorted(batch_indices(5, 5, 0, 0, 1)[0].tolist()) == [0, 1, 2, 3, 4]


@quick
@given(streams(), st.integers(0, 30), st.integers(0, 12))
def test_batches_are_cut_from_the_concatenated_epochs(stream: dict[str, Any], step: int, count: int) -> None:
    """Steps step .. step + count - 1 take their positions of the naive stream, and equal single steps."""
    size, batch_size, seed = stream["size"], stream["batch_size"], stream["seed"]
    passes = (step + count) * batch_size // size + 1
    epoch = [epoch_order(size, seed, e) if stream["shuffle"] else np.arange(size) for e in range(passes)]
    expected = np.concatenate(epoch)[step * batch_size : (step + count) * batch_size].reshape(count, batch_size)
    batches = batch_indices(**stream, step=step, count=count)
    assert batches.dtype == np.int32
    np.testing.assert_array_equal(batches, expected)
    for k in range(count):
        np.testing.assert_array_equal(batch_indices(**stream, step=step + k, count=1)[0], batches[k])


@quick
@given(streams(), st.integers(0, 10))
def test_no_example_is_dropped(stream: dict[str, Any], epoch: int) -> None:
    """In any `size` steps, which are `batch_size` epochs, each example comes batch_size times."""
    size = stream["size"]
    batches = batch_indices(**stream, step=epoch * size, count=size)
    assert np.bincount(batches.ravel(), minlength=size).tolist() == [stream["batch_size"]] * size


def test_a_far_step_shuffles_only_its_own_epochs() -> None:
    """Step 10**15 costs the shuffling of the two epochs that its batch touches, and a second look costs none."""
    order._shuffled.cache_clear()
    step = 10**15 + 3
    batch = batch_indices(100, 30, 0, step, 1)
    assert order._shuffled.cache_info().misses == 2
    position = step * 30 % 100
    tail = epoch_order(100, 0, step * 30 // 100)[position:]
    np.testing.assert_array_equal(batch[0, : len(tail)], tail)
    assert order._shuffled.cache_info().misses == 2


@quick
@given(st.integers(1, 200), st.integers(1, 250))
def test_evaluation_covers_each_index_once_in_order(size: int, batch_size: int) -> None:
    """The slices, put together, are 0 .. size - 1; all but the last are full, and none is empty."""
    lengths = [len(range(size)[batch]) for batch in evaluation_batches(size, batch_size)]
    covered = [index for batch in evaluation_batches(size, batch_size) for index in range(size)[batch]]
    assert covered == list(range(size))
    assert all(length == batch_size for length in lengths[:-1])
    assert 1 <= lengths[-1] <= batch_size


# Errors: each says what was expected, what came, and what to do.


class Stubborn:
    """An object that NumPy cannot turn into an array."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        """Refuses."""
        raise TypeError("no array today")


def step(**change: int) -> Any:
    """The batches of a valid step with some settings changed."""
    return batch_indices(**{"size": 100, "batch_size": 10, "seed": 0, "step": 0, "count": 1, **change})


def too_small(name: str, limit: int, value: int) -> str:
    """The text of the error for an integer below its limit."""
    return f"ValueError: {name} must be at least {limit}, got {value}; pass a larger {name}"


three = Arrays(np.arange(3))
EMPTY = "ValueError: data must hold at least one array, got an empty structure; pass at least one array"
NUMBERS = "must hold numbers or booleans, got"
ENCODE = "encode it as numbers, or leave it out of the data"
NARROWED = "is narrowed to; rescale or renumber the values"
OUTSIDE = (
    "is outside 0 .. 2 for data with 3 examples; take only indices that exist (negative ones do not count from the end)"
)

ERRORS = {
    "no array": (lambda: Arrays(()), EMPTY),
    "no array inside": (lambda: Arrays({"a": []}), EMPTY),
    "lengths": (
        lambda: Arrays((np.zeros([5, 2]), {"label": np.zeros(4)})),
        "ValueError: all arrays must have one number of examples (first axis), "
        "but data[0] has 5, data[1]['label'] has 4; cut or complete them",
    ),
    "no example": (
        lambda: Arrays({"x": np.zeros([0, 2])}),
        "ValueError: data must hold at least one example, got data['x'] of shape (0, 2); pass more data",
    ),
    "scalar": (
        lambda: Arrays([7, 8]),
        "ValueError: data[0] must have a first axis that counts examples, got the scalar 7; "
        "for a list of numbers, pass np.array([...])",
    ),
    "none": (lambda: Arrays(None), f"TypeError: data {NUMBERS} NoneType with dtype object; {ENCODE}"),
    "text": (
        lambda: Arrays((np.zeros(2), np.array(["a", "b"]))),
        f"TypeError: data[1] {NUMBERS} ndarray with dtype <U1; {ENCODE}",
    ),
    "records": (
        lambda: Arrays(np.zeros(2, [("a", "i4")])),
        f"TypeError: data {NUMBERS} ndarray with dtype [('a', '<i4')]; {ENCODE}",
    ),
    "no NumPy array": (
        lambda: Arrays({"x": Stubborn()}),
        "TypeError: data['x'] cannot become a NumPy array: got Stubborn, and converting it says: no array today; "
        "pass arrays of numbers",
    ),
    "int64": (
        lambda: Arrays({"id": np.array([[1, 2], [3, 2**31]])}),
        "ValueError: data['id'] holds 2147483648 at index (1, 1), which does not fit int32, "
        f"the type that int64 {NARROWED}",
    ),
    "float64": (
        lambda: Arrays(np.array([1.0, -1e39])),
        f"ValueError: data holds -1e+39 at index (1,), which does not fit float32, the type that float64 {NARROWED}",
    ),
    "mask": (
        lambda: three.take([True, False, True]),
        "TypeError: expected integer indices or a slice, got bool of shape (3,); "
        "for a boolean mask, take np.flatnonzero(mask)",
    ),
    "index": (lambda: three.take([[0, 1], [3, 0]]), f"IndexError: index 3 {OUTSIDE}"),
    "negative index": (lambda: three.take(-1), f"IndexError: index -1 {OUTSIDE}"),
    "size": (lambda: step(size=0), too_small("size", 1, 0)),
    "size of evaluation": (lambda: evaluation_batches(0, 1), too_small("size", 1, 0)),
    "large size": (
        lambda: step(size=2**31),
        "ValueError: size must be at most 2147483647, got 2147483648; pass a smaller size",
    ),
    "batch_size": (lambda: step(batch_size=0), too_small("batch_size", 1, 0)),
    "batch_size of evaluation": (lambda: evaluation_batches(5, -2), too_small("batch_size", 1, -2)),
    "large batch_size": (
        lambda: step(batch_size=200),
        "ValueError: batch_size=200 is larger than the data's 100 examples; "
        "choose a batch_size of at most 100, or give more data",
    ),
    "seed": (lambda: step(seed=-1), too_small("seed", 0, -1)),
    "large seed": (
        lambda: epoch_order(5, 2**64, 0),
        "ValueError: seed must be at most 18446744073709551615, got 18446744073709551616; pass a smaller seed",
    ),
    "fraction": (lambda: epoch_order(5, 0.5, 0), "TypeError: seed must be an integer, got 0.5; pass an int"),
    "epoch": (lambda: epoch_order(5, 0, -1), too_small("epoch", 0, -1)),
    "step": (lambda: step(step=-3), too_small("step", 0, -3)),
    "count": (lambda: step(count=-1), too_small("count", 0, -1)),
}


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors_say_exactly(call: Callable[[], Any], message: str) -> None:
    """Each refused call raises, at once, the error that the table states."""
    with pytest.raises((TypeError, ValueError, IndexError)) as caught:
        call()
    assert f"{caught.type.__name__}: {caught.value}" == message

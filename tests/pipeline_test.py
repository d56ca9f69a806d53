"""Laws of pipelines: an element is a function of (epoch, index), and operations act in the order they are written in."""

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modulekit as mk

quick = settings(deadline=None, max_examples=40)
sizes = st.integers(1, 20)


def numbers(size: int) -> mk.data.Pipeline:
    return mk.data.pipeline(np.arange(size))


def listed(pipeline: Any) -> list[Any]:
    return [np.asarray(element).tolist() for element in pipeline]


def first(source: Any, count: int) -> list[Any]:
    return listed(itertools.islice(source, count))


def draw(example: Any, generator: np.random.Generator) -> Any:
    return example + generator.normal()


# References: the same operations on lists, in plain Python.


def batched(elements: list[Any], size: int, drop_remainder: bool = False) -> list[list[Any]]:
    batches = [elements[i : i + size] for i in range(0, len(elements), size)]
    return [batch for batch in batches if len(batch) == size or not drop_remainder]


def shuffled(elements: list[Any], seed: int, epoch: int) -> list[Any]:
    return [elements[i] for i in mk.data.epoch_order(len(elements), seed, epoch)]


@st.composite
def pipelines(draw_from: st.DrawFn) -> tuple[mk.data.Pipeline, Callable[[int], list[Any]]]:
    """A pipeline of a few operations, and the same on lists: a function of the epoch."""
    size = draw_from(sizes)
    pipeline: mk.data.Pipeline = numbers(size)
    reference: Callable[[int], list[Any]] = lambda epoch: list(range(size))  # noqa: E731
    for operation in draw_from(st.lists(st.sampled_from(["map", "shuffle", "repeat", "batch"]), max_size=4)):
        number = draw_from(st.integers(1, 3))
        before = reference
        if operation == "map":
            pipeline = pipeline.map(lambda x, n=number: x * n)
            reference = lambda e, b=before, n=number: [(np.asarray(x) * n).tolist() for x in b(e)]  # noqa: E731
        elif operation == "shuffle":
            pipeline = pipeline.shuffle(number)
            reference = lambda e, b=before, n=number: shuffled(b(e), n, e)  # noqa: E731
        elif operation == "repeat":
            pipeline = pipeline.repeat(number)
            reference = lambda e, b=before, n=number: [x for i in range(n) for x in b(e * n + i)]  # noqa: E731
        elif _flat(before(0)):  # batches of unequal batches cannot be stacked
            pipeline = pipeline.batch(number)
            reference = lambda e, b=before, n=number: batched(b(e), n)  # noqa: E731
    return pipeline, reference


def _flat(elements: list[Any]) -> bool:
    return not isinstance(elements[0], list)


@quick
@given(pipelines())
def test_a_pipeline_does_what_its_operations_do_to_lists(case: Any) -> None:
    pipeline, reference = case
    expected = reference(0)
    assert len(pipeline) == len(expected)
    assert listed(pipeline) == expected
    assert [np.asarray(pipeline[i]).tolist() for i in range(len(expected))] == expected
    assert np.asarray(pipeline[-1]).tolist() == expected[-1]
    assert listed(pipeline.elements(epoch=2)) == reference(2)


@quick
@given(pipelines(), st.integers(0, 30))
def test_to_begin_at_an_element_is_to_skip_those_before(case: Any, start: int) -> None:
    pipeline, reference = case
    assert listed(pipeline.elements(1, start)) == reference(1)[start:]


@quick
@given(sizes, st.integers(1, 7), st.integers(0, 50))
def test_a_stream_restored_at_k_is_one_that_skipped_k(size: int, batch: int, skipped: int) -> None:
    make = lambda: mk.data.stream(numbers(size).shuffle(3).map(draw, random=True).batch(batch))  # noqa: E731
    straight, other = make(), make()
    for _ in range(skipped):
        next(straight)
    other.restore(json.loads(json.dumps(straight.state())))
    assert first(other, 5) == first(straight, 5)


@quick
@given(sizes, st.integers(1, 25))
def test_batches_put_together_are_the_elements(size: int, batch: int) -> None:
    whole = numbers(size).shuffle(1)
    batches = whole.batch(batch)
    assert np.concatenate(list(batches)).tolist() == listed(whole)
    assert [len(b) for b in batches] == [batch] * (size // batch) + [size % batch] * (size % batch > 0)


@quick
@given(st.integers(1, 5), st.integers(5, 20))
def test_the_remainder_is_dropped_only_on_request(batch: int, size: int) -> None:
    assert listed(numbers(size).batch(batch, drop_remainder=True)) == batched(list(range(size)), batch, True)


@quick
@given(sizes, st.integers(1, 4))
def test_to_repeat_is_to_run_through_the_epochs(size: int, epochs: int) -> None:
    once = numbers(size).shuffle(2)
    expected = [x for epoch in range(epochs) for x in listed(once.elements(epoch))]
    assert listed(once.repeat(epochs)) == expected
    assert first(once.repeat(), len(expected)) == expected
    assert first(mk.data.stream(once.batch(1)), len(expected)) == [[x] for x in expected]


@quick
@given(sizes, st.integers(1, 4), st.integers(1, 4))
def test_repetitions_multiply(size: int, inner: int, outer: int) -> None:
    once = numbers(size).shuffle(2)
    assert listed(once.repeat(inner).repeat(outer)) == listed(once.repeat(inner * outer))


@quick
@given(sizes)
def test_two_maps_are_one_of_both(size: int) -> None:
    two = numbers(size).map(lambda x: x + 1).map(lambda x: x * x)
    assert listed(two.batch(3)) == listed(numbers(size).map(lambda x: (x + 1) * (x + 1)).batch(3))


def test_each_epoch_has_another_order_and_the_same_examples() -> None:
    orders = [listed(numbers(20).shuffle(0).elements(epoch)) for epoch in range(3)]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len({str(order) for order in orders}) == 3


def test_the_order_of_operations_counts() -> None:
    shuffled_first = numbers(6).shuffle(0).batch(2)
    batched_first = numbers(6).batch(2).shuffle(0)
    assert sorted(listed(batched_first)) == [[0, 1], [2, 3], [4, 5]]
    assert sorted(listed(shuffled_first)) != sorted(listed(batched_first))


def test_batches_after_repeat_straddle_epochs() -> None:
    assert first(numbers(3).repeat().batch(2), 4) == [[0, 1], [2, 0], [1, 2], [0, 1]]


def test_no_operation_changes_the_pipeline_before_it() -> None:
    pipeline = numbers(5)
    pipeline.map(lambda x: 0 * x).shuffle(0).batch(2).repeat()
    assert listed(pipeline) == [0, 1, 2, 3, 4]


# Random maps and threads.


def test_random_numbers_are_of_the_seed_the_stage_the_epoch_and_the_element() -> None:
    def drawn(seed: int, epoch: int, before: int = 0) -> list[float]:
        pipeline = numbers(4)
        for _ in range(before):
            pipeline = pipeline.map(lambda x: x)
        return [float(x) for x in pipeline.map(lambda x, g: g.random(), random=True, seed=seed).elements(epoch)]

    every = [drawn(0, 0), drawn(1, 0), drawn(0, 1), drawn(0, 0, before=1)]
    assert len({x for row in every for x in row}) == 16
    assert drawn(0, 1) == drawn(0, 1)
    key, counter = np.array([0, 1], np.uint64), np.array([0, 0, 3, 1], np.uint64)
    assert drawn(0, 1)[3] == np.random.Generator(np.random.Philox(key=key, counter=counter)).random()


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_threads_change_no_element_and_no_order(workers: int) -> None:
    def pipeline(count: int) -> mk.data.Pipeline:
        return numbers(30).shuffle(0).map(draw, random=True, workers=count).batch(4)

    assert listed(pipeline(workers)) == listed(pipeline(0))
    assert listed(pipeline(workers).elements(3, start=5)) == listed(pipeline(0).elements(3, start=5))
    assert first(mk.data.stream(pipeline(workers)), 20) == first(mk.data.stream(pipeline(0)), 20)


def test_threads_work_at_once() -> None:
    meeting = threading.Barrier(3, timeout=20)  # passes only if three are there together

    def meet(x: Any) -> Any:
        meeting.wait()
        return x

    assert listed(numbers(6).map(meet, workers=3)) == list(range(6))


def test_threads_work_ahead_no_further_than_twice_their_number() -> None:
    begun: list[int] = []
    elements = numbers(100).map(lambda x: begun.append(int(x)) or x, workers=2).elements()
    next(elements)
    elements.close()  # type: ignore[attr-defined]
    assert len(begun) <= 5


def test_an_error_in_a_thread_is_raised_at_its_place() -> None:
    def refuse(x: Any) -> Any:
        if x == 3:
            raise ArithmeticError("three")
        return x

    elements = iter(numbers(8).map(refuse, workers=2))
    assert first(elements, 3) == [0, 1, 2]
    with pytest.raises(ArithmeticError, match="three") as caught:
        next(elements)
    assert caught.traceback[-1].name == "refuse"


def test_a_dropped_iteration_ends_its_threads() -> None:
    before = set(threading.enumerate())
    elements = iter(numbers(100).map(lambda x: x, workers=3))
    next(elements)
    started = set(threading.enumerate()) - before
    assert started
    del elements
    for thread in started:
        thread.join(20)
        assert not thread.is_alive()


# What goes in and comes out.


def test_structures_pass_through() -> None:
    data = {"image": np.zeros([5, 2, 2]), "label": np.arange(5)}
    example = mk.data.pipeline(data)[3]
    assert example["image"].shape == (2, 2) and example["label"] == 3
    batch = mk.data.pipeline(data).map(lambda e: (e["image"], {"y": e["label"]})).batch(2)[1]
    assert batch[0].shape == (2, 2, 2) and batch[0].dtype == np.float32
    assert batch[1]["y"].tolist() == [2, 3]


@pytest.mark.parametrize(
    "examples", [[(1, 2.5), (3, 4.5)], mk.data.Arrays((np.array([1, 3]), np.array([2.5, 4.5])))], ids=["list", "Arrays"]
)
def test_examples_come_from_sequences_and_from_arrays(examples: Any) -> None:
    x, y = mk.data.pipeline(examples).batch(2)[0]
    assert x.tolist() == [1, 3] and y.tolist() == [2.5, 4.5]


def test_a_data_set_with_len_and_indices_is_enough() -> None:
    class Squares:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> int:
            if not isinstance(index, int):
                raise TypeError(index)
            return index * index

    assert sorted(listed(mk.data.pipeline(Squares()).shuffle(0))) == [0, 1, 4, 9]
    assert sorted(np.concatenate(list(mk.data.pipeline(Squares()).shuffle(0).batch(3)))) == [0, 1, 4, 9]


def test_a_function_that_changes_its_example_does_not_change_the_data() -> None:
    data = np.ones([3, 2], np.float32)

    def spoil(example: Any) -> Any:
        example[:] = 7
        return example

    assert listed(mk.data.pipeline(data).map(spoil)) == [[7, 7]] * 3
    assert (data == 1).all()


def test_batches_of_batches_stack() -> None:
    assert numbers(8).batch(2).batch(2)[1].tolist() == [[4, 5], [6, 7]]
    assert numbers(4).repeat(2).shuffle(0).batch(8)[0].shape == (8,)


def test_its_text_is_how_it_was_written() -> None:
    pipeline = numbers(10).shuffle(3).map(draw, random=True).batch(4, drop_remainder=True).repeat(2).repeat()
    assert repr(pipeline) == (
        "pipeline(10 examples).shuffle(3).map(draw, random=True).batch(4, drop_remainder=True).repeat(2).repeat()"
    )
    assert mk.data.stream(pipeline).describe() == f"{pipeline!r}, which resumes exactly (by its index)"


# Errors.


def uneven() -> Iterator[Any]:
    return iter(mk.data.pipeline([np.zeros([2]), np.zeros([3], np.int32)]).batch(2))


ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no sequence": (
        lambda: mk.data.pipeline(iter([1])),
        TypeError,
        "expected arrays or a sequence of examples (with len and indices), got list_iterator",
    ),
    "no example": (lambda: mk.data.pipeline([]), ValueError, "expected at least one example, got an empty list; "),
    "unequal examples": (
        lambda: next(uneven()),
        ValueError,
        "what is stacked must have the same containers, shapes and dtypes, but example 0 of it is "
        "example: float64[2] and example 1 is example: int32[3]; map them to one form",
    ),
    "an example of objects": (
        lambda: numbers(2).map(lambda x: "text").batch(2)[0],
        TypeError,
        "example must hold numbers or booleans, got str with dtype <U4",
    ),
    "len of no end": (
        lambda: len(numbers(3).repeat()),
        TypeError,
        "pipeline(3 examples).repeat() has no end, and len needs one; write repeat() after it, or leave it out",
    ),
    "shuffle of no end": (lambda: numbers(3).repeat().shuffle(0), TypeError, "has no end, and shuffle needs one"),
    "repeat of no end": (lambda: numbers(3).repeat().repeat(2), TypeError, "has no end, and repeat needs one"),
    "no whole batch": (
        lambda: numbers(3).batch(4, drop_remainder=True),
        ValueError,
        "pipeline(3 examples) has 3 elements, which is no whole batch of 4; choose a smaller size",
    ),
    "batch of none": (lambda: numbers(3).batch(0), ValueError, "size must be at least 1, got 0; pass a larger size"),
    "repeat of none": (lambda: numbers(3).repeat(0), ValueError, "epochs must be at least 1, got 0"),
    "no seed": (lambda: numbers(3).shuffle(-1), ValueError, "seed must be at least 0, got -1"),
    "no seed of a map": (lambda: numbers(3).map(abs, seed=-1), ValueError, "seed must be at least 0, got -1"),
    "half a worker": (lambda: numbers(3).map(abs, workers=0.5), TypeError, "workers must be an integer, got 0.5; "),  # type: ignore[arg-type]
    "an index too large": (
        lambda: numbers(3)[3],
        IndexError,
        "index 3 is outside the 3 elements of pipeline(3 examples); ask for -3 .. 2",
    ),
    "an index too small": (lambda: numbers(3).repeat()[-1], IndexError, "index -1 is outside the elements of pipeline"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_came_and_what_to_do(name: str) -> None:
    call, kind, text = ERRORS[name]
    with pytest.raises(kind) as caught:
        call()
    assert text in str(caught.value)
    assert ";" in str(caught.value)

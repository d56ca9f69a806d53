"""Laws of reading ahead: the same batches in the same order, each with its position, whatever is asked for."""

import gc
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modulekit as mk

quick = settings(deadline=None, max_examples=60)
PATIENCE = 30  # seconds until a test gives up


def batch_of(number: int, width: int = 2) -> dict[str, Any]:
    return {"x": np.full([width, 3], number, np.float32), "y": (np.full([width], number, np.int32),)}


def counted(count: int) -> Iterator[Any]:
    return (batch_of(i) for i in range(count))


def endless() -> mk.data.Stream:
    return mk.data.stream(lambda: (batch_of(i) for i in itertools.count()))


def apart(group: mk.data.Group) -> list[Any]:
    """The batches of a group, by a walk that shares nothing with the library's."""
    x, (y,) = group.arrays["x"], group.arrays["y"]
    assert len(x) == len(y) == group.count == len(group.states) >= 1
    return [(a.tolist(), b.tolist()) for a, b in zip(x, y, strict=True)]


def prefetching(*threads: threading.Thread) -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "prefetch" and t not in threads]


@quick
@given(
    widths=st.lists(st.integers(1, 2), min_size=1, max_size=20),
    takes=st.lists(st.tuples(st.integers(1, 6), st.none() | st.integers(1, 6)), min_size=1, max_size=8),
    group=st.integers(1, 6),
    ahead=st.integers(1, 3),
    max_bytes=st.sampled_from([1, 100, 2**20]),
)
def test_groups_are_the_batches_in_order_with_their_positions(
    widths: list[int], takes: list[tuple[int, int | None]], group: int, ahead: int, max_bytes: int
) -> None:
    batches = [batch_of(number, width) for number, width in enumerate(widths)]
    straight = mk.data.stream(iter(batches))
    expected, states = [], [straight.state()]
    for batch in straight:
        expected.append((batch["x"].tolist(), batch["y"][0].tolist()))
        states.append(straight.state())
    got: list[Any] = []
    with mk.data.Prefetch(mk.data.stream(iter(batches)), group, ahead, max_bytes) as prefetch:
        assert prefetch.state == states[0]
        for limit, then in itertools.cycle(takes):
            try:
                taken = prefetch.take(limit, then)
            except StopIteration:
                break
            assert taken.count <= limit
            assert taken.states == states[len(got) + 1 : len(got) + 1 + taken.count]
            got += apart(taken)
            assert prefetch.state == taken.state_after == states[len(got)]
    assert got == expected


@pytest.mark.parametrize("limit", [1, 3, 4])
def test_a_stream_restored_at_a_group_goes_on_after_it(limit: int) -> None:
    make = lambda: mk.data.IndexedBatches(mk.data.Arrays(np.arange(10)), batch_size=3, seed=1)  # noqa: E731
    with mk.data.Prefetch(make(), group=4) as prefetch:
        state = prefetch.take(limit).state_after
        following = prefetch.take(1).arrays[0]
    other = make()
    other.restore(state)
    np.testing.assert_array_equal(next(other), following)


def test_groups_have_the_size_that_was_asked_for() -> None:
    with mk.data.Prefetch(endless(), group=3, ahead=1) as prefetch:
        assert [prefetch.take(5).count for _ in range(4)] == [3, 3, 3, 3]
        assert prefetch.take(2).count == 2
        assert prefetch.take(5).count == 1  # the rest of its block: nothing is copied twice


def test_the_size_that_was_announced_is_that_of_what_is_drawn_next() -> None:
    with mk.data.Prefetch(endless(), group=1) as prefetch:
        prefetch.take(1, then=4)
        counts = [prefetch.take(9).count for _ in range(5)]  # at most two small groups and the next were drawn before
    assert counts[-2:] == [4, 4]
    assert counts == sorted(counts)


def test_a_group_ends_where_the_shape_or_the_structure_changes() -> None:
    batches = [np.zeros([2]), np.ones([2]), np.ones([3]), np.ones([2], np.int32), (np.ones([2]),), [np.ones([2])]]
    with mk.data.Prefetch(mk.data.stream(iter(batches)), group=9) as prefetch:
        groups = [prefetch.take(9) for _ in range(5)]
    assert [group.count for group in groups] == [2, 1, 1, 1, 1]
    assert [type(group.arrays) for group in groups] == [np.ndarray, np.ndarray, np.ndarray, tuple, list]


def test_the_order_of_names_is_no_structure() -> None:
    batches = [{"a": np.zeros([2]), "b": np.ones([2])}, {"b": np.ones([2]), "a": np.zeros([2])}]
    with mk.data.Prefetch(mk.data.stream(batches), group=2) as prefetch:
        arrays = prefetch.take(2).arrays
    assert arrays["a"].tolist() == [[0, 0], [0, 0]] and arrays["b"].tolist() == [[1, 1], [1, 1]]


def test_a_source_may_use_its_memory_again() -> None:
    memory = np.zeros([2], np.float32)

    def source() -> Iterator[Any]:
        for number in range(6):
            memory[:] = number
            yield memory

    with mk.data.Prefetch(mk.data.stream(source()), group=3) as prefetch:
        first, second = prefetch.take(3), prefetch.take(3)
    assert first.arrays[:, 0].tolist() == [0, 1, 2] and second.arrays[:, 0].tolist() == [3, 4, 5]


# How far ahead.


@pytest.mark.parametrize(("group", "ahead", "max_bytes", "most"), [(3, 2, 2**20, 6), (5, 1, 2**20, 5), (9, 2, 128, 4)])
def test_it_reads_ahead_as_far_as_it_may_and_no_further(group: int, ahead: int, max_bytes: int, most: int) -> None:
    drawn = threading.Semaphore(0)
    taken, furthest = 0, 0

    def source() -> Iterator[Any]:
        nonlocal furthest
        for number in itertools.count():
            furthest = max(furthest, number + 1 - taken)
            drawn.release()
            yield np.zeros([8], np.float32)  # 32 bytes

    with mk.data.Prefetch(mk.data.stream(source()), group, ahead, max_bytes) as prefetch:
        for _ in range(most):
            assert drawn.acquire(timeout=PATIENCE)  # without any call of take
        for _ in range(10):
            taken += prefetch.take(1).count
    assert most <= furthest <= most + 1  # one batch may be taken before it counts as such


def test_a_batch_larger_than_the_memory_is_drawn_alone() -> None:
    with mk.data.Prefetch(endless(), group=9, max_bytes=1) as prefetch:
        assert [prefetch.take(9).count for _ in range(3)] == [1, 1, 1]


# Errors, ends and interruptions.


def broken(count: int, error: BaseException) -> Iterator[Any]:
    yield from counted(count)
    raise error


@pytest.mark.parametrize("error", [ArithmeticError("the third"), SystemExit(3)], ids=repr)
@pytest.mark.parametrize("limit", [1, 2, 9])
def test_an_error_of_the_source_is_raised_after_the_batches_before_it(error: BaseException, limit: int) -> None:
    with mk.data.Prefetch(mk.data.stream(broken(3, error)), group=2) as prefetch:
        got = 0
        while got < 3:
            got += prefetch.take(limit).count
        for _ in range(2):
            with pytest.raises(type(error)) as caught:
                prefetch.take(limit)
            assert caught.value is error
            assert "broken" in [entry.name for entry in caught.traceback]
        assert prefetch.state["batch"] == 3


def test_an_error_of_a_batch_is_raised_at_its_place() -> None:
    with mk.data.Prefetch(mk.data.stream([np.zeros([2]), np.array("text")]), group=9) as prefetch:
        assert prefetch.take(9).count == 1
        with pytest.raises(TypeError, match="batch must hold numbers") as caught:
            prefetch.take(9)
    assert "in batch 1 of epoch 0" in caught.value.__notes__[0]


class Blocking:
    """A source that hands out one batch and then waits."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.waits = threading.Event()

    def __iter__(self) -> Iterator[Any]:
        yield np.zeros([2])
        self.waits.set()
        assert self.go_on.wait(PATIENCE)
        yield np.ones([2])


def test_close_leaves_a_source_that_blocks_and_the_thread_ends_after_it() -> None:
    source, others = Blocking(), prefetching()
    prefetch = mk.data.Prefetch(mk.data.stream(source), group=1)
    (thread,) = prefetching(*others)
    assert source.waits.wait(PATIENCE) and thread.daemon
    prefetch.close(wait=0)
    assert thread.is_alive()
    prefetch.close()
    source.go_on.set()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_close_ends_the_thread_and_a_second_one_does_nothing() -> None:
    others = prefetching()
    prefetch = mk.data.Prefetch(endless(), group=2)
    prefetch.take(1)
    (thread,) = prefetching(*others)
    prefetch.close()
    prefetch.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_close_wakes_a_reader() -> None:
    source, answers = Blocking(), []
    prefetch = mk.data.Prefetch(mk.data.stream(source), group=1)
    prefetch.take(1)

    def read() -> None:
        try:
            prefetch.take(1)
        except RuntimeError as error:
            answers.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    assert source.waits.wait(PATIENCE)
    prefetch.close(wait=0)
    reader.join(PATIENCE)
    source.go_on.set()
    assert answers == ["take() was called after close(): make a new Prefetch, of a stream at its `state`"]


def test_a_prefetch_that_is_dropped_ends_its_thread() -> None:
    others = prefetching()
    prefetch = mk.data.Prefetch(endless(), group=2)
    prefetch.take(1)
    (thread,) = prefetching(*others)
    del prefetch
    gc.collect()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_an_interrupted_take_loses_nothing() -> None:
    source = Blocking()
    with mk.data.Prefetch(mk.data.stream(source), group=1) as prefetch:
        prefetch.take(1)
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            prefetch.take(1)  # waits until it is interrupted
        source.go_on.set()
        assert prefetch.take(1).arrays.tolist() == [[1, 1]]


def test_the_last_position_stays_after_close_and_the_stream_goes_on_from_there() -> None:
    stream = mk.data.IndexedBatches(mk.data.Arrays(np.arange(7)), 2, seed=0)
    with mk.data.Prefetch(stream, group=4) as prefetch:
        prefetch.take(3)
    stream.restore(prefetch.state)
    assert next(stream).tolist() == mk.data.batch_indices(7, 2, seed=0, step=3, count=1)[0].tolist()


def make(**numbers: Any) -> mk.data.Prefetch:
    return mk.data.Prefetch(endless(), **{"group": 1, **numbers})


def take(**numbers: Any) -> None:
    with make() as prefetch:
        prefetch.take(**{"limit": 1, **numbers})


ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "group": (lambda: make(group=0), "group must be at least 1, got 0; pass a larger group"),
    "ahead": (lambda: make(ahead=0), "ahead must be at least 1, got 0; pass a larger ahead"),
    "max_bytes": (lambda: make(max_bytes=-1), "max_bytes must be at least 1, got -1; pass a larger max_bytes"),
    "limit": (lambda: take(limit=0), "limit must be at least 1, got 0; pass a larger limit"),
    "then": (lambda: take(then=0), "then must be at least 1, got 0; pass a larger then"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_came_and_what_to_do(name: str) -> None:
    call, text = ERRORS[name]
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == text

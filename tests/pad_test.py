"""Laws of paddings."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

import modulekit as mk
from modulekit import pad

SIZES = range(1, 8)


@pytest.mark.parametrize("size", SIZES)
def test_the_number_of_outputs_with_stride_1_is_what_the_name_says(size: int) -> None:
    def outputs(padding: Callable[[int], Sequence[int]], inputs: int = 10) -> int:
        return inputs + sum(padding(size)) - size + 1

    assert outputs(pad.valid) == 10 - size + 1
    assert outputs(pad.same) == outputs(pad.causal) == outputs(pad.reverse_causal) == 10
    assert outputs(pad.full) == 10 + size - 1


@pytest.mark.parametrize("size", SIZES)
def test_where_the_padding_goes(size: int) -> None:
    assert pad.valid(size) == [0, 0]
    assert pad.causal(size) == [size - 1, 0]
    assert pad.reverse_causal(size) == [0, size - 1]
    assert pad.full(size) == [size - 1, size - 1]
    before, after = pad.same(size)
    assert before + after == size - 1 and after - before in (0, 1)


def test_create_uses_the_size_that_a_rate_spreads_a_kernel_to() -> None:
    seen: list[int] = []
    pad.create(lambda size: (seen.append(size), [0, 0])[1], kernel=[1, 3, 4], rate=[5, 1, 3], n=3, channel_index=-1)
    assert seen == [1, 3, 10]


def test_create_places_batch_and_channels() -> None:
    paddings = [pad.causal, pad.full]
    assert pad.create(paddings, [2, 3], 1, 2, -1) == [[0, 0], [1, 0], [2, 2], [0, 0]]
    assert pad.create(paddings, [2, 3], 1, 2, 1) == [[0, 0], [0, 0], [1, 0], [2, 2]]


def test_create_repeats_one_of_anything_for_all_axes() -> None:
    expected = pad.create([pad.full] * 3, [3] * 3, [2] * 3, 3, -1)
    assert pad.create(pad.full, 3, 2, 3, -1) == pad.create([pad.full], [3], (2,), 3, -1) == expected


def test_create_takes_what_a_function_would_return() -> None:
    assert pad.create([(1, 2), pad.causal], 3, 1, 2, -1) == [[0, 0], [1, 2], [2, 0], [0, 0]]
    assert pad.create([(1, 2)], 3, 1, 2, -1) == [[0, 0], [1, 2], [1, 2], [0, 0]]


def missing_one(size: int) -> list[int]:
    return [size]


COUNT = "must be a scalar or sequence of length 1 or sequence of length 2. Received:"
ERRORS: list[tuple[Any, Any, type[Exception], str]] = [
    ([pad.same] * 3, (3, 1), TypeError, f"padding {COUNT} padding=[same, same, same]"),
    (pad.same, ([3, 3, 3], 1), TypeError, f"kernel {COUNT} kernel=[3, 3, 3]"),
    (pad.same, (3, []), TypeError, f"rate {COUNT} rate=[]"),
    (
        missing_one,
        (3, 2),
        ValueError,
        "padding missing_one gives [5] for an effective kernel size of 5: expected [before, after], two numbers from 0",
    ),
    (
        (1, 2),
        (3, 1),
        TypeError,
        "padding 1 is not callable: expected a function of the effective kernel size, such as mk.pad.same, or [before, "
        "after]",
    ),
    (
        [(0, -1)],
        (3, 1),
        ValueError,
        "padding (0, -1) gives (0, -1) for an effective kernel size of 3: expected [before, after], two numbers from 0",
    ),
]


@pytest.mark.parametrize(("padding", "sizes", "kind", "text"), ERRORS)
def test_create_says_what_does_not_fit(padding: Any, sizes: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as caught:
        mk.pad.create(padding, *sizes, n=2, channel_index=-1)
    assert str(caught.value) == text


@pytest.mark.parametrize("padding", ["SAME", 1, None, ["SAME", "VALID"]])
def test_what_is_neither_a_function_nor_a_sequence_is_a_type_error(padding: Any) -> None:
    with pytest.raises(TypeError, match=r"is not callable: expected a function of the effective kernel size"):
        mk.pad.create(padding, 3, 1, n=2, channel_index=-1)

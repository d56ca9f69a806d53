"""Laws of transforms inside transforms: whatever stands in whatever, the result is that of plain Python over arrays."""

import contextlib
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest
from catalogue import ROWS, Row, assert_bitwise, assert_concrete, assert_near, state, variables_of
from composition import (
    RULES,
    TRANSFORMS,
    UNREVERSIBLE,
    Setting,
    Transform,
    composed,
    composed_plainly,
    identifier,
    is_reversible,
    leaving_no_tracer,
    results,
)

RANDOM = [row for row in ROWS if row.name in ("dropout_in_training", "mlp_with_dropout", "random_stream")]
SMALL = [
    row for row in ROWS if row.name in ("linear", "tied_pair", "moving_average", "shared_twice", "mean", "by_name")
]
PAIRS = list(itertools.product(TRANSFORMS, repeat=2))
TRIPLES = list(itertools.product(TRANSFORMS, repeat=3))


def pairs_of_rows() -> list[tuple[Row, tuple[Transform, ...]]]:
    """A seventh of the pairs for each row: every pair comes up, and every row meets every transform in both places."""
    places = list(itertools.product(range(len(TRANSFORMS)), repeat=2))
    return [
        (row, pair)
        for number, row in enumerate(ROWS)
        for (outer, inner), pair in zip(places, PAIRS, strict=True)
        if (outer + inner + number) % len(TRANSFORMS) == 0
    ]


def rows_of_triples() -> list[tuple[Row, tuple[Transform, ...]]]:
    """A row for each triple: a weight, a shared one, statistics, names; now and then random numbers, slow to compile.

    Larger modules are of the same parts; the pairs go through all rows.
    """
    turns = itertools.cycle([*SMALL, RANDOM[0], *SMALL, RANDOM[1], *SMALL, RANDOM[2]])
    return list(zip(turns, TRIPLES, strict=False))


def check(row: Row, transforms: Sequence[Transform], number: int) -> None:
    """Checks one composition; its number chooses the options, and each ninth is also searched for leaks by JAX itself.

    JAX then forgets all that it has traced and compiled, which takes most of the time, and random numbers most of that.

    A composition with a compiled function in it is called twice, with other inputs.
    """
    size, rule, is_built = (1 if number % 5 == 0 else 2), RULES[number % 3], number % 2 == 1
    steps = list(zip(*row.steps(), strict=True))[: 2 if "jit" in identifier(transforms) else 1]
    reference = Setting.fresh(row, True, size, rule)
    expected = list(results([composed_plainly(transforms, reference)] * len(steps), reference.module, steps))
    setting = Setting.fresh(row, is_built, size, rule)
    module, run = setting.module, composed(transforms, setting)
    watch = jax.checking_leaks if number % 9 == 0 and row not in RANDOM else contextlib.nullcontext
    for inputs, (output, values) in zip(steps, expected, strict=True):
        with leaving_no_tracer(), watch():
            actual = run(*inputs)
        assert_near(actual, output)
        assert_near(state(module), values)
        assert_integers_bitwise(state(module), values)
        assert_concrete(variables_of(module))


def assert_integers_bitwise(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    integers = [path for path, value in expected.items() if not np.issubdtype(value.dtype, np.floating)]
    assert_bitwise({path: actual[path] for path in integers}, {path: expected[path] for path in integers})


def check_refused(row: Row, transforms: Sequence[Transform], number: int) -> None:
    """Checks that a gradient through a `while_loop` raises JAX's error, changes nothing and can be followed by a call."""
    expected = row.call(row.fresh())
    setting = Setting.fresh(row, is_built=number % 2 == 1)
    module, before = setting.module, state(setting.module)
    with pytest.raises(ValueError, match=UNREVERSIBLE):
        composed(transforms, setting)(*row.inputs)
    assert_bitwise({path: value for path, value in state(module).items() if path in before}, before)
    assert_concrete(variables_of(module))
    np.testing.assert_array_equal(row.call(module), expected)


def cells(compositions: list[tuple[Row, tuple[Transform, ...]]]) -> Any:
    """Parametrizes by (row, transforms, number)."""
    return pytest.mark.parametrize(
        ("row", "transforms", "number"),
        [
            pytest.param(row, transforms, number, id=f"{row.name}-{identifier(transforms)}")
            for number, (row, transforms) in enumerate(compositions)
        ],
    )


@cells(pairs_of_rows())
def test_any_transform_in_any_other_equals_plain_python_and_leaks_nothing(
    row: Row, transforms: Sequence[Transform], number: int
) -> None:
    if row.has_weights and not is_reversible(transforms):
        check_refused(row, transforms, number)
        return
    check(row, transforms, number)


@cells(rows_of_triples())
def test_any_three_transforms_in_one_another_equal_plain_python_and_leak_nothing(
    row: Row, transforms: Sequence[Transform], number: int
) -> None:
    if row.has_weights and not is_reversible(transforms):
        check_refused(row, transforms, number)
        return
    check(row, transforms, number)

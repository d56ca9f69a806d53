"""Refuse or commit: the matrix of transforms, ways to hand over a module, and uses of its variables.

A cell either gives exactly the eager result, or raises at the user's line and says what to use instead. In both cases no
variable holds a tracer, no write is lost or half done, no weight is baked in, and the module goes on as if it had been
called eagerly. `TABLE` says which of the two a cell does; a change of behavior is a change of the table.
"""

import functools
import itertools
import linecache
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from catalogue import assert_bitwise, assert_concrete, variables_of
from matrix_cells import EAGER, NAMED, OURS_STATIC, PLAIN, PLAIN_OVER_OURS, PLAIN_STATIC, USES, X, pair_of, transformed

import modulekit as mk
from modulekit.errors import ForeignTransformError

# transform, whose it is, what the module is handed as, use: outcome. The first row that fits decides.
TABLE = [
    # `mk.functionalize` has to know the variables, and `jax.make_jaxpr` is what an argument is handed to.
    ("make_jaxpr", "ours", "*", "first call", "refused"),
    ("make_jaxpr", "ours", "argument", "*", "refused"),
    ("*", "ours", "*", "*", "exact"),
    # What only computes with values may read them. What records a program would bake them in.
    ("grad|vmap", "plain|plain over ours", "closure|static argument", "reads|first call", "exact"),
    ("*", "plain|plain over ours", "*", "*", "refused"),
]
INSTEAD = {
    "jit": "mk.jit", "grad": "mk.value_and_grad", "vmap": "mk.vmap", "scan": "mk.scan", "cond": "mk.cond",
    "while_loop": "mk.while_loop", "checkpoint": "mk.remat", "eval_shape": "mk.eval_shape",
    "make_jaxpr": "mk.functionalize",
}  # fmt: skip
SEED = 11


class Cell(NamedTuple):
    """A transform, whose it is, what the module is handed as, and what is done with its variables."""

    transform: str
    side: str
    handed: str
    use: str

    def rule(self) -> int:
        """Returns the index of the row of `TABLE` that decides."""
        fits = [all(p in ("*", c) or c in p.split("|") for p, c in zip(row, self, strict=False)) for row in TABLE]
        return fits.index(True)

    def outcome(self) -> str:
        return TABLE[self.rule()][-1]


CELLS = [
    *(Cell(*cell) for cell in itertools.product(PLAIN, ["plain", "ours"], ["closure", "argument"], USES)),
    *(Cell(*cell) for cell in itertools.product(PLAIN_OVER_OURS, ["plain over ours"], ["closure", "argument"], USES)),
    *(Cell(*cell) for cell in itertools.product(PLAIN_STATIC, ["plain"], ["static argument"], USES)),
    *(Cell(*cell) for cell in itertools.product(OURS_STATIC, ["ours"], ["static argument"], USES)),
]


def cells(outcome: str) -> Any:
    """Parametrizes by the cells of one outcome."""
    chosen = [cell for cell in CELLS if cell.outcome() == outcome]
    return pytest.mark.parametrize("cell", chosen, ids=lambda cell: "-".join(cell).replace(" ", "_"))


def test_every_row_of_the_table_decides_some_cell_and_no_cell_is_there_twice() -> None:
    assert {cell.rule() for cell in CELLS} == set(range(len(TABLE)))
    assert len(set(CELLS)) == len(CELLS) == 9 * 2 * 2 * 5 + 2 * 2 * 5 + 5 * 5 + 2 * 5


def fresh(use: str) -> Any:
    """Returns a module, called once unless the use is a first call, with all randomness started anew."""
    mk.seed(SEED)
    module = USES[use]()
    if use != "first call":
        module(X)
    return module


def values_by_name(module: Any) -> dict[str, np.ndarray]:
    """Returns copies of the values of all variables that a call may change; their names are unique here."""
    return {variable.name: variable.numpy() for variable in variables_of(module)}


def change_weights(module: Any, change: float) -> None:
    for variable in module.paths().values():
        if variable.trainable:
            variable.assign(variable.value + change)


class Moment(NamedTuple):
    """What a call gave, and all values after it."""

    result: Any
    values: dict[str, np.ndarray]


@functools.cache
def eager_moments(transform: str, side: str, use: str) -> list[Moment]:
    """Returns what eager execution gives: a first call, one with changed weights, and where numbers are drawn, one more."""
    module = fresh(use)
    moments = []
    for call in range(3 if use.startswith("draws") else 2):
        if call == 1:
            change_weights(module, 0.5)
        moments.append(Moment(EAGER[transform](module, side), values_by_name(module)))
    return moments


def assert_same_result(actual: Any, expected: Any, module: Any) -> None:
    """Asserts equal bits, and equal shapes where the result is a specification; the module may be there as itself."""
    actual = [leaf for leaf in jax.tree.leaves(actual) if leaf is not module]
    for a, b in zip(actual, jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if not isinstance(b, jax.ShapeDtypeStruct):
            np.testing.assert_array_equal(a, b, strict=True)


def assert_still_tied(module: Any) -> None:
    pair = pair_of(module)
    if hasattr(pair.decode, "w"):
        assert pair.decode.w is pair.encode.w
        assert list(module.paths().values()).count(pair.encode.w) == 1


def assert_as_eager(module: Any, result: Any, moment: Moment) -> None:
    assert_same_result(result, moment.result, module)
    assert_concrete(variables_of(module))
    assert_bitwise(values_by_name(module), moment.values)
    assert_still_tied(module)


@cells("exact")
def test_an_exact_cell_gives_the_eager_results_and_values_at_every_call(cell: Cell) -> None:
    expected = eager_moments(cell.transform, cell.side, cell.use)
    module = fresh(cell.use)
    function, arguments = transformed(cell.transform, cell.side, cell.handed, module)
    results = []
    for call, moment in enumerate(expected):
        if call == 1:
            change_weights(module, 0.5)
        results.append(function(*arguments))
        assert_as_eager(module, results[-1], moment)
    if cell.use.startswith("draws") and cell.transform not in ("eval_shape", "make_jaxpr"):
        second, third = ([leaf for leaf in jax.tree.leaves(result) if leaf is not module] for result in results[1:])
        assert any(not np.array_equal(a, b) for a, b in zip(second, third, strict=True))


# While JAX looks for leaks it keeps nothing from call to call, which would hide what the other test looks for.
@cells("exact")
def test_an_exact_cell_leaks_no_tracer(cell: Cell) -> None:
    expected = eager_moments(cell.transform, cell.side, cell.use)
    module = fresh(cell.use)
    function, arguments = transformed(cell.transform, cell.side, cell.handed, module)
    with jax.checking_leaks():
        result = function(*arguments)
    assert_as_eager(module, result, expected[0])


class Refusal(NamedTuple):
    """The error that is expected: its type, patterns of what its message says, and of the mark on the user's line."""

    kind: type[Exception]
    says: list[str]
    line: str


def refusal_of(cell: Cell) -> Refusal:
    if cell.transform == "make_jaxpr" and cell.side == "ours" and cell.use == "first call":
        return Refusal(ValueError, [r"Pair\(\) does not currently contain any variables", r"mk\.build\("], "# CALL")
    if cell.handed == "argument":
        kind = USES[cell.use].__name__
        remedy = r"\(a modulekit Module: close over it, and use mk\.jit, mk\.grad, \.\.\. or mk\.functionalize\)"
        return Refusal(TypeError, [rf"<class 'matrix_cells\.{kind}' {remedy}>"], "# CALL")
    instead = re.escape(f"Use {INSTEAD[cell.transform]} in place of the JAX transform")
    if cell.side == "plain over ours":  # ours reads and commits where no module runs, which could tell the path
        return Refusal(ForeignTransformError, [r"variable '[\w/]+' ", instead, r"mk\.functionalize"], "# (CALL|HERE)")
    return Refusal(ForeignTransformError, [NAMED[cell.use], instead, r"mk\.functionalize"], "# HERE")


def assert_refused(raised: pytest.ExceptionInfo[Exception], refusal: Refusal) -> None:
    assert raised.type is refusal.kind, raised.value
    for text in refusal.says:
        assert re.search(text, str(raised.value), re.DOTALL), f"{text!r} is not in {raised.value}"
    users = [entry for entry in raised.traceback if Path(entry.path).parent == Path(__file__).parent]
    line = linecache.getline(str(users[-1].path), users[-1].lineno + 1)
    assert re.search(refusal.line, line), line


def assert_unharmed(module: Any, before: dict[str, np.ndarray], first: dict[str, np.ndarray]) -> None:
    """Asserts that all values are as before, and those of variables made in between the eager first ones."""
    assert_concrete(variables_of(module))
    now = values_by_name(module)
    assert_bitwise(now, before | {name: first[name] for name in now if name not in before})
    assert_still_tied(module)


@cells("refused")
def test_a_refused_cell_says_what_to_do_at_the_users_line_and_leaves_everything_as_it_was(cell: Cell) -> None:
    eager = fresh(cell.use)
    expected, expected_values = eager(X), values_by_name(eager)
    module = fresh(cell.use)
    function, arguments = transformed(cell.transform, cell.side, cell.handed, module)
    before = values_by_name(module)
    for _ in range(2):
        with pytest.raises(Exception) as raised:
            function(*arguments)  # CALL
        assert_refused(raised, refusal_of(cell))
        assert_unharmed(module, before, expected_values)
        change_weights(module, 0.5)
        before = values_by_name(module)
    change_weights(module, -1.0)
    np.testing.assert_array_equal(module(X), expected, strict=True)
    assert_bitwise(values_by_name(module), expected_values)
    assert_still_tied(module)


@cells("refused")
def test_a_refused_cell_is_refused_likewise_while_jax_looks_for_leaks(cell: Cell) -> None:
    eager = fresh(cell.use)
    eager(X)
    expected_values = values_by_name(eager)
    module = fresh(cell.use)
    before = values_by_name(module)
    function, arguments = transformed(cell.transform, cell.side, cell.handed, module)
    with pytest.raises(Exception) as raised, jax.checking_leaks():
        function(*arguments)  # CALL
    assert_refused(raised, refusal_of(cell))
    assert_unharmed(module, before, expected_values)

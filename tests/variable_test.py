"""Laws of a variable: it owns its array, keeps shape and dtype, and reads like the equation."""

import copy
import gc
import operator
import pickle
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modulekit as mk

quick = settings(deadline=None, max_examples=12)


def test_shape_dtype_and_name_are_those_of_the_first_value() -> None:
    v = mk.Variable(np.ones([2, 3], np.float16), name="w", trainable=False)
    assert (v.shape, v.dtype, v.ndim, v.size, v.name, v.trainable) == ((2, 3), np.float16, 2, 6, "w", False)
    assert repr(v) == "Variable('w', float16[2,3], trainable=False)"
    assert v.origin.file == __file__


def test_a_variable_converts_to_the_dtype_asked_for() -> None:
    assert mk.Variable(1, dtype=jnp.bfloat16).dtype == jnp.bfloat16
    assert mk.Variable(1.5).dtype == jnp.float32
    assert mk.Variable(2).dtype == jnp.int32


def test_equality_and_hash_are_identity() -> None:
    a, b = mk.Variable(1.0), mk.Variable(1.0)
    assert a != b
    assert a == a
    assert len({a, b}) == 2
    assert a in [b, a]
    assert a not in [b]


def test_a_variable_has_no_truth_value() -> None:
    with pytest.raises(TypeError, match=r"'flag'.*\.value"):
        bool(mk.Variable(True, name="flag"))


BINARY = [
    operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.pow,
    operator.lt, operator.le, operator.gt, operator.ge,
]  # fmt: skip


@pytest.mark.parametrize("apply", BINARY, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "other", [2.0, np.float32(1.5), np.array([1.0, 2.0, 3.0], np.float32), jnp.ones([3])], ids=type
)
def test_arithmetic_on_either_side_is_that_of_the_value(apply: Any, other: Any) -> None:
    array = jnp.array([1.0, -2.0, 4.0])
    v = mk.Variable(array)
    np.testing.assert_array_equal(apply(v, other), apply(array, other))
    np.testing.assert_array_equal(apply(other, v), apply(other, array))
    np.testing.assert_array_equal(apply(v, v), apply(array, array))


def test_matrix_products_indexing_and_unary_operators_are_those_of_the_value() -> None:
    array = jnp.arange(6.0).reshape(2, 3)
    v, x = mk.Variable(array), np.arange(4.0, dtype=np.float32).reshape(2, 2)
    np.testing.assert_array_equal(x @ v, x @ array)
    np.testing.assert_array_equal(jnp.asarray(x) @ v, x @ array)
    np.testing.assert_array_equal(v @ v.T, array @ array.T)
    np.testing.assert_array_equal(v[0, 1:], array[0, 1:])
    np.testing.assert_array_equal(v[mk.Variable(1)], array[1])
    np.testing.assert_array_equal(-v, -array)
    np.testing.assert_array_equal(abs(-v), array)
    np.testing.assert_array_equal(np.asarray(v), array)
    assert [row.tolist() for row in v] == array.tolist()
    assert len(v) == 2
    assert (float(v[0, 1]), int(mk.Variable(3)), float(mk.Variable(2.5))) == (1.0, 3, 2.5)


def test_assign_replaces_adds_and_subtracts() -> None:
    v = mk.Variable(jnp.zeros([2]))
    v.assign(np.array([1.0, 2.0], np.float32))
    v.assign_add(v)
    v.assign_sub(jnp.array([0.5, 0.5]))
    assert v.value.tolist() == [1.5, 3.5]
    assert v.read_value().tolist() == v.numpy().tolist()


@pytest.mark.parametrize("value", [np.zeros([3], np.float32), 1.0, np.zeros([1, 2], np.float32)])
def test_a_wrong_shape_is_refused_with_name_and_both_shapes_and_changes_nothing(value: Any) -> None:
    v = mk.Variable(jnp.ones([2]), name="w")
    with pytest.raises(ValueError, match=r"'w' has shape \[2\] and cannot be assigned shape"):
        v.assign(value)
    assert v.value.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("first", "value"),
    [
        (np.float32(1), np.int32(1)), (np.int32(1), np.float32(1)), (np.int32(1), 1.5), (np.float16(1), np.int32(1)),
        (np.float32(1), np.float16(1)), (np.bool_(True), 1.0), (np.float32(1), np.complex64(1)),
    ],
)  # fmt: skip
def test_a_wrong_dtype_is_refused_with_name_and_both_dtypes_and_changes_nothing(first: Any, value: Any) -> None:
    v = mk.Variable(first, name="w")
    with pytest.raises(ValueError, match=r"'w' has dtype \w+ and cannot be assigned dtype \w+.*astype"):
        v.assign(value)
    assert (v.dtype, v.value.tolist()) == (first.dtype, first.item())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_a_number_fits_any_floating_dtype_and_the_dtype_stays(dtype: Any) -> None:
    v = mk.Variable(0, dtype=dtype)
    v.assign(1)
    v.assign_add(0.5)
    v.assign_sub(2)
    assert (v.dtype, float(v), v.value.weak_type) == (dtype, -0.5, False)


def test_a_variable_made_from_a_weakly_typed_value_is_not_weakly_typed() -> None:
    v = mk.Variable(1.0)
    assert not v.value.weak_type
    v.assign(2.0)
    assert not v.value.weak_type


def test_a_tracer_cannot_become_a_variable_and_the_remedy_is_named() -> None:
    with pytest.raises(TypeError, match=r"'w' would be made from a traced value.*@mk\.once"):
        mk.jit(lambda x: mk.Variable(x, name="w").value)(jnp.ones([2]))
    with pytest.raises(TypeError, match=r"@mk\.once"):
        jax.grad(lambda x: mk.Variable(x * 2).value)(1.0)


def test_a_tracer_that_outlived_its_transform_cannot_be_assigned() -> None:
    kept: list[Any] = []
    jax.jit(lambda x: kept.append(x))(1.0)
    v = mk.Variable(1.0, name="w")
    with pytest.raises((TypeError, jax.errors.UnexpectedTracerError)):
        v.assign(kept[0])
    assert float(v) == 1.0


# Copies.


@pytest.mark.parametrize("copies", [copy.deepcopy, copy.copy, lambda v: pickle.loads(pickle.dumps(v))])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8, jnp.bool_, jnp.uint32])
def test_a_copy_has_the_same_bits_name_and_flag_and_is_a_variable_of_its_own(copies: Any, dtype: Any) -> None:
    v = mk.Variable(jnp.array([0, 1]).astype(dtype), name="w", trainable=False)
    twin = copies(v)
    assert (twin.name, twin.dtype, twin.trainable, twin.origin) == (v.name, v.dtype, v.trainable, v.origin)
    np.testing.assert_array_equal(twin.value, v.value)
    assert twin != v
    v.assign(jnp.array([1, 1]).astype(dtype))
    assert twin.numpy().tolist() == [0, 1]


def test_a_variable_that_nobody_holds_is_freed() -> None:
    v = mk.Variable(1.0)
    compiled = mk.jit(lambda: v.assign_add(1.0))
    compiled()
    gone = weakref.ref(v)
    del v, compiled
    gc.collect()
    assert gone() is None


# Donation.


def test_arrays_handed_out_and_views_of_them_survive_compiled_steps() -> None:
    v = mk.Variable(jnp.arange(4.0), name="w")
    step = mk.jit(lambda: v.assign_add(jnp.ones([4])))
    kept = []
    for _ in range(4):
        array = v.value
        kept.append((array, np.asarray(array), np.asarray(array).copy()))
        step()
        step()
    for array, view, expected in kept:
        assert not array.is_deleted()
        np.testing.assert_array_equal(view, expected)
        np.testing.assert_array_equal(array, expected)


def test_the_users_own_array_survives_compiled_steps() -> None:
    first, second = jnp.arange(4.0), jnp.ones([4])
    numpy_array = np.zeros([4], np.float32)
    a, b = mk.Variable(first), mk.Variable(numpy_array)
    step = mk.jit(lambda: (a.assign(a * 2), b.assign(b + 1)))
    step()
    a.assign(second)
    b.assign(numpy_array)
    step()
    assert (first.tolist(), second.tolist(), numpy_array.tolist()) == ([0.0, 1.0, 2.0, 3.0], [1.0] * 4, [0.0] * 4)
    numpy_array[:] = 7.0
    assert b.value.tolist() == [1.0] * 4


def test_writing_to_the_numpy_array_it_was_made_from_changes_no_variable() -> None:
    source = np.zeros([64], np.float32)
    made, assigned = mk.Variable(source), mk.Variable(np.ones([64], np.float32))
    assigned.assign(source)
    source[:] = 5.0
    assert (made.numpy().max(), assigned.numpy().max()) == (0.0, 0.0)
    made.numpy()[:] = 5.0
    assert made.numpy().max() == 0.0


def test_two_variables_made_from_one_array_are_independent() -> None:
    array = jnp.zeros([3])
    a, b = mk.Variable(array), mk.Variable(array)
    step = mk.jit(lambda: a.assign_add(jnp.ones([3])))
    step()
    step()
    assert (a.value.tolist(), b.value.tolist(), array.tolist()) == ([2.0] * 3, [0.0] * 3, [0.0] * 3)
    both = mk.jit(lambda: (a.assign(b.value), b.assign(b + 1)))
    both()
    both()
    assert (a.value.tolist(), b.value.tolist()) == ([1.0] * 3, [2.0] * 3)


def test_a_compiled_function_that_returns_a_weight_leaves_it_valid() -> None:
    v, r = mk.Variable(jnp.zeros([3])), mk.Variable(jnp.ones([3]))

    @mk.jit
    def step() -> Any:
        v.assign_add(r)
        return v.value, v, r.value

    results = [step() for _ in range(4)]
    bump = mk.jit(lambda: r.assign_add(jnp.ones([3])))
    bump()
    bump()
    for count, result in enumerate(results, 1):
        assert [array.tolist() for array in result] == [[float(count)] * 3, [float(count)] * 3, [1.0] * 3]


def test_assigning_one_variable_to_another_in_a_compiled_function_keeps_both() -> None:
    a, b, c = (mk.Variable(jnp.full([2], float(i))) for i in range(3))
    copy_all = mk.jit(lambda: (b.assign(a.value), c.assign(a.value)))
    grow = mk.jit(lambda: (a.assign_add(jnp.ones([2])), b.assign_add(jnp.ones([2]))))
    swap = mk.jit(lambda: (lambda x, y: (a.assign(y), b.assign(x)))(a.value, b.value))
    for _ in range(3):
        copy_all()
        grow()
        swap()
    assert (a.value.tolist(), b.value.tolist(), c.value.tolist()) == ([3.0] * 2, [3.0] * 2, [2.0] * 2)


def test_a_value_passed_as_an_argument_of_the_step_that_overwrites_it_is_safe() -> None:
    v = mk.Variable(jnp.ones([3]))
    step = mk.jit(lambda x: v.assign(x + v))
    for _ in range(3):
        kept = v.value
        step(kept)
    assert v.value.tolist() == [8.0] * 3
    assert kept.tolist() == [4.0] * 3


def test_a_gradient_of_a_compiled_writer_leaves_every_array_valid() -> None:
    count, w = mk.Variable(0, trainable=False, name="count"), mk.Variable(2.0, name="w")

    def loss(x: Any) -> Any:
        count.assign_add(1)
        return x * w

    compiled = mk.jit(loss)
    for step in range(1, 4):
        kept = count.value
        (gradient,) = mk.grad(compiled, [w])(3.0)
        assert (float(gradient), int(count), int(kept)) == (3.0, step, step - 1)


# Random sequences of writes.

writes = st.lists(
    st.tuples(st.sampled_from(["assign", "add", "sub", "copy", "scale"]), st.integers(0, 2), st.integers(-3, 3)),
    min_size=1,
    max_size=5,
)


def _apply(operations: Any, variables: list[mk.Variable], x: Any) -> Any:
    for kind, index, amount in operations:
        v, other = variables[index], variables[(index + 1) % 3]
        if kind == "assign":
            v.assign(jnp.asarray(x, jnp.float32) * amount)
        elif kind == "add":
            v.assign_add(amount)
        elif kind == "sub":
            v.assign_sub(other)
        elif kind == "copy":
            v.assign(other)
        else:
            v.assign(v * amount)
    return variables[0] + variables[1] * 2


@quick
@given(operations=writes)
def test_any_sequence_of_writes_under_scan_and_jit_equals_the_python_loop(operations: Any) -> None:
    xs = np.arange(3, dtype=np.float32)

    def scanned(variables: list[mk.Variable]) -> Any:
        return mk.scan(lambda carry, x: (carry, _apply(operations, variables, x)), None, xs)[1]

    def compiled(variables: list[mk.Variable]) -> Any:
        step = mk.jit(lambda x: _apply(operations, variables, x))
        return jnp.stack([step(x) for x in xs])

    def looped(variables: list[mk.Variable]) -> Any:
        return jnp.stack([_apply(operations, variables, x) for x in xs])

    outcomes = []
    for way in (looped, compiled, scanned, lambda variables: mk.jit(lambda: scanned(variables))()):
        variables = [mk.Variable(float(i)) for i in range(3)]
        outcomes.append((way(variables).tolist(), [float(v) for v in variables]))
    assert all(outcome == outcomes[0] for outcome in outcomes[1:])

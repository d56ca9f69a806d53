"""Laws of mixed precision: narrow arithmetic, wide variables, and programs that know the difference."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modulekit as mk
from modulekit.mixed_precision import Policy, disable, enable, modes, scope, set_policy

NARROW = [jnp.bfloat16, jnp.float16]
X = jnp.linspace(-1, 1, 12).reshape(4, 3)


class Look(mk.Module):
    """Notes the dtypes that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = mk.Linear(2)
        self.count = mk.Variable(0, name="count", trainable=False)
        self.seen: list[str] = []

    def __call__(self, x: jax.Array, scale: float = 1.0, index: jax.Array | None = None) -> dict[str, jax.Array]:
        self.count.assign_add(1)
        y = self.layer(x) * scale
        self.seen = [
            str(value.dtype)
            for value in (x, y, self.layer.w.value, self.count.value, *([] if index is None else [index]))
        ]
        return {"y": y, "count": self.count.value}


def hand_written(net: mk.nets.MLP, x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    first, last = net.layers
    (w0, b0), (w1, b1) = [(layer.w.value.astype(dtype), layer.b.value.astype(dtype)) for layer in (first, last)]
    return (jax.nn.relu(x.astype(dtype) @ w0 + b0) @ w1 + b1).astype(jnp.float32)


@pytest.mark.parametrize("dtype", NARROW)
def test_a_policy_computes_what_casts_by_hand_compute(dtype: jnp.dtype) -> None:
    net = mk.nets.MLP([8, 2])
    set_policy(net, Policy(dtype))
    y = net(X)
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, hand_written(net, X, dtype))
    compiled = mk.jit(lambda x: net(x))
    held = [v.value for v in net.variables]
    pure = jax.jit(lambda b0, w0, b1, w1, x: (jax.nn.relu(x.astype(dtype) @ w0.astype(dtype) + b0.astype(dtype))
                                              @ w1.astype(dtype) + b1.astype(dtype)).astype(jnp.float32))  # fmt: skip
    np.testing.assert_array_equal(compiled(X), pure(*held, X))


@pytest.mark.parametrize("first_call", ["eager", "jit", "grad", "build"])
def test_the_first_weights_under_a_policy_are_those_of_full_precision(first_call: str) -> None:
    mk.seed(3)
    wide = mk.nets.MLP([8, 2], name="net")
    wide(X)
    mk.seed(3)
    net = mk.nets.MLP([8, 2], name="net")
    set_policy(net, Policy(jnp.bfloat16))
    calls = {
        "eager": lambda: net(X), "jit": lambda: mk.jit(net)(X),
        "grad": lambda: mk.grad(lambda: net(X).sum(), net)(), "build": lambda: mk.build(net, [4, 3]),
    }  # fmt: skip
    calls[first_call]()
    for narrow, full in zip(net.variables, wide.variables, strict=True):
        assert narrow.dtype == jnp.float32
        np.testing.assert_array_equal(narrow.value, full.value)


def test_gradients_slots_and_updates_stay_in_full_precision() -> None:
    net, adam = mk.nets.MLP([8, 2]), mk.optimizers.Adam(0.1)
    set_policy(net, Policy(jnp.bfloat16))

    @mk.jit
    def step(x: jax.Array) -> jax.Array:
        loss, gradients = mk.value_and_grad(lambda: jnp.square(net(x)).mean(), net)()
        adam.apply(gradients, net.trainable_variables)
        assert {gradient.dtype for gradient in gradients} == {np.dtype("float32")}
        return loss

    losses = [float(step(X)) for _ in range(20)]
    assert losses[-1] < 0.2 * losses[0]
    assert {v.dtype for v in (*net.variables, *adam.variables)} <= {np.dtype("float32"), np.dtype("int32")}


def test_the_matrix_products_of_the_program_are_narrow() -> None:
    net = mk.nets.MLP([8, 2])
    set_policy(net, Policy(jnp.bfloat16))
    text = mk.jit(net).lower(X).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 2
    assert all("bf16" in line and "f32" not in line for line in products)


def test_integers_strings_and_numbers_are_not_cast() -> None:
    look = Look()
    set_policy(look, Policy(jnp.float16))
    result = look(X, scale=2.0, index=jnp.arange(3))
    assert look.seen == ["float16", "float16", "float16", "int32", "int32"]
    assert (result["y"].dtype, result["count"].dtype) == (jnp.float32, jnp.int32)


def test_a_submodule_with_a_policy_of_its_own_follows_that() -> None:
    inner, outer = Look(), mk.Sequential([mk.Linear(3)])
    outer.layers.append(lambda x: inner(x)["y"])
    outer.inner = inner
    set_policy(outer, Policy(jnp.bfloat16))
    set_policy(inner, Policy(jnp.float32, output_dtype=jnp.bfloat16))
    assert outer(X).dtype == jnp.float32
    assert inner.seen[:3] == ["float32"] * 3


def test_batch_statistics_stay_in_full_precision() -> None:
    net = mk.BatchNorm(True, True)
    set_policy(net, Policy(jnp.bfloat16))
    for _ in range(2):
        assert net(X, is_training=True).dtype == jnp.float32
    assert {v.dtype for v in net.variables} <= {np.dtype("float32"), np.dtype("int32")}


def test_a_compiled_function_notices_a_policy_and_its_end() -> None:
    net = mk.nets.MLP([8, 2])
    plain = net(X)
    step = mk.jit(lambda x: net(x))
    np.testing.assert_allclose(step(X), plain, rtol=1e-6)
    set_policy(net, Policy(jnp.bfloat16))
    np.testing.assert_array_equal(step(X), net(X))
    assert not np.array_equal(step(X), plain)
    set_policy(net, None)
    np.testing.assert_allclose(step(X), plain, rtol=1e-6)
    assert [text.split(": ")[1].split("=")[0] for text in step.traces[1:]] == [
        "net.mixed-precision policy is new, Policy(compute_dtype", "net.mixed-precision policy is gone",
    ]  # fmt: skip


def test_a_policy_survives_a_pickle() -> None:
    net = mk.nets.MLP([8, 2])
    set_policy(net, Policy(jnp.bfloat16))
    y = net(X)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(net))(X), y)


def test_a_policy_of_integers_is_refused() -> None:
    with pytest.raises(
        TypeError, match=r"a mixed-precision policy has floating dtypes, as jnp\.bfloat16, and not int8"
    ):
        set_policy(mk.Linear(2), Policy(jnp.int8))


class Marked(mk.Module):
    """A module in Sonnet's manner: its method may run in several precisions."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = mk.Linear(2)
        self.seen: list[str] = []

    @modes([jnp.float32, jnp.float16])
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.layer(x)
        self.seen = [*self.seen, str(y.dtype)]
        return y


def test_the_first_marked_call_is_precise_the_others_are_cast() -> None:
    marked, other = Marked(), Marked()
    with scope(jnp.float16):
        assert [marked(X).dtype for _ in range(3)] == [jnp.float32] * 3
        other(X)
        with scope(jnp.bfloat16):
            marked(X)  # not one of its modes
    marked(X)
    assert marked.seen == ["float32", "float16", "float16", "float32", "float32"]
    assert other.seen == ["float32"]


def test_enable_counts_for_all_threads_and_a_scope_for_its_own_end() -> None:
    marked = Marked()
    try:
        enable(jnp.float16)
        marked(X), marked(X)
        with scope(None):
            marked(X)
            enable(jnp.float16)
            marked(X)
        marked(X)
        disable()
        marked(X)
    finally:
        disable()
    assert marked.seen == ["float32", "float16", "float32", "float16", "float16", "float32"]


def test_a_compiled_function_knows_the_mode() -> None:
    marked = Marked()
    step = mk.jit(lambda x: marked(x))
    with scope(jnp.float16):
        narrow = step(X)
        np.testing.assert_array_equal(step(X), narrow)
    wide = step(X)
    assert [v.dtype for v in marked.variables] == [np.dtype("float32")] * 2
    with scope(jnp.float16):
        np.testing.assert_array_equal(step(X), narrow)
    try:
        enable(jnp.float16)
        np.testing.assert_array_equal(step(X), narrow)
    finally:
        disable()
    np.testing.assert_array_equal(step(X), wide)
    assert not np.array_equal(narrow, wide)


def test_under_a_policy_a_normalized_weight_starts_as_the_weight_is_also_in_a_compiled_gradient() -> None:
    net = mk.NormalizedWeight(mk.Linear(2), mk.WeightNorm())
    set_policy(net, Policy(jnp.bfloat16))
    mk.jit(lambda: mk.grad(lambda: net(X).sum(), net)())()
    assert net.norm.g.dtype == jnp.float32
    np.testing.assert_allclose(net.norm.g.value, np.linalg.norm(net.layer.w.numpy(), axis=0), rtol=1e-6)

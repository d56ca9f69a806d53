"""Laws of `vmap`, `cond`, `switch`, `remat` and `eval_shape` over variables."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modulekit as mk


def counter(value: float = 0.0, name: str = "count") -> mk.Variable:
    return mk.Variable(value, trainable=False, name=name)


def test_only_the_branch_taken_writes() -> None:
    a, b = counter(name="a"), counter(name="b")

    def run(pred: Any) -> Any:
        return mk.cond(
            pred, lambda x: (a.assign_add(x), x)[1], lambda x: (b.assign_add(2 * x), -x)[1], jnp.float32(3.0)
        )

    for function in (run, mk.jit(run)):
        a.assign(0.0), b.assign(0.0)
        assert float(function(jnp.array(True))) == 3.0 and (float(a), float(b)) == (3.0, 0.0)
        assert float(function(jnp.array(False))) == -3.0 and (float(a), float(b)) == (3.0, 6.0)


def test_a_branch_makes_its_layer_on_the_first_call_with_the_weights_of_an_eager_call() -> None:
    x = jnp.ones([2, 3])
    mk.seed(5)
    eager = mk.Linear(4)
    eager(x)
    mk.seed(5)
    layer = mk.Linear(4)
    out = mk.jit(lambda p: mk.cond(p, layer, lambda x: jnp.zeros([2, 4]), x))(jnp.array(True))
    np.testing.assert_array_equal(layer.w.numpy(), eager.w.numpy())
    np.testing.assert_allclose(out, eager(x), rtol=1e-6)


@pytest.mark.parametrize(("index", "taken"), [(-3, 0), (0, 0), (1, 1), (2, 2), (9, 2)])
def test_switch_clamps_its_index_and_writes_what_it_took(index: int, taken: int) -> None:
    log = counter()
    branches = [lambda x, k=k: (log.assign(float(k)), x * k)[1] for k in range(3)]
    assert float(mk.switch(jnp.int32(index), branches, 10.0)) == 10.0 * taken
    assert float(log) == taken


def test_switch_without_branches_says_so() -> None:
    with pytest.raises(ValueError, match=r"mk\.switch needs at least one branch"):
        mk.switch(0, [])


def test_an_exception_in_a_branch_leaves_variables_as_they_were() -> None:
    count = counter(1.0)

    def broken(x: Any) -> Any:
        count.assign(9.0)
        raise RuntimeError("in the branch")

    with pytest.raises(RuntimeError, match="in the branch"):
        mk.cond(True, broken, lambda x: x, 1.0)
    assert float(count) == 1.0


def test_gradients_pass_through_branches_and_remat() -> None:
    w = mk.Variable(3.0, name="w")

    def loss(pred: Any) -> Any:
        return mk.cond(pred, lambda: mk.remat(lambda: w**3)(), lambda: 5 * w)

    for function in (mk.grad(loss, [w]), mk.jit(mk.grad(loss, [w]))):
        assert float(function(jnp.array(True))[0]) == pytest.approx(27.0)
        assert float(function(jnp.array(False))[0]) == pytest.approx(5.0)


@pytest.mark.parametrize("policy", [None, jax.checkpoint_policies.dots_saveable])
def test_remat_changes_no_number_and_draws_one_mask_for_both_passes(policy: Any) -> None:
    mk.seed(0)
    net = mk.nets.MLP([16, 16, 1], dropout_rate=0.5)
    x = jax.random.normal(jax.random.key(1), [8, 4])
    net(x, is_training=False)
    results = []
    for run in (net, mk.remat(net, policy=policy)):
        for compile_ in (lambda f: f, mk.jit):
            mk.seed(3)
            step = compile_(lambda run=run: mk.value_and_grad(lambda: (run(x, is_training=True) ** 2).mean(), net)())
            results.append([jax.tree.map(np.asarray, step()) for _ in range(2)])
    for other in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), results[0], other)
    assert results[0][0][0] != results[0][1][0], "the second call draws another mask"


def test_remat_writes_once() -> None:
    count = counter()
    w = mk.Variable(2.0, name="w")
    mk.grad(mk.remat(lambda: (count.assign_add(1.0), w * w)[1]), [w])()
    assert float(count) == 1.0


def test_shared_variables_are_read_by_every_lane() -> None:
    layer = mk.Linear(3)
    x = jnp.arange(24.0).reshape(2, 4, 3) / 10
    mapped = mk.vmap(layer)(x)
    np.testing.assert_allclose(mapped, layer(x), rtol=1e-6)
    assert layer.w.shape == (3, 3)


@pytest.mark.parametrize(("rule", "expected"), [("mean", 1.0 + 1.5), ("sum", 1.0 + 6.0), ("last", 1.0 + 3.0)])
def test_lanes_become_one_by_the_rule(rule: Any, expected: float) -> None:
    seen = counter(1.0)
    run = mk.vmap(lambda x: (seen.assign_add(x), x)[1], writes=rule)
    for function in (run, mk.jit(run)):
        seen.assign(1.0)
        function(jnp.arange(4.0))
        assert float(seen) == expected


def test_a_write_without_a_rule_names_the_variable_and_changes_nothing() -> None:
    seen = counter(1.0, name="seen")
    with pytest.raises(ValueError, match=r"variable 'seen' is written under mk\.vmap, .* there is no rule .* stacked"):
        mk.vmap(lambda x: (seen.assign_add(x), x)[1])(jnp.arange(4.0))
    with pytest.raises(ValueError, match=r"there is the rule 'median'"):
        mk.vmap(lambda x: (seen.assign_add(x), x)[1], writes={seen: "median"})(jnp.arange(4.0))
    assert float(seen) == 1.0


def test_stacked_variables_have_one_value_for_each_lane() -> None:
    w = mk.Variable(jnp.arange(6.0).reshape(3, 2), name="w")
    shapes = []

    def run(x: Any) -> Any:
        shapes.append(w.shape)
        w.assign(w + x)
        return (w * x).sum()

    for function in (mk.vmap(run, stacked=[w]), mk.jit(mk.vmap(run, stacked=[w]))):
        w.assign(jnp.arange(6.0).reshape(3, 2))
        out = function(jnp.array([1.0, 2.0, 3.0]))
        expected = np.arange(6.0).reshape(3, 2) + np.array([[1.0], [2.0], [3.0]])
        np.testing.assert_allclose(w.numpy(), expected)
        np.testing.assert_allclose(out, (expected * [[1.0], [2.0], [3.0]]).sum(1))
    assert set(shapes) == {(2,)} and w.shape == (3, 2)


def test_lanes_draw_different_numbers_and_the_stream_goes_on() -> None:
    mk.seed(0)
    draw = mk.vmap(lambda x: jax.random.normal(mk.next_key()) + 0 * x)
    first, second = np.asarray(draw(jnp.zeros(5))), np.asarray(mk.jit(draw)(jnp.zeros(5)))
    assert len(np.unique(np.concatenate([first, second]))) == 10
    mk.seed(0)
    np.testing.assert_array_equal(first, draw(jnp.zeros(5)))


def test_in_axes_may_differ_by_argument_and_inside_it() -> None:
    run = mk.vmap(lambda a, b: a["x"] * a["s"] + b, in_axes=({"x": 1, "s": None}, None), out_axes=1)
    out = run({"x": jnp.ones([2, 3]), "s": 2.0}, 1.0)
    np.testing.assert_allclose(out, np.full([2, 3], 3.0))
    with pytest.raises(ValueError, match="different numbers of lanes"):
        mk.vmap(lambda a, b: a + b)(jnp.ones(3), jnp.ones(4))
    with pytest.raises(ValueError, match="cannot tell the number of lanes"):
        mk.vmap(lambda a: a, in_axes=None)(jnp.ones(3))


def test_gradients_per_lane_equal_those_of_one_example_at_a_time() -> None:
    layer = mk.Linear(1)
    x = jax.random.normal(jax.random.key(0), [5, 4])
    layer(x)
    per_lane = mk.vmap(lambda row: mk.grad(lambda: (layer(row[None]) ** 2).sum(), layer)())(x)
    one_by_one = [mk.grad(lambda row=row: (layer(row[None]) ** 2).sum(), layer)() for row in x]
    for index, gradient in enumerate(per_lane):
        np.testing.assert_allclose(gradient, np.stack([g[index] for g in one_by_one]), rtol=1e-5, atol=1e-6)


def test_eval_shape_makes_variables_and_changes_none() -> None:
    layer, count = mk.Linear(4), counter()
    out = mk.eval_shape(lambda x: (count.assign_add(1.0), layer(x))[1], jnp.ones([2, 3]))
    assert (out.shape, out.dtype) == ((2, 4), jnp.float32)
    assert layer.w.shape == (3, 4) and float(count) == 0.0

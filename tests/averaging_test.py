"""Laws of averaged weights: their recursion, what is read inside the context, and what stays as it is."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modulekit as mk

X = jnp.linspace(-1, 1, 10).reshape(5, 2)


def net(seed: int = 0) -> mk.nets.MLP:
    mk.seed(seed)
    return mk.nets.MLP([4, 3], activation=jnp.tanh)


def built(seed: int = 0) -> mk.nets.MLP:
    model = net(seed)
    model(X)
    return model


def recursion(values: list[np.ndarray], decay: float, debias: bool) -> np.ndarray:
    """Returns the average of the weights of all updates, in float64."""
    if debias:
        total = np.zeros_like(values[0], np.float64)
        for value in values:
            total = decay * total + (1 - decay) * value
        return total / (1 - decay ** len(values))
    average = values[0].astype(np.float64)
    for value in values[1:]:
        average = average + (1 - decay) * (value - average)
    return average


def trainer(model: Any, average: mk.WeightAverage, compiled: bool) -> Callable[[], Any]:
    optimizer = mk.optimizers.Momentum(0.1, 0.9)

    def step() -> Any:
        loss = optimizer.minimize(lambda: (model(X) ** 2).mean(), model)
        average.update()
        return loss

    return mk.jit(step) if compiled else step


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("is_built", [False, True], ids=["new", "built"])
@pytest.mark.parametrize(("decay", "debias"), [(0.5, False), (0.9999, True), (0.0, True)])
def test_the_average_is_the_recursion_of_the_docstring(
    decay: float, is_built: bool, compiled: bool, debias: bool
) -> None:
    model = built() if is_built else net()
    average = mk.WeightAverage(decay, model, debias)
    step, seen = trainer(model, average, compiled), []
    for _ in range(12):
        step()
        seen.append({path: v.numpy() for path, v in model.paths().items()})
    assert list(average.averages) == list(model.paths())
    for path, mean in average.averages.items():
        expected = recursion([values[path] for values in seen], decay, debias)
        np.testing.assert_allclose(mean.numpy(), expected, rtol=2e-6, atol=2e-7)
    assert [int(count) for count in average.counts] == [12]


@given(
    st.lists(st.floats(-100, 100, width=32, allow_subnormal=False), min_size=1, max_size=20),
    st.floats(0, 0.9999),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_an_average_lies_between_the_weights_and_keeps_a_constant_bitwise(
    values: list[float], decay: float, debias: bool
) -> None:
    w, constant = mk.Variable(0.0, name="w"), mk.Variable(values[0], name="constant")
    average = mk.WeightAverage(decay, [w, constant], debias)
    for value in values:
        w.assign(value)
        average.update()
        assert float(average[constant]) == float(constant)
    slack = 1e-4 * max(map(abs, values))
    assert min(values) - slack <= float(average[w]) <= max(values) + slack
    expected = recursion([np.float64(value) for value in values], decay, debias)
    np.testing.assert_allclose(float(average[w]), expected, rtol=1e-4, atol=slack + 1e-30)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_what_is_read_inside_is_what_a_copy_with_the_averages_assigned_gives_bitwise(compiled: bool) -> None:
    model = built()
    average = mk.WeightAverage(0.7, model)
    step = trainer(model, average, compiled)
    for _ in range(5):
        step()
    twin = copy.deepcopy(model)
    twin.assign(average.averages)
    evaluate = mk.jit(lambda m: m(X)) if compiled else lambda m: m(X)
    with average.averaged():
        inside = evaluate(model)
    np.testing.assert_array_equal(inside, evaluate(twin))
    assert (np.asarray(inside) != np.asarray(evaluate(model))).any()


@pytest.mark.parametrize("transform", ["scan", "cond", "remat", "vmap", "grad"])
def test_the_context_reaches_into_every_transform(transform: str) -> None:
    model = built()
    average = mk.WeightAverage(0.7, model)
    for _ in range(3):
        trainer(model, average, False)()

    def run(m: Any) -> Any:
        if transform == "scan":
            return mk.scan(lambda carry, row: (carry, m(row[None])[0]), 0.0, X)[1]
        if transform == "cond":
            return mk.cond(X.sum() < 1, m, m, X)
        if transform == "grad":
            return mk.grad(lambda x: m(x).sum())(X)
        return mk.remat(m)(X) if transform == "remat" else mk.vmap(lambda row: m(row[None])[0])(X)

    twin = copy.deepcopy(model)
    twin.assign(average.averages)
    with average.averaged():
        inside = mk.jit(run)(model)
    np.testing.assert_allclose(inside, mk.jit(run)(twin), rtol=1e-6, atol=1e-7)


def test_an_evaluation_compiles_once_outside_and_once_inside() -> None:
    model = built()
    average = mk.WeightAverage(0.9, model)
    step = trainer(model, average, True)
    evaluate = mk.jit(lambda: model(X), max_traces=2)
    for _ in range(4):
        step()
        outside = evaluate()
        with average.averaged():
            inside = evaluate()
        np.testing.assert_array_equal(outside, evaluate())
    assert len(evaluate.traces) == 2
    assert len(step.traces) == 1
    assert (np.asarray(inside) != np.asarray(outside)).any()


def test_before_the_first_update_weights_are_read_as_they_are() -> None:
    model = built()
    average = mk.WeightAverage(0.9, model)
    with average.averaged():
        np.testing.assert_array_equal(model(X), built()(X))
    mk.build(average.update)  # makes the variables and runs nothing
    assert average.variables
    for variable in model.variables:
        variable.assign(variable + 1)
    plain = model(X)
    with average.averaged():
        np.testing.assert_array_equal(model(X), plain)


def test_weights_are_never_touched_and_writes_inside_reach_them() -> None:
    model = built()
    average = mk.WeightAverage(0.9, model)
    before = [v.numpy() for v in model.variables]
    average.update()
    mean = average["layers[0].b"].numpy()
    with average.averaged():
        model.layers[0].b.assign(jnp.full([4], 7.0))
        np.testing.assert_array_equal(model.layers[0].b.value, mean)
    np.testing.assert_array_equal(model.layers[0].b.value, np.full([4], 7.0))
    for variable, value in list(zip(model.variables, before, strict=True))[1:]:
        np.testing.assert_array_equal(variable.numpy(), value)
    with average.averaged(), pytest.raises(RuntimeError):
        raise RuntimeError
    np.testing.assert_array_equal(model.layers[0].b.value, np.full([4], 7.0))


def test_no_gradient_passes_an_average() -> None:
    model = built()
    average = mk.WeightAverage(0.9, model)
    average.update()
    with average.averaged():
        inside = mk.grad(lambda: model(X).sum(), model)()
    assert not any(np.asarray(gradient).any() for gradient in inside)

    def loss() -> Any:
        average.update()
        return model(X).sum() + sum(mean.value.sum() for mean in average.averages.values())

    for left, right in zip(mk.grad(loss, model)(), mk.grad(lambda: model(X).sum(), model)(), strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_shared_weight_has_one_average_under_each_of_its_paths() -> None:
    encoder = mk.Linear(2)
    pair = mk.Sequential([encoder, encoder.transpose()])
    pair(X)
    average = mk.WeightAverage(0.5, pair)
    average.update()
    assert list(average.averages) == ["layers[0].b", "layers[0].w", "layers[1].b"]
    assert average["layers[1].w"] is average["layers[0].w"] is average[encoder.w]
    encoder.w.assign(3 * encoder.w)
    average.update()
    twin = copy.deepcopy(pair)
    twin.layers[0].w.assign(average["layers[0].w"])
    with average.averaged():
        np.testing.assert_array_equal(pair(X), twin(X))


def test_lists_and_dicts_of_modules_are_averaged_and_named_by_their_keys() -> None:
    parts = {"encoder": built(), "decoder": built(1)}
    average = mk.WeightAverage(0.5, parts)
    average.update()
    assert next(iter(average.averages)) == "decoder.layers[0].b"
    assert "averages['encoder.layers[1].w']" in average.paths()
    listed = mk.WeightAverage(0.5, list(parts.values()))
    listed.update()
    assert listed["[0].layers[1].w"].shape == (4, 3)


def test_statistics_integers_and_frozen_weights_are_not_averaged() -> None:
    model = built()
    model.extra = [mk.Variable(0, name="steps"), mk.Variable(1.0, trainable=False, name="statistic")]
    model.freeze("layers/0")
    average = mk.WeightAverage(0.5, model)
    average.update()
    assert list(average.averages) == ["layers[1].b", "layers[1].w"]
    model.thaw()
    model.freeze("layers/1")
    average.update()
    assert list(average.averages) == ["layers[0].b", "layers[0].w", "layers[1].b", "layers[1].w"]
    assert [int(count) for count in average.counts] == [1, 2]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_layers_come_and_go_and_the_averages_of_the_others_go_on(compiled: bool) -> None:
    model, control = built(), built()
    average, other = mk.WeightAverage(0.5, model), mk.WeightAverage(0.5, control)
    update, plain = (mk.jit(a.update) if compiled else a.update for a in (average, other))

    def nudge() -> None:
        for pair in zip(control.layers, [layer for layer in model.layers if layer.output_size != 2], strict=True):
            for layer in pair:
                layer.w.assign(layer.w * 2)
        update()
        plain()

    nudge()
    added = mk.Linear(2)
    added(X)
    model.layers.insert(0, added)
    nudge()
    nudge()
    np.testing.assert_array_equal(average["layers[1].w"].value, other["layers[0].w"].value)
    np.testing.assert_array_equal(average["layers[0].w"].value, added.w.value)
    assert len(average.counts) == 2
    del model.layers[0]
    nudge()
    assert list(average.averages) == list(other.averages)
    assert len(average.counts) == 1
    for path, mean in average.averages.items():
        np.testing.assert_array_equal(mean.value, other[path].value)


def test_the_average_of_half_precision_is_kept_in_single_precision() -> None:
    w = mk.Variable(jnp.ones([3], jnp.bfloat16), name="w")
    average = mk.WeightAverage(0.999, [w])
    average.update()
    w.assign(jnp.full([3], 2.0, jnp.bfloat16))
    for _ in range(10):
        average.update()
    assert average[w].dtype == jnp.float32
    np.testing.assert_allclose(average[w].numpy(), 2 - 0.999**10, rtol=1e-5)
    with average.averaged():
        assert w.value.dtype == jnp.bfloat16


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_averages_the_copied_model(copier: Callable[[Any], Any]) -> None:
    model = built()
    average = mk.WeightAverage(0.5, model)
    average.update()
    twin, its_average = copier((model, average))
    for variable in model.variables:
        variable.assign(variable * 3)
    average.update()
    assert (its_average["layers[0].w"].numpy() != average["layers[0].w"].numpy()).any()
    for variable in twin.variables:
        variable.assign(variable * 3)
    its_average.update()
    for path, mean in average.averages.items():
        np.testing.assert_array_equal(its_average[path].value, mean.value)
    with average.averaged():
        expected = model(X)
        assert (np.asarray(twin(X)) != np.asarray(expected)).any()
    with its_average.averaged():
        np.testing.assert_array_equal(twin(X), expected)


def test_only_the_averages_are_its_variables() -> None:
    model = built()
    average = mk.WeightAverage(0.5, model)
    average.update()
    assert not set(average.variables) & set(model.variables)
    assert not average.trainable_variables
    assert {v.name for v in average.variables} == {
        "weight_average/count",
        *(f"weight_average/{v.name}" for v in model.variables),
    }


def test_updates_run_in_loops_and_a_trial_takes_them_back() -> None:
    model = built()
    average, other = mk.WeightAverage(0.5, model), mk.WeightAverage(0.5, copy.deepcopy(model))
    mk.jit(lambda: mk.fori_loop(0, 3, lambda i, carry: (average.update(), carry)[1], 0))()
    for _ in range(3):
        other.update()
    for path, mean in average.averages.items():
        np.testing.assert_array_equal(mean.value, other[path].value)
    with mk.trial() as trial:
        average.update()
        trial.rollback()
    assert int(average.counts[0]) == 3


def test_what_cannot_be_averaged_is_said() -> None:
    with pytest.raises(ValueError, match=r"^decay=1\.0: expected a number in \[0, 1\), how much of the average an"):
        mk.WeightAverage(1.0, built())
    average = mk.WeightAverage(0.5, net())
    with pytest.raises(
        ValueError, match=r"nothing to average yet: MLP\(.*\) holds no variables\. Call the module once"
    ):
        average.update()
    model = built()
    average = mk.WeightAverage(0.5, model)
    with pytest.raises(KeyError, match=r"no average of 'w'\. There are none at all before the first update"):
        average["w"]
    average.update()
    with pytest.raises(KeyError, match=r"no average of 'w'\. There are those of layers\[0\]\.b, layers\[0\]\.w, "):
        average["w"]
    with pytest.raises(KeyError, match=r"no average of Variable\('other'"):
        average[mk.Variable(1.0, name="other")]

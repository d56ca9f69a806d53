"""Laws of serial sharing: each phase is a training of its own, from what the phases before have left in shared variables."""

import functools
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modulekit as mk
import scenarios
from scenarios.ensemble.splits import parts

CE = mk.losses.softmax_cross_entropy
QUIET: dict[str, Any] = {"batch_size": 8, "progress": False, "log_interval": 1}
LENGTHS = (9, 12)


def labelled(size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    inputs = np.random.default_rng(seed).normal(size=[size, 5]).astype(np.float32)
    return inputs, inputs[:, :3].argmax(axis=1).astype(np.int32)


DATA, EVAL = labelled(44, 1), labelled(23, 2)
HALVES = [tuple(array[np.array(part)] for array in DATA) for part in parts(44, 2)]


def optimizers() -> list[Any]:
    return [mk.optimizers.Adam(0.05), mk.optimizers.Momentum(0.1, 0.9)]


def models(shared: bool) -> list[Any]:
    mk.seed(4)
    first = mk.nets.MLP([6, 3], name="first")
    pair = [first, first if shared else mk.nets.MLP([6, 3], name="second")]
    for model in pair:
        mk.build(model, [1, 5])
    return pair


def serial(pair: Any, given: Any = None, steps: int = sum(LENGTHS), loss: Any = CE, **options: Any) -> Any:
    scenario = scenarios.SerialSharing(steps, **{"lengths": LENGTHS, **QUIET, **options})
    return scenario(pair, given or optimizers(), loss, data=DATA, eval_data=EVAL)


@pytest.mark.parametrize("shared", [True, False])
def test_phases_are_supervised_trainings_one_after_the_other(shared: bool) -> None:
    pair, others = models(shared), models(shared)
    result = serial(pair, shared=shared)
    losses = result.column("loss")[1]
    for phase, (model, optimizer, half, length) in enumerate(zip(others, optimizers(), HALVES, LENGTHS, strict=True)):
        solo = scenarios.Supervised(length, **QUIET)(model, optimizer, CE, data=half)
        start = sum(LENGTHS[:phase])
        np.testing.assert_allclose(losses[start : start + length], solo.column("loss")[1], rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(pair, others, strict=True):
        for one, other in zip(mine.variables, theirs.variables, strict=True):
            np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-5, atol=1e-6)
    assert result.column("phase")[1] == [0.0] * LENGTHS[0] + [1.0] * LENGTHS[1]
    first = [losses[0], losses[LENGTHS[0]]]
    np.testing.assert_array_equal(result.state["phases"].initial_loss.numpy(), np.float32(first))


class ByName(mk.Module):
    """A network whose variables are those of a store, by name."""

    def __init__(self, store: mk.VariableStore) -> None:
        super().__init__()
        self.store = store

    def __call__(self, x: Any) -> Any:
        with self.store, mk.variable_scope("net", reuse=mk.AUTO_REUSE):
            w = mk.get_variable("w", [x.shape[-1], 3])
            b = mk.get_variable("b", [3])
            return x @ w + b


def test_variables_may_be_shared_by_name() -> None:
    mk.seed(2)
    store = mk.VariableStore()
    pair = [ByName(store), ByName(store)]
    result = serial(pair, shared=True)
    assert list(store.by_name) == ["net/w", "net/b"] and result.parameters == 5 * 3 + 3
    mk.seed(2)
    other = ByName(mk.VariableStore())
    for optimizer, half, length in zip(optimizers(), HALVES, LENGTHS, strict=True):
        scenarios.Supervised(length, **QUIET)(other, optimizer, CE, data=half)
    for mine, theirs in zip(store.variables, other.variables, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-6)


def test_the_second_phase_changes_nothing_of_the_first_ones_model_where_nothing_is_shared() -> None:
    pair, short = models(False), models(False)
    serial(pair, shared=False)
    serial(short, shared=False, steps=LENGTHS[0])
    for mine, then in zip(pair[0].variables, short[0].variables, strict=True):
        np.testing.assert_array_equal(mine.numpy(), then.numpy())


@pytest.mark.parametrize("cut", [4, 9, 15])
def test_a_chain_resumes_inside_of_a_phase_and_between_phases(cut: int, tmp_path: Path) -> None:
    whole = serial(models(True))
    serial(models(True), steps=cut, save_dir=tmp_path)
    resumed = serial(models(True), save_dir=tmp_path)
    assert resumed.history[-1] == whole.history[-1]
    initial = [result.state["phases"].initial_loss.numpy().tobytes() for result in (whole, resumed)]
    assert initial[0] == initial[1]


def test_an_evaluation_reports_the_model_of_the_phase_and_that_of_each() -> None:
    pair = models(False)
    result = serial(pair, eval_interval=3)
    rows = {row["step"]: row for row in result.history if "eval_loss" in row}
    for step, row in rows.items():
        phase = 0 if step <= LENGTHS[0] else 1
        assert row["eval_loss"] == row[f"eval_phase{phase}_loss"], step
        assert row["eval_accuracy"] == row[f"eval_phase{phase}_accuracy"], step
    outputs = np.asarray(pair[1](EVAL[0]))
    assert result.metrics["accuracy"] == np.mean(outputs.argmax(axis=1) == EVAL[1])


@settings(deadline=None, max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    step=st.integers(0, 30),
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=5),
)
def test_examples_are_a_function_of_the_step_and_those_of_the_phases_part(
    lengths: list[int], step: int, counts: list[int]
) -> None:
    scenario = scenarios.SerialSharing(sum(lengths), phases=len(lengths), lengths=lengths, batch_size=3)
    whole = scenario.indices(40, step, sum(counts))
    starts = np.cumsum([0, *counts[:-1]]) + step
    pieces = [scenario.indices(40, int(start), count) for start, count in zip(starts, counts, strict=True)]
    assert whole.shape == (sum(counts), 3)
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    ends = np.cumsum(lengths[:-1])
    for index, row in enumerate(whole):
        part = parts(40, len(lengths))[int(np.searchsorted(ends, step + index, side="right"))]
        assert set(row.tolist()) <= set(part)


def test_lengths_are_equal_parts_of_the_steps_unless_they_are_given() -> None:
    assert scenarios.SerialSharing(10).starts == (0, 5)
    assert scenarios.SerialSharing(10, phases=3).starts == (0, 3, 6)
    assert scenarios.SerialSharing(10, phases=3, lengths=[1, 7, 2]).starts == (0, 1, 8)


def test_a_penalty_is_added() -> None:
    square = lambda model: (model.w.value**2).sum()  # noqa: E731
    layer = mk.Linear(3)
    layer(jnp.ones([1, 5]))
    w = layer.w.numpy().astype(np.float64)
    run = scenarios.SerialSharing(1, phases=1, reduction="sum", **QUIET)
    result = run([layer], [mk.optimizers.SGD(0.0)], CE, square, data=DATA)
    rows = run.indices(44, 0, 1)[0]
    logits = DATA[0][rows].astype(np.float64) @ w
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(8), DATA[1][rows]]
    np.testing.assert_allclose(result.history[0]["loss"], losses.sum() + (w**2).sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: scenarios.SerialSharing(9, phases=0), "phases=0: expected an integer of at least 1"),
        (lambda: scenarios.SerialSharing(9, lengths=[3]), "lengths=[3]: expected 2 numbers of updates, each at least 1"),
        (
            lambda: scenarios.SerialSharing(9, lengths=[0, 9]),
            "lengths=[0, 9]: expected 2 numbers of updates, each at least 1",
        ),
        (lambda: scenarios.SerialSharing(1), "steps=1 are too few for 2 phases: give more steps, or fewer phases"),
        (
            lambda: scenarios.SerialSharing(9, reduction="max"),  # type: ignore[arg-type]
            "reduction='max' is none of 'mean', 'sum'",
        ),
        (lambda: serial(models(True)[:1]), "2 phases need 2 models in a list, and got 1"),
        (lambda: serial(models(True), mk.optimizers.SGD(0.1)), "2 phases need 2 optimizers in a list, and got 1"),
        (
            lambda: serial(models(False), shared=True),
            "models 0 and 1 share no trainable variable, and shared=True demands it: use the same layers in both, or "
            "variables of the same name in a VariableStore that both hold",
        ),
        (
            lambda: serial(models(True), shared=False),
            "models 0 and 1 share models[0].layers[0].b, models[0].layers[0].w, models[0].layers[1].b, "
            "models[0].layers[1].w, and shared=False demands that they share nothing: give each variables of its own",
        ),
        (
            lambda: serial(models(True), batch_size=30),
            "phase 0: batch_size=30 is larger than the data's 22 examples; choose a batch_size of at most 22, or give more "
            "data",
        ),
        (
            lambda: scenarios.SerialSharing(4, **QUIET)(models(True), optimizers(), CE, data=lambda: iter([DATA] * 4)),
            "each phase has a part of the data, which a stream has not: give arrays",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(call: Any, text: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == text


def test_layers_may_be_shared_in_part() -> None:
    body = mk.Linear(6, name="body")
    pair = [mk.Sequential([body, jnp.tanh, mk.Linear(3, name=name)]) for name in ("one", "two")]
    result = serial(pair, shared=True)
    assert result.parameters == 5 * 6 + 6 + 2 * (6 * 3 + 3)
    assert functools.reduce(lambda a, b: a and b, (np.isfinite(v.numpy()).all() for v in pair[1].variables))

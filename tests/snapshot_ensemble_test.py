"""Laws of snapshot ensembles: the learning rate restarts, and each cycle leaves a copy of the model."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scenario_catalogue import ROW

import modulekit as mk
import scenarios
from scenarios.ensemble import EnsembleModel
from scenarios.ensemble.snapshot_ensemble import Snapshots

QUIET: dict[str, Any] = {"batch_size": 8, "progress": False, "log_interval": 1}
CYCLE, SNAPSHOTS = 6, 3


def labelled(size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    inputs = np.random.default_rng(seed).normal(size=[size, 5]).astype(np.float32)
    return inputs, inputs[:, :3].argmax(axis=1).astype(np.int32)


DATA, EVAL = labelled(44, 1), labelled(23, 2)


def train(steps: int = CYCLE * SNAPSHOTS, optimizer: Any = None, **options: Any) -> tuple[Any, Any]:
    mk.seed(1)
    model = mk.nets.MLP([6, 3])
    scenario = scenarios.SnapshotEnsemble(steps, **{"snapshots": SNAPSHOTS, **QUIET, **options})
    optimizer = optimizer or mk.optimizers.Momentum(0.2, 0.9)
    return model, scenario(model, optimizer, mk.losses.softmax_cross_entropy, data=DATA, eval_data=EVAL)


def test_the_learning_rate_is_that_of_the_paper() -> None:
    _, result = train()
    t = np.arange(CYCLE * SNAPSHOTS)
    expected = 0.2 / 2 * (1 + np.cos(np.pi * (t % CYCLE) / CYCLE))
    np.testing.assert_allclose(result.column("learning_rate")[1], expected, rtol=1e-5, atol=1e-7)


def test_training_is_that_of_supervised_on_the_same_schedule() -> None:
    def schedule(count: Any) -> Any:
        return 0.2 / 2 * (1 + jnp.cos(jnp.pi * (count % CYCLE) / CYCLE))

    _, result = train()
    mk.seed(1)
    other = mk.nets.MLP([6, 3])
    optimizer = mk.optimizers.Optax(optax.sgd(schedule, momentum=0.9))
    solo = scenarios.Supervised(CYCLE * SNAPSHOTS, **QUIET)(
        other, optimizer, mk.losses.softmax_cross_entropy, data=DATA
    )
    np.testing.assert_allclose(result.column("loss")[1], solo.column("loss")[1], rtol=1e-5, atol=1e-6)


def test_each_snapshot_is_the_model_at_the_end_of_a_cycle() -> None:
    model, result = train()
    ensemble = result.state["snapshots"].ensemble
    assert isinstance(ensemble, EnsembleModel) and len(ensemble) == SNAPSHOTS
    for number, snapshot in enumerate(ensemble):
        then, _ = train(steps=CYCLE * (number + 1), cycle=CYCLE)
        assert not snapshot.trainable_variables
        for mine, theirs in zip(snapshot.variables, then.variables, strict=True):
            np.testing.assert_array_equal(mine.numpy(), theirs.numpy())
    outputs = np.stack([np.asarray(snapshot(EVAL[0]), np.float64) for snapshot in ensemble])
    p = (np.exp(outputs) / np.exp(outputs).sum(axis=2, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(result.metrics["loss"], -np.log(p[np.arange(23), EVAL[1]]).mean(), rtol=1e-5)
    assert result.metrics["model_accuracy"] == np.mean(np.asarray(model(EVAL[0])).argmax(axis=1) == EVAL[1])
    assert result.parameters == 5 * 6 + 6 + 6 * 3 + 3


def test_before_the_first_snapshot_the_model_stands_for_the_ensemble() -> None:
    _, result = train(eval_interval=3)
    evaluations = [row for row in result.history if "eval_loss" in row]
    assert evaluations[0]["eval_loss"] == pytest.approx(evaluations[0]["eval_model_loss"], rel=1e-6)
    assert all(abs(row["eval_loss"] - row["eval_model_loss"]) > 1e-4 for row in evaluations[2:])


def test_the_last_snapshots_are_kept() -> None:
    _, result = train(steps=30, cycle=CYCLE)
    _, third = train(steps=18, cycle=CYCLE)
    assert int(result.state["snapshots"].taken) == SNAPSHOTS
    kept, earlier = result.state["snapshots"].models, third.state["snapshots"].models
    np.testing.assert_array_equal(kept[2].layers[0].w.numpy(), earlier[2].layers[0].w.numpy())
    assert np.abs(kept[0].layers[0].w.numpy() - earlier[0].layers[0].w.numpy()).max() > 0


def test_a_snapshot_can_be_trained_further() -> None:
    snapshot = train()[1].state["snapshots"].ensemble[0]
    snapshot.thaw()
    before = snapshot.layers[0].w.numpy()
    scenarios.Supervised(3, **QUIET)(snapshot, mk.optimizers.SGD(0.1), mk.losses.softmax_cross_entropy, data=DATA)
    assert np.abs(snapshot.layers[0].w.numpy() - before).max() > 0


def test_there_is_no_ensemble_before_the_first_snapshot() -> None:
    with pytest.raises(ValueError, match=r"^no snapshot has been taken yet: the first one is taken at the end of"):
        _ = Snapshots(2).ensemble
    with pytest.raises(ValueError, match=r"^no snapshot has been taken yet"):
        _ = train(steps=3, cycle=CYCLE)[1].state["snapshots"].ensemble


def test_an_optimizer_without_a_rate_of_its_own_is_refused() -> None:
    scheduled = mk.optimizers.Scheduled(mk.optimizers.SGD(0.1), learning_rate=optax.constant_schedule(0.1))
    for optimizer in (scheduled, mk.optimizers.Optax(optax.sgd(0.1))):
        with pytest.raises(
            ValueError, match=r"has no learning rate that is a number, which SnapshotEnsemble lets fall"
        ):
            train(optimizer=optimizer)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"snapshots": 0}, "snapshots=0: expected an integer of at least 1"),
        ({"cycle": 0}, "cycle=0: expected an integer of at least 1"),
        ({"steps": 2}, "steps=2 are too few for 3 cycles: give more steps, or fewer snapshots"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        scenarios.SnapshotEnsemble(**{"steps": 18, "snapshots": 3, **settings})
    assert str(caught.value) == text


def test_a_snapshot_ensemble_rehearses() -> None:
    case = ROW["snapshot_ensemble"].fresh()
    scenario = case.scenario(**{**case.settings, "steps": 12})
    assert scenario.dry_run(**case.parts, data=case.data, eval_data=case.eval_data).step == 2

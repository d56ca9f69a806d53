"""Laws of ensembles: a member is trained as it would be alone, whoever is trained beside it."""

import copy
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenario_catalogue import exactly

import modulekit as mk
import scenarios
from scenarios.ensemble import EnsembleModel
from scenarios.ensemble.forms import is_worth_a_trial
from scenarios.ensemble.lanes import Form, grouped
from scenarios.ensemble.numbers import differing, replaced
from scenarios.ensemble.programs import trace
from scenarios.ensemble.splits import SPLITS, bootstrap, member_indices, parts

CE = mk.losses.softmax_cross_entropy
SEEDS, STEPS, BATCH = (5, 6, 7), 30, 8
QUIET: dict[str, Any] = {"batch_size": BATCH, "progress": False, "log_interval": 10}
Build = Callable[[], Any]


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def labelled(size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    inputs = numbers(size, 5, seed=seed)
    return inputs, inputs[:, :3].argmax(axis=1).astype(np.int32)


DATA, EVAL = labelled(44, 1), labelled(23, 2)


def mlp(dropout_rate: float | None = 0.3) -> Any:
    return mk.nets.MLP([6, 3], dropout_rate=dropout_rate)


def built(make: Build, count: int = 3, data: Any = DATA) -> list[Any]:
    """Returns models with first weights of their own, the same for each call."""
    mk.seed(3)
    models = [make() for _ in range(count)]
    for model in models:
        training = {"is_training": False} if scenarios.base.calling.needs_is_training(model) else {}
        mk.build(functools.partial(model, **training), list(data[0][:1].shape))
    return models


def adams(count: int = 3) -> list[Any]:
    return [mk.optimizers.Adam(0.01 * (member + 1)) for member in range(count)]


def weights(model: Any) -> list[np.ndarray]:
    return [v.numpy() for v in model.variables]


def train(models: Any, optimizers: Any, data: Any = DATA, steps: int = STEPS, loss: Any = CE, **options: Any) -> Any:
    parts = {key: options.pop(key) for key in ("penalty", "eval_data", "hooks") if key in options}
    return scenarios.Ensemble(steps, **{**QUIET, **options})(models, optimizers, loss, data=data, **parts)


def alone(model: Any, optimizer: Any, data: Any, seed: int, loss: Any = CE, **options: Any) -> Any:
    return scenarios.Supervised(STEPS, seed=seed, **{**QUIET, **options})(model, optimizer, loss, data=data)


def assert_same_weights(models: Sequence[Any], others: Sequence[Any], tolerance: float = 1e-5) -> None:
    for member, (model, other) in enumerate(zip(models, others, strict=True)):
        for mine, theirs in zip(weights(model), weights(other), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance, err_msg=f"member {member}")


def examples_of(split: str, member: int) -> Any:
    """Returns the data that a member sees in a split, as a data set of its own."""
    rows = {
        "shuffled": np.arange(44),
        "bootstrap": bootstrap(44, SEEDS[member]),
        "disjoint": np.array(parts(44, 3)[member]),
    }[split]
    return jax.tree.map(lambda array: array[rows], DATA)


@pytest.mark.parametrize("split", ["shuffled", "bootstrap", "disjoint"])
def test_a_member_is_trained_as_it_would_be_alone_with_its_seed_and_examples(split: str) -> None:
    make = mlp if split == "bootstrap" else functools.partial(mlp, None)
    members, others = built(make), built(make)
    result = train(members, adams(), seeds=SEEDS, split=split)
    for member, (model, optimizer) in enumerate(zip(others, adams(), strict=True)):
        solo = alone(model, optimizer, examples_of(split, member), SEEDS[member])
        np.testing.assert_allclose(
            result.column(f"member{member}_loss")[1], solo.column("loss")[1], rtol=1e-5, atol=1e-5
        )
    assert_same_weights(members, others)
    assert not any(np.array_equal(weights(members[0])[i], weights(members[1])[i]) for i in range(4))


def test_one_program_for_all_members_gives_what_one_after_the_other_gives() -> None:
    members, others = built(mlp, 2), built(mlp, 2)
    train(members, adams(2), seeds=SEEDS[:2], split="bootstrap")
    train(others, adams(2), seeds=SEEDS[:2], split="bootstrap", form="separate")
    assert_same_weights(members, others)


def test_with_shared_batches_members_differ_by_their_weights_alone() -> None:
    make = functools.partial(mlp, None)
    members, others = built(make, 2), built(make, 2)
    train(members, adams(2), seed=9)
    for model, optimizer in zip(others, adams(2), strict=True):
        alone(model, optimizer, DATA, 9)
    assert_same_weights(members, others)


def test_dropout_of_members_with_shared_batches_is_that_of_their_seeds() -> None:
    same, other = built(mlp, 2), built(mlp, 2)
    same[1].assign({path: v.value for path, v in same[0].paths().items()})
    other[1].assign({path: v.value for path, v in other[0].paths().items()})
    train(same, [mk.optimizers.SGD(0.1), mk.optimizers.Momentum(0.1, 0.0)], seeds=[4, 4])
    assert_same_weights(same[:1], same[1:])
    train(other, [mk.optimizers.SGD(0.1), mk.optimizers.SGD(0.1)], seeds=[4, 5])
    assert np.abs(weights(other[0])[1] - weights(other[1])[1]).max() > 1e-3


class Normalized(mk.Module):
    """A network with statistics and a stream of random numbers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = mk.BatchNorm(True, True)
        self.linear = mk.Linear(3)
        self.noise = mk.RandomStream(seed=2)

    def __call__(self, x: Any, is_training: bool) -> Any:
        if is_training:
            x = x + 0.1 * jax.random.normal(self.noise.next_key(), x.shape)
        return self.linear(self.norm(x, is_training=is_training))


def test_statistics_streams_and_wrapped_optimizers_are_each_members_own() -> None:
    def optimizers() -> list[Any]:
        inner = [mk.optimizers.Scheduled(mk.optimizers.SGD(0.1), learning_rate=halved) for _ in range(2)]
        return [mk.optimizers.Clipped(sgd, max_norm=0.1 * (k + 1)) for k, sgd in enumerate(inner)]

    members, others = built(Normalized, 2), built(Normalized, 2)
    train(members, optimizers(), seeds=SEEDS[:2], split="shuffled")
    for model, optimizer, seed in zip(others, optimizers(), SEEDS, strict=False):
        alone(model, optimizer, DATA, seed)
    assert_same_weights(members, others)


def halved(count: Any) -> Any:
    return 0.05 * 0.5 ** (count // 10)


def groups_of(models: Sequence[Any], optimizers: Sequence[Any], form: Form = "vmap") -> list[tuple[int, ...]]:
    """Returns which members would be trained side by side."""
    return [group.members for group in traced(models, optimizers, form)]


def traced(models: Sequence[Any], optimizers: Sequence[Any], form: Form = "vmap", data: Any = DATA) -> Any:
    x, y = (jax.ShapeDtypeStruct((BATCH, *array.shape[1:]), array.dtype) for array in data)
    named = differing(optimizers)

    def program(model: Any, optimizer: Any, own: Any) -> Any:
        def update(batch: Any) -> Any:
            inputs, targets = batch
            return optimizer.minimize(
                lambda: CE(scenarios.base.calling.call_model(model, inputs, True), targets).mean(), model
            )

        return trace(update, optimizer, own, (x, y))

    programs = [program(*member) for member in zip(models, optimizers, named, strict=True)]
    return grouped(programs, form)


def test_members_are_side_by_side_where_their_updates_are_the_same_program() -> None:
    assert groups_of([mlp(), mlp(), mlp()], adams()) == [(0, 1, 2)]
    assert groups_of([mlp(), mlp()], adams(2), "separate") == [(0,), (1,)]
    kinds = [mlp(0.3), mlp(0.4), mlp(None), mk.nets.MLP([7, 3]), mlp(0.3), mk.nets.MLP([6, 3], activation=jnp.tanh)]
    assert groups_of(kinds, adams(6)) == [(0, 4), (1,), (2,), (3,), (5,)]
    mixed = [mk.optimizers.SGD(0.1), mk.optimizers.Momentum(0.1, 0.9), mk.optimizers.Momentum(0.2, 0.8)]
    assert groups_of([mlp(), mlp(), mlp()], mixed) == [(0,), (1, 2)]
    accumulated = [mk.optimizers.Accumulated(mk.optimizers.SGD(0.1), every=every) for every in (2, 3, 2)]
    assert groups_of([mlp(), mlp(), mlp()], accumulated) == [(0, 2), (1,)]


def test_a_frozen_layer_makes_another_program() -> None:
    models = built(mlp)
    models[1].freeze("layers/0")
    assert groups_of(models, adams()) == [(0, 2), (1,)]


class Switching(mk.Optimizer):
    """Looks at its learning rate in Python, so that it cannot be an input of a program."""

    def __init__(self, learning_rate: float) -> None:
        super().__init__()
        self.learning_rate = learning_rate

    def apply(self, updates: Any, parameters: Any) -> None:
        for update, parameter in zip(updates, parameters, strict=True):
            if self.learning_rate > 0:
                parameter.assign_sub(self.learning_rate * update)


def test_an_optimizer_that_looks_at_its_rate_in_python_is_trained_apart() -> None:
    rates = (0.1, 0.2, 0.1)
    make = lambda: mk.Linear(3)  # noqa: E731
    assert groups_of([make(), make(), make()], [Switching(rate) for rate in rates]) == [(0, 2), (1,)]
    members, others = built(make), built(make)
    train(members, [Switching(rate) for rate in rates], seeds=SEEDS, split="shuffled")
    for model, rate, seed in zip(others, rates, SEEDS, strict=True):
        alone(model, mk.optimizers.SGD(rate), DATA, seed)
    assert_same_weights(members, others)


def test_members_of_many_kinds_are_trained_together() -> None:
    plain = functools.partial(mlp, None)
    makes: list[Build] = [plain, lambda: mk.Linear(3), plain, lambda: mk.nets.MLP([9, 3], activation=jnp.tanh)]

    def optimizers() -> list[Any]:
        return [mk.optimizers.Adam(0.01), mk.optimizers.SGD(0.1), mk.optimizers.Adam(0.02), mk.optimizers.RMSProp(0.01)]

    members, others = ([built(make, 1)[0] for make in makes] for _ in range(2))
    seeds = (1, 2, 3, 4)
    result = train(members, optimizers(), seeds=seeds, split="shuffled", eval_data=EVAL)
    for model, optimizer, seed in zip(others, optimizers(), seeds, strict=True):
        alone(model, optimizer, DATA, seed)
    assert_same_weights(members, others)
    outputs = [np.asarray(scenarios.base.calling.call_model(model, EVAL[0], False), np.float64) for model in members]
    p = np.mean([np.exp(o) / np.exp(o).sum(axis=1, keepdims=True) for o in outputs], axis=0)
    np.testing.assert_allclose(result.metrics["loss"], -np.log(p[np.arange(23), EVAL[1]]).mean(), rtol=1e-5)
    assert result.metrics["accuracy"] == np.mean(p.argmax(axis=1) == EVAL[1])


def test_a_penalty_and_the_sum_of_losses_are_those_of_the_docstring() -> None:
    x, y = numbers(16, 4), numbers(16, 2, seed=1)
    models = built(lambda: mk.Linear(2), 2, (x, y))
    first = [weights(model) for model in models]
    result = train(
        models, [mk.optimizers.SGD(0.01) for _ in models], (x, y), steps=1, batch_size=16, reduction="sum",
        loss=mk.losses.squared_error, penalty=lambda model: 0.5 * (model.w.value**2).sum(), log_interval=1,
    )  # fmt: skip
    for member, (b, w) in enumerate(first):
        b, w = b.astype(np.float64), w.astype(np.float64)
        error = x @ w + b - y
        loss = (error**2).mean(axis=1).sum() + 0.5 * (w**2).sum()
        np.testing.assert_allclose(result.history[0][f"member{member}_loss"], loss, rtol=1e-5)
        np.testing.assert_allclose(models[member].w.numpy(), w - 0.01 * (x.T @ error + w), rtol=1e-4, atol=1e-6)


# At once, in turn, or each by instructions of its own.

FORMS: tuple[Form, ...] = ("vmap", "scan", "separate")


def tried(
    monkeypatch: pytest.MonkeyPatch, seconds: Sequence[float], least: float | None = None, **options: Any
) -> tuple[list[Any], Any]:
    """Trains where a trial finds that the forms take these seconds, and is made from so many operations on."""
    left = iter([*seconds] * 3)  # in as many rounds
    monkeypatch.setattr("scenarios.ensemble.forms.seconds_of", lambda form, count: next(left))
    if least is not None:
        monkeypatch.setattr("scenarios.ensemble.forms.LARGE", least)
    models = built(mlp, 2)
    result = train(models, adams(2), seeds=SEEDS[:2], split="bootstrap", steps_per_call=10, **options)
    assert next(left, None) is None
    return models, result


def bits(models: Sequence[Any]) -> list[bytes]:
    return [array.tobytes() for model in models for array in weights(model)]


@pytest.mark.parametrize("split", ["shared", "shuffled"])
@pytest.mark.parametrize("patience", [None, 2])
def test_all_forms_train_alike(split: str, patience: int | None) -> None:
    def trained(form: Form) -> tuple[list[Any], Any]:
        models = [*built(mlp, 2), *built(functools.partial(mlp, None), 1), *built(mlp, 3)]
        options = {"eval_data": EVAL, "eval_interval": 5, "patience": patience}
        seeds = range(6)
        return models, train(models, adams(6), seeds=seeds, split=split, form=form, **options)

    models, result = trained("vmap")
    for form in FORMS[1:]:
        others, other = trained(form)
        assert other.state["members"].form == form
        assert_same_weights(models, others)
        assert other.metrics == pytest.approx(result.metrics, rel=1e-5)


def test_a_form_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="form='loop' is none of 'vmap', 'scan', 'separate', None"):
        scenarios.Ensemble(1, form="loop")  # type: ignore[arg-type]


def test_little_arithmetic_is_at_once_without_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    models, result = tried(monkeypatch, [])
    assert result.state["members"].form == "vmap"
    assert bits(models) == bits(tried(monkeypatch, [], form="vmap")[0])


@pytest.mark.parametrize(
    ("seconds", "form"),
    [
        ((1.0, 0.7, 0.5), "separate"),
        ((1.0, 0.5, 0.7), "scan"),
        ((1.0, 0.9, 0.9), "vmap"),
        ((0.5, 1.0, 0.6), "vmap"),
    ],
)
def test_much_arithmetic_takes_the_form_that_a_trial_finds_fastest_and_the_trial_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, ...], form: Form
) -> None:
    models, result = tried(monkeypatch, seconds, least=1)
    assert result.state["members"].form == form
    forced, other = tried(monkeypatch, [], form=form)
    assert other.state["members"].form == form
    assert bits(models) == bits(forced)


def test_a_run_that_goes_on_keeps_to_its_form(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tried(monkeypatch, (1.0, 0.5, 0.7), least=1, steps=10, save_dir=tmp_path)
    models, result = tried(monkeypatch, [], least=1, save_dir=tmp_path)
    assert result.state["members"].form == "scan"
    assert bits(models) == bits(tried(monkeypatch, [], form="scan")[0])


def test_there_is_much_arithmetic_in_convolutions_and_little_in_small_networks() -> None:
    images = numbers(1, 28, 28, 1), DATA[1]
    convolutions = lambda: mk.Sequential([mk.Conv2D(16, 5), jax.nn.relu, mk.Conv2D(16, 5), mk.Flatten(), mk.Linear(3)])  # noqa: E731
    assert is_worth_a_trial(traced([convolutions(), convolutions()], adams(2), data=images))
    assert not is_worth_a_trial(traced([convolutions(), convolutions()], adams(2), "separate", images))
    assert not is_worth_a_trial(traced([mlp(), mlp()], adams(2)))
    products = 2 * BATCH * (2 * 5 * 6 + 3 * 6 * 3)  # forward, and back; no gradient of the examples
    (group,) = traced([mlp(None), mlp(None)], adams(2))
    assert 2 * products < group.flops < 4 * products


# Stopping early.


def stopping(patience: int | None, steps: int = STEPS, **options: Any) -> tuple[list[Any], Any]:
    """Trains one member that gets better all the time, and one whose weights run away."""
    models = built(functools.partial(mlp, None), 2)
    optimizers = [mk.optimizers.SGD(0.05), mk.optimizers.SGD(-0.05)]
    options = {"seeds": (5, 6), "split": "shuffled", "eval_interval": 5, "eval_data": EVAL, **options}
    return models, train(models, optimizers, steps=steps, patience=patience, **options)


def test_a_member_that_does_not_get_better_stops_and_keeps_its_bits() -> None:
    models, result = stopping(2)
    losses = result.column("eval_member1_loss")[1]
    assert losses[1] > losses[0] and losses[2] > losses[1]
    assert losses[2:] == [losses[2]] * len(losses[2:])
    at_stop, _ = stopping(2, steps=15)
    for mine, theirs in zip(weights(models[1]), weights(at_stop[1]), strict=True):
        assert mine.tobytes() == theirs.tobytes()
    assert result.column("eval_training")[1] == [2, 2, 1, 1, 1, 1]
    members = result.state["members"]
    assert members.active.numpy().tolist() == [True, False]
    np.testing.assert_allclose(members.best.numpy(), [min(result.column("eval_member0_loss")[1]), losses[0]], rtol=1e-6)
    free, _ = stopping(None)
    assert_same_weights(models[:1], free[:1])
    assert np.abs(weights(models[1])[1] - weights(free[1])[1]).max() > 1e-3


def test_stopping_early_survives_a_resume_and_counts_an_evaluation_once(tmp_path: Path) -> None:
    models, result = stopping(2, ema_decay=0.9)
    stopping(2, steps=10, save_dir=tmp_path, ema_decay=0.9)
    resumed, again = stopping(2, save_dir=tmp_path, ema_decay=0.9)
    assert again.column("eval_training") == result.column("eval_training")
    assert result.column("eval_training")[1] == result.column("eval_ema_training")[1] == [2, 2, 1, 1, 1, 1]
    for model, other in zip(models, resumed, strict=True):
        assert all(map(np.array_equal, weights(model), weights(other)))


# Members are live modules.


def test_a_hook_may_freeze_a_member_and_change_its_learning_rate() -> None:
    models = built(functools.partial(mlp, None))
    optimizers = [mk.optimizers.SGD(0.1) for _ in models]
    seen: list[Any] = []

    def hook(event: scenarios.events.Event) -> None:
        if isinstance(event, scenarios.events.Logged) and event.step == 10:
            models[1].freeze()
            optimizers[2].learning_rate = 0.0
            seen.extend(copy.deepcopy(weights(model)) for model in models)

    train(models, optimizers, seeds=SEEDS, split="shuffled", hooks=[hook], steps_per_call=10)
    for index, moves in enumerate((True, False, False)):
        apart = [np.abs(mine - then).max() for mine, then in zip(weights(models[index]), seen[index], strict=True)]
        assert bool(max(apart) > 1e-3) is moves, index


def test_averages_of_the_weights_are_kept_for_each_member() -> None:
    models = built(functools.partial(mlp, None), 2)
    result = train(models, adams(2), eval_data=EVAL, ema_decay=0.9)
    assert {"ema_loss", "ema_member1_accuracy"} <= result.metrics.keys()
    assert result.ema["models[1].layers[0].w"].shape == (5, 6)


# The ensemble as a model.


@pytest.mark.parametrize("average", ["probabilities", "outputs"])
def test_the_prediction_is_the_average_of_the_docstring(average: Any) -> None:
    models = built(functools.partial(mlp, None))
    ensemble = EnsembleModel(models, average)
    outputs = np.stack([np.asarray(model(EVAL[0]), np.float64) for model in models])
    p = np.exp(outputs) / np.exp(outputs).sum(axis=2, keepdims=True)
    expected = outputs.mean(axis=0) if average == "outputs" else np.log(p.mean(axis=0))
    np.testing.assert_allclose(ensemble(EVAL[0]), expected, rtol=1e-5, atol=1e-6)


def test_the_members_of_an_ensemble_are_live_modules(tmp_path: Path) -> None:
    models = built(mlp)
    ensemble = EnsembleModel(models)
    assert ensemble.needs_is_training and len(ensemble) == 3
    assert list(ensemble) == models and ensemble[-1] is models[2]
    assert sorted(ensemble.paths()) == sorted(f"models[{k}].{path}" for k in range(3) for path in models[0].paths())
    fewer = ensemble.drop(1)
    assert list(fewer) == [models[0], models[2]] and len(ensemble) == 3
    train(fewer, adams(2), seeds=SEEDS[:2], split="bootstrap")
    expected = [weights(model) for model in built(mlp)]
    np.testing.assert_array_equal(weights(models[1])[1], expected[1][1])
    assert np.abs(weights(ensemble[0])[1] - expected[0][1]).max() > 1e-3
    mk.weights.save(tmp_path / "ensemble.safetensors", ensemble)
    other = EnsembleModel(built(mlp))
    mk.weights.load(tmp_path / "ensemble.safetensors", other)
    assert_same_weights(other.models, models, 0.0)


def test_an_ensemble_of_regressors_reports_the_mean_of_outputs() -> None:
    data = numbers(30, 4), numbers(30, 2, seed=1)
    models = built(lambda: mk.Linear(2), 2, data)
    ensemble = EnsembleModel(models, "outputs")
    result = train(ensemble, adams(2), data, loss=mk.losses.squared_error, eval_data=data)
    mean = np.mean([np.asarray(model(data[0]), np.float64) for model in models], axis=0)
    np.testing.assert_allclose(result.metrics["loss"], np.mean((mean - data[1]) ** 2), rtol=1e-5)


# Which examples.


@settings(deadline=None, max_examples=60)
@given(
    split=st.sampled_from(SPLITS[1:]),
    size=st.integers(6, 40),
    step=st.integers(0, 30),
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=4),
)
def test_examples_are_a_function_of_the_step_however_they_are_asked_for(
    split: str, size: int, step: int, counts: list[int]
) -> None:
    whole = member_indices(split, size, 2, SEEDS, step, sum(counts))
    starts = np.cumsum([0, *counts[:-1]]) + step
    pieces = [member_indices(split, size, 2, SEEDS, int(s), count) for s, count in zip(starts, counts, strict=True)]
    assert whole.shape == (sum(counts), 3, 2)
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    for member, seed in enumerate(SEEDS):
        own = {
            "shuffled": range(size),
            "bootstrap": set(bootstrap(size, seed).tolist()),
            "disjoint": parts(size, 3)[member],
        }
        assert set(whole[:, member].ravel().tolist()) <= set(own[split])


@pytest.mark.parametrize("split", SPLITS[1:])
def test_an_epoch_of_a_member_holds_each_of_its_examples_once(split: str) -> None:
    size, batch = 30, 5
    steps = (size // 3 if split == "disjoint" else size) // batch
    taken = member_indices(split, size, batch, SEEDS, 2 * steps, steps)
    for member in range(3):
        own = {
            "shuffled": np.arange(size),
            "bootstrap": bootstrap(size, SEEDS[member]),
            "disjoint": np.array(parts(size, 3)[member]),
        }
        assert sorted(taken[:, member].ravel()) == sorted(own[split])


def test_a_bootstrap_sample_leaves_out_about_a_share_of_one_over_e() -> None:
    kept = [len(set(bootstrap(5000, seed).tolist())) / 5000 for seed in range(5)]
    np.testing.assert_allclose(kept, 1 - np.exp(-1), atol=0.02)
    assert len({bootstrap(5000, seed).tobytes() for seed in range(5)}) == 5


def test_a_stream_trains_an_ensemble_on_shared_batches() -> None:
    make = functools.partial(mlp, None)
    members, others = built(make, 2), built(make, 2)
    batches = [(DATA[0][k : k + 8], DATA[1][k : k + 8]) for k in range(0, 40, 8)]
    train(members, adams(2), lambda: iter(batches), steps=5)
    for model, optimizer in zip(others, adams(2), strict=True):
        scenarios.Supervised(5, **QUIET)(model, optimizer, CE, data=lambda: iter(batches))
    assert_same_weights(members, others)


# What is refused.


def test_a_model_that_is_a_member_twice_is_refused() -> None:
    models = built(mlp, 2)
    text = r"^members 0 and 2 are the same object, MLP\(.*\): make a model for each member"
    with pytest.raises(ValueError, match=text):
        train([*models, models[0]], adams(), seeds=SEEDS)
    with pytest.raises(ValueError, match=text):
        EnsembleModel([*models, models[0]])


def twins(dropout_rate: float | None, **options: Any) -> Any:
    models = built(functools.partial(mlp, dropout_rate))
    models[2].assign({path: v.value for path, v in models[0].paths().items()})
    return train(models, [mk.optimizers.SGD(0.1) for _ in models], steps=3, **options)


@pytest.mark.parametrize(
    ("dropout_rate", "options"),
    [
        (None, {}),
        (0.3, {"seeds": (1, 2, 1)}),
        (None, {"seeds": (1, 2, 1), "split": "bootstrap"}),
        (0.3, {"seeds": (1, 2, 1), "split": "shuffled"}),
    ],
)
def test_members_that_would_stay_the_same_are_refused(dropout_rate: float | None, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=exactly(
        "members 0 and 2 are identical: they have the same first weights, optimizers and examples, and would stay the same. "
        "Make each model anew, or give seeds and split='shuffled' or 'bootstrap'"
    )):  # fmt: skip
        twins(dropout_rate, **options)


@pytest.mark.parametrize(
    ("dropout_rate", "options"),
    [
        (0.3, {}),
        (0.3, {"seeds": SEEDS}),
        (None, {"seeds": SEEDS, "split": "shuffled"}),
        (None, {"seeds": (1, 2, 1), "split": "disjoint"}),
    ],
)
def test_members_that_begin_alike_and_go_apart_are_not(dropout_rate: float | None, options: dict[str, Any]) -> None:
    assert twins(dropout_rate, **options).step == 3


def test_members_that_share_what_changes_are_refused() -> None:
    models = [mk.Sequential([mk.Linear(4), mk.Linear(3)]) for _ in range(2)]
    models[1].layers[1] = models[0].layers[1]
    with pytest.raises(
        ValueError, match=r"^members 0 and 1 share models\[0\]\.layers\[1\]\.[bw], which changes in training"
    ):
        train(models, adams(2))


def test_members_may_share_what_does_not_change() -> None:
    models = [mk.Sequential([mk.Linear(4), mk.Linear(3)]) for _ in range(2)]
    models[1].layers[0] = models[0].layers[0]
    models[0](DATA[0]), models[1](DATA[0])
    models[0].layers[0].freeze()
    before = weights(models[0].layers[0])
    train(models, adams(2))
    np.testing.assert_array_equal(weights(models[0].layers[0])[1], before[1])


ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "an unknown split": (
        lambda: scenarios.Ensemble(1, split="halved"),  # type: ignore[arg-type]
        "split='halved' is none of 'shared', 'shuffled', 'bootstrap', 'disjoint'",
    ),
    "examples of their own without seeds": (
        lambda: scenarios.Ensemble(1, split="bootstrap"),
        "split='bootstrap' gives each member examples of its own: give seeds, one for each member",
    ),
    "an unknown reduction": (
        lambda: scenarios.Ensemble(1, reduction="max"),  # type: ignore[arg-type]
        "reduction='max' is none of 'mean', 'sum'",
    ),
    "no patience": (
        lambda: scenarios.Ensemble(1, patience=0), "patience=0: expected a number of evaluations, at least 1, or None"
    ),
    "a seed that is none": (
        lambda: scenarios.Ensemble(1, seeds=[0, -1]), "seeds[1]=-1 is no integer from 0 to 2^32 - 1"
    ),
    "one optimizer": (
        lambda: train(built(mlp, 2), mk.optimizers.SGD(0.1)),
        "2 models need 2 optimizers, and got one: each member counts its own steps, so make one for each, as in "
        "[mk.optimizers.Adam() for _ in models]",
    ),
    "too few seeds": (lambda: train(built(mlp, 2), adams(2), seeds=SEEDS), "2 models need as many seeds, and got 3"),
    "a stream for members with examples of their own": (
        lambda: train(built(mlp, 2), adams(2), lambda: iter([DATA] * 3), seeds=(1, 2), split="shuffled", steps=2),
        "split='shuffled' needs examples [2 members, batch, ...], and got [44, 5]: a stream takes split='shared'",
    ),
    "patience without evaluations": (
        lambda: train(built(mlp, 2), adams(2), patience=1),
        "patience=1 counts evaluations: give eval_data, and eval_interval",
    ),
    "a label that is no class": (
        lambda: train(built(mlp, 2), adams(2), (DATA[0], DATA[1] + 1)),
        "data[1]: label 3 at index",
    ),
    "a part that is too small": (
        lambda: train(built(mlp, 3), adams(3), seeds=SEEDS, split="disjoint", batch_size=20),
        "member 0: batch_size=20 is larger than the data's 14 examples; choose a batch_size of at most 14, "
        "or give more data",
    ),
    "more members than examples": (lambda: parts(2, 3), "2 examples cannot be split into 3 parts"),
    "no members": (lambda: EnsembleModel([]), "an ensemble of no models has no prediction: give at least one"),
    "an unknown average": (
        lambda: EnsembleModel([mlp()], "median"),  # type: ignore[arg-type]
        "average='median' is none of 'probabilities', 'outputs'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_what_is_wrong_is_said(name: str) -> None:
    call, text = ERRORS[name]
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value).startswith(text)


def test_numbers_are_put_back_whatever_happens() -> None:
    optimizer = mk.optimizers.Clipped(mk.optimizers.Momentum(0.1, 0.9), max_norm=2.0)
    with pytest.raises(RuntimeError), replaced(optimizer, {"momentum": 0.5, "max_norm": 1.0}):
        assert optimizer.momentum == 0.5 and optimizer.max_norm == 1.0
        raise RuntimeError
    assert optimizer.momentum == 0.9 and optimizer.max_norm == 2.0


def test_an_ensemble_rehearses_and_tells_its_cost() -> None:
    scenario = scenarios.Ensemble(12, seeds=(1, 2), split="bootstrap", steps_per_call=6, **QUIET)
    optimizers = [mk.optimizers.Momentum(0.1, 0.9) for _ in range(2)]
    call = {"models": built(lambda: mk.Linear(3), 2), "optimizers": optimizers, "loss": CE, "data": DATA}
    assert scenario.dry_run(**call).step == 2
    report = scenario.preflight(**call, overfit=False)
    assert report.parameters == 2 * (5 * 3 + 3)
    assert [part.is_optimizer for part in report.parts] == [False, True]
    assert report.inputs.batch_size == 2 * BATCH
    assert report.coverage.warnings == []

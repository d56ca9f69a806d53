"""Laws of ensembles whose members several devices divide: checks each, and prints one JSON object of the laws that fail."""

import functools
import os
import re
import tempfile
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import numpy as np
from laws import check_laws, law, near, refused

import modulekit as mk
import scenarios

MEMBERS, LOSS = 8, mk.losses.softmax_cross_entropy
EACH = {"mesh": {"members": 8}, "placement": "members"}
PAIRS = {"mesh": {"members": 4, "data": 2}, "placement": "members + fully_sharded"}
STOPPING = {"eval_interval": 20, "patience": 2}
RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(96, 16)).astype(np.float32), RANDOM.integers(4, size=96)


def members(hidden: int = 32, activations: Any = (jax.nn.relu,)) -> tuple[list[Any], list[Any]]:
    """Returns models and optimizers, of which the last one runs away."""
    mk.seed(1)
    kinds = [activations[k % len(activations)] for k in range(MEMBERS)]
    models = [mk.nets.MLP([hidden, 4], activation=kind, dropout_rate=0.2) for kind in kinds]
    return models, [mk.optimizers.Adam(1e-3 * (k + 1) if k < MEMBERS - 1 else -1e-3) for k in range(MEMBERS)]


def ensemble(steps: int = 120, **settings: Any) -> scenarios.Ensemble:
    chosen = {"batch_size": 16, "log_interval": 10, "steps_per_call": 20, "progress": False}
    chosen |= {"seeds": range(MEMBERS), "split": "bootstrap"}
    return scenarios.Ensemble(steps, **{**chosen, **settings})


def run(steps: int = 120, activations: Any = (jax.nn.relu,), **settings: Any) -> tuple[scenarios.Result, list[Any]]:
    models, optimizers = members(activations=activations)
    data = {"data": (X, Y), "eval_data": (X[:48], Y[:48])}
    return ensemble(steps, **settings)(models, optimizers, LOSS, **data), models


@functools.cache
def stopping() -> tuple[scenarios.Result, Any]:
    """Trains on one device members that stop early."""
    return run(**STOPPING)


def numbers(result: scenarios.Result) -> np.ndarray:
    return np.concatenate([[value for _, value in sorted(row.items())] for row in result.history])


def compiled(**settings: Any) -> Any:
    """Returns the program of a loop over updates."""
    scenario = ensemble(**settings)
    with scenario._run((*members(hidden=256), LOSS), (X, Y), None, (), {}).prepared() as prepared:
        chunk = prepared.feed.take(0, 5, 5)
        rows = prepared.stepper._put(chunk.rows, np.int32(0), np.int32(5))
        return prepared.stepper._many.lower(chunk.source, *rows).compile()


def exchanges(text: str) -> list[str]:
    """Returns the shapes of what devices tell each other."""
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    return re.findall(rf"= (\S.*?) (?:{kinds})(?:-start)?\(", text)


@law
def members_are_trained_as_on_one_device_whatever_their_examples_and_whenever_they_stop() -> None:
    shared = {"split": "shared"}
    for expected, options, forms in (
        (stopping(), STOPPING, [EACH, {**PAIRS, "data_on_device": False}]),
        (run(**shared), shared, [{**PAIRS, "steps_per_call": 7}]),
    ):
        for form in forms:
            result, models = run(**options, **form)
            near(numbers(result), numbers(expected[0]), 1e-5)
            arrays = [v.value for model in models for v in model.variables]
            assert all(array.sharding.num_devices == 8 and array.is_fully_replicated for array in arrays)
    active = stopping()[0].state["members"].active.numpy()
    assert active[:4].all() and not active[-1], active


@law
def members_are_trained_as_on_one_device_step_by_step_and_with_averages() -> None:
    near(numbers(run(20, ema_decay=0.9, **PAIRS)[0]), numbers(run(20, ema_decay=0.9)[0]), 1e-5)
    models, optimizers = members()
    with ensemble(10, **EACH)._run((models, optimizers, LOSS), (X, Y), None, (), {}).prepared() as prepared:
        prepared.stepper.pacing.in_loop = False
        for step in range(10):
            prepared.stepper.run(step, prepared.feed.take(step, 1, 1))
    others = run(10)[1]
    for mine, theirs in zip(mk.Sequential(models).variables, mk.Sequential(others).variables, strict=True):
        near(mine.numpy(), theirs.numpy(), 1e-5)


@law
def each_device_computes_its_own_members_and_tells_the_others_their_losses() -> None:
    flops = compiled().cost_analysis()["flops"]
    for form in (EACH, {**EACH, "split": "shared"}, PAIRS):
        program = compiled(**form)
        update = program.as_text().split("\nENTRY ")[0]
        assert program.cost_analysis()["flops"] <= 0.2 * flops, form
        assert exchanges(update) == ["f32[8]{0}"] or form is PAIRS, exchanges(update)  # the others add up gradients
        assert not re.search(r"f32\[8,(32|256)", update), form  # activations or weights of all members


@law
def members_of_two_kinds_are_each_divided() -> None:
    kinds, form = (jax.nn.relu, jax.nn.tanh), {"mesh": {"members": 4}, "placement": "members"}
    near(numbers(run(30, kinds, **form)[0]), numbers(run(30, kinds)[0]), 1e-5)


@law
def what_is_saved_on_eight_devices_goes_on_on_one() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run(40, save_dir=folder, **STOPPING, **EACH)
        near(numbers(run(save_dir=folder, **STOPPING)[0]), numbers(stopping()[0]), 1e-5)


@law
def what_cannot_be_divided_is_refused() -> None:
    uneven = "members 0, 1, 2, 3, 4, 5, 6, 7 are 8 that are trained side by side, and cannot be divided evenly among 3"
    refused(ValueError, uneven, lambda: run(1, mesh={"members": 3}, placement="members"))
    refused(ValueError, "members 0, 2, 4, 6 are 4 that", lambda: run(1, (jax.nn.relu, jax.nn.tanh), **EACH))
    refused(ValueError, "form='scan' takes members in turn", lambda: run(1, form="scan", **EACH))
    missing = "and one of the two is missing. Give both, as in mesh={'members': 8}, placement='members'"
    refused(ValueError, missing, lambda: run(1, mesh={"members": 8}))
    refused(ValueError, missing, lambda: run(1, mesh={"data": 8}, placement="members"))
    refused(ValueError, missing, lambda: run(1, placement="members"))
    train = scenarios.Supervised(1, progress=False, **EACH)
    none = "placement='members' divides the members of an ensemble, and this scenario has none: leave out 'members'"
    refused(ValueError, none, lambda: train(mk.Linear(4), mk.optimizers.SGD(0.1), LOSS, data=(X, Y)))


check_laws(8)

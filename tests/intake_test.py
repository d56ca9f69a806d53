"""Laws of an intake: gradients computed apart make the step of all samples, in any order, once each, whatever is killed."""

import itertools
import json
import math
import os
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import modulekit as mk
from modulekit.errors import CheckpointError
from scenarios import aggregation
from scenarios.aggregation import Intake, archive, median

Gradients = dict[str, np.ndarray]
State = dict[str, bytes]


class Net(mk.Module):
    """Two trainable variables, and one that counts."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        self.w = mk.Variable(rng.normal(size=[3, 2]).astype(np.float32), name="w")
        self.b = mk.Variable(jnp.zeros([2]), name="b")
        self.count = mk.Variable(7, trainable=False, name="count")


def gradients_of(seed: int) -> Gradients:
    rng = np.random.default_rng(seed)
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in (("w", [3, 2]), ("b", [2]))}


def bits(module: mk.Module) -> State:
    return {path: v.numpy().tobytes() for path, v in module.paths().items()}


def filled(intake: Intake, count: int = 3, version: int | None = None) -> None:
    version = intake.version if version is None else version
    for index in range(count):
        receipt = intake.submit(gradients_of(10 * version + index), index + 1, f"worker {index}", version)
        assert receipt, receipt.reason


# The step.


def test_batches_of_4_4_and_2_make_the_step_of_the_batch_of_10() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=[10, 3]).astype(np.float32), rng.integers(0, 2, size=10)
    net, whole = Net(), Net()

    def loss(model: Net, x: Any, y: Any) -> Any:
        return mk.losses.softmax_cross_entropy(x @ model.w.value + model.b.value, y).mean()

    gradient = mk.jit(lambda model, x, y: mk.grad(lambda: loss(model, x, y), model)())
    intake = Intake(net)
    for rows in (slice(0, 4), slice(4, 8), slice(8, 10)):
        found = dict(zip(("b", "w"), gradient(net, x[rows], y[rows]), strict=True))
        assert intake.submit(found, len(y[rows]), f"{rows.start}", 0)
    full = dict(zip(("b", "w"), gradient(whole, x, y), strict=True))
    for path, expected in full.items():
        np.testing.assert_allclose(intake.total().gradients[path], expected, rtol=1e-6, atol=1e-6)
    assert intake.total().weight == 10.0
    intake.apply(mk.optimizers.Momentum(0.1, 0.9))
    mk.optimizers.Momentum(0.1, 0.9).apply_gradients(full, whole)
    np.testing.assert_allclose(net.w.numpy(), whole.w.numpy(), rtol=1e-6, atol=1e-6)


def test_the_sum_is_that_of_float64_rounded_once() -> None:
    w = mk.Variable(jnp.zeros([]), name="w")
    intake = Intake([w])
    for name, value in (("a", 1.0), ("b", 1e-8), ("c", -1.0)):
        intake.submit({"w": np.float32(value)}, 1, name, 0)
    expected = np.float32((1.0 + np.float64(np.float32(1e-8)) - 1.0) / 3)
    assert intake.total().gradients["w"] == expected != 0


@settings(deadline=None, max_examples=30)
@given(order=st.permutations(range(7)), name=st.sampled_from(["mean", "median", "trimmed_mean"]))
def test_the_order_of_arrival_changes_no_bit(order: list[int], name: str) -> None:
    rule = getattr(aggregation, name)
    totals = []
    for arrival in (range(7), order):
        intake = Intake(Net(), aggregate=rule)
        for index in arrival:
            assert intake.submit(gradients_of(index), 0.1 + index, f"id {index}", 0)
        totals.append(intake.total())
    assert totals[0].keys == totals[1].keys
    for path, value in totals[0].gradients.items():
        assert value.tobytes() == totals[1].gradients[path].tobytes()


def test_threads_may_contribute_at_the_same_time() -> None:
    alone, together = Intake(Net()), Intake(Net())
    filled(alone, 40)
    threads = [
        threading.Thread(target=together.submit, args=(gradients_of(i), i + 1, f"worker {i}", 0)) for i in range(40)
    ]
    for thread in threads:
        thread.start()
    assert together.wait(40, timeout=60)
    for thread in threads:
        thread.join()
    for path, value in alone.total().gradients.items():
        assert value.tobytes() == together.total().gradients[path].tobytes()


def test_a_rule_of_the_users_own() -> None:
    def largest(gradients: Any, weights: Any) -> Any:
        return {path: g.max(axis=0) for path, g in gradients.items()}

    intake = Intake(Net(), aggregate=largest)
    filled(intake)
    expected = np.max([gradients_of(index)["w"] for index in range(3)], axis=0)
    assert intake.total().gradients["w"].tobytes() == expected.tobytes()


def test_a_tied_variable_has_one_gradient() -> None:
    net = Net()
    net.again = net.w
    intake = Intake(net)
    assert set(intake.forms) == {"b", "again"}
    both = {"again": np.ones([3, 2], np.float32), "b": np.zeros([2], np.float32)}
    reason = intake.submit({**both, "w": both["again"]}, 1, "a", 0).reason
    assert reason == f"{FIT}again and w are tied, one variable, and take one gradient. Nothing has changed"
    assert intake.submit(both, 1, "a", 0)
    before = net.w.numpy()
    intake.apply(mk.optimizers.SGD(1.0))
    np.testing.assert_array_equal(net.w.numpy(), before - 1)


def test_half_precision_is_summed_in_float64() -> None:
    w = mk.Variable(jnp.zeros([2], jnp.bfloat16), name="w")
    intake = Intake({"w": w})
    for index in range(3):
        intake.submit({"w": np.array([1.0, 2.0**-7], jnp.bfloat16) * (1 + index)}, 1, str(index), 0)
    assert intake.total().gradients["w"].dtype == jnp.bfloat16
    assert intake.total().gradients["w"].tolist() == [2.0, 2.0**-6]


def test_accumulating_optimizers_are_told_the_weight() -> None:
    net = Net()
    optimizer = mk.optimizers.Accumulated(mk.optimizers.SGD(1.0), every=2)
    intake, before = Intake(net), net.b.numpy()
    for value, weight in ((1.0, 3), (5.0, 1)):
        given_ = {"w": np.zeros([3, 2], np.float32), "b": np.full([2], value, np.float32)}
        intake.submit(given_, weight, "a", intake.version)
        intake.apply(optimizer)
    np.testing.assert_array_equal(net.b.numpy(), before - 2.0)


# Who is refused, and why.


ZEROS = {"w": np.zeros([3, 2], np.float32), "b": np.zeros([2], np.float32)}
FIT = "these gradients do not fit the intake: "
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a path is missing": ({"gradients": {"w": ZEROS["w"]}}, f"{FIT}missing b. Nothing has changed"),
    "a path is unknown": ({"gradients": {**ZEROS, "c": ZEROS["b"]}}, f"{FIT}unexpected c. Nothing has changed"),
    "a counter has no gradient": (
        {"gradients": {**ZEROS, "count": np.float32(0)}},
        f"{FIT}unexpected count. Nothing has changed",
    ),
    "a shape differs": (
        {"gradients": {**ZEROS, "b": np.zeros([3], np.float32)}},
        f"{FIT}b has shape [3], the variable [2]. Nothing has changed",
    ),
    "a dtype differs": (
        {"gradients": {**ZEROS, "b": np.zeros([2])}},
        f"{FIT}b has dtype float64, the variable float32: convert it, as in array.astype('float32'). Nothing has changed",
    ),
    "a value is not finite": (
        {"gradients": {**ZEROS, "b": np.array([np.nan, 1], np.float32)}},
        f"{FIT}b has 1 values of 2 that are not finite. Nothing has changed",
    ),
    "no array": (
        {"gradients": {**ZEROS, "b": [[1], [2, 3]]}},
        "the gradient of 'b' is no array: setting an array element",
    ),
    "objects": (
        {"gradients": {**ZEROS, "b": np.array([None, None])}},
        "the gradient of 'b' holds object, and no numbers",
    ),
    "no dict": ({"gradients": [1, 2]}, "gradients are a dict of arrays by path, not list"),
    "weight 0": ({"weight": 0}, "weight=0: expected how many samples the gradients are the mean of, a positive number"),
    "a negative weight": ({"weight": -1.5}, "weight=-1.5: expected how many samples"),
    "weight nan": ({"weight": math.nan}, "weight=nan: expected how many samples"),
    "weight inf": ({"weight": math.inf}, "weight=inf: expected how many samples"),
    "weight True": ({"weight": True}, "weight=True: expected how many samples"),
    "a weight that is a text": ({"weight": "3"}, "weight='3': expected how many samples"),
    "a huge weight": ({"weight": 10**400}, "weight=1000"),
    "a weight with too many digits to print": ({"weight": 10**5000}, "weight=a int: expected how many samples"),
    "no id": ({"id": ""}, "id='': expected a text of 1 to 200 characters"),
    "an id that is a number": ({"id": 3}, "id=3: expected a text of 1 to 200 characters"),
    "a long id": ({"id": "x" * 201}, "id='xxxxxx"),
    "an id that is no text": ({"id": "\ud800"}, "id='\\ud800': expected a text"),
    "a version that is a text": ({"version": "0"}, "version='0': expected the number of the weights' version, now 0"),
    "a version that is a truth": ({"version": False}, "version=False: expected the number"),
    "a negative version": ({"version": -1}, "version=-1: expected the number"),
    "a version to come": (
        {"version": 1},
        "version 1 is not there yet: the weights are those of version 0",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_with_a_reason_and_nothing_changes(case: str, tmp_path: Path) -> None:
    arguments, reason = REFUSED[case]
    net = Net()
    intake = Intake(net, tmp_path)
    filled(intake, 2)
    before = (intake.keys, intake.total().gradients["w"].tobytes(), bits(net), sorted(tmp_path.rglob("*")))
    full = {"gradients": ZEROS, "weight": 1, "id": "new", "version": 0, **arguments}
    receipt = intake.submit(**full)
    assert not receipt and not receipt.accepted
    assert receipt.reason.startswith(reason)
    assert (intake.keys, intake.total().gradients["w"].tobytes(), bits(net), sorted(tmp_path.rglob("*"))) == before


def test_what_would_overflow_the_sum_is_refused() -> None:
    intake = Intake(Net(), capacity=10**300)
    receipt = intake.submit({**ZEROS, "b": np.array([3e38, 0], np.float32)}, 2.0**53, "a", 0)
    assert receipt.reason == "gradients up to 3e+38 times weight=9.0072e+15 are too large to be added up"
    assert intake.submit({**ZEROS, "b": np.array([1e-30, 0], np.float32)}, 1, "a", 0)


def test_an_id_counts_once_in_each_version() -> None:
    intake = Intake(Net())
    filled(intake, 2)
    again = intake.submit(gradients_of(99), 5, "worker 1", 0)
    assert again.reason == "'worker 1' has already contributed to version 0: each id counts once"
    intake.apply(mk.optimizers.SGD(0.1))
    filled(intake, 2)
    assert intake.keys == ((1, "worker 0"), (1, "worker 1"))


def test_stale_contributions_are_refused() -> None:
    intake = Intake(Net())
    filled(intake)
    intake.apply(mk.optimizers.SGD(0.1))
    assert intake.submit(ZEROS, 1, "late", 0).reason == (
        "version 0 is stale: the weights are those of version 1, and max_staleness=0. Compute the gradients at the newest "
        "weights"
    )


def test_some_staleness_may_be_allowed_and_still_each_counts_once() -> None:
    intake = Intake(Net(), max_staleness=1)
    filled(intake)
    intake.apply(mk.optimizers.SGD(0.1))
    assert "already contributed to version 0" in intake.submit(gradients_of(0), 1, "worker 0", 0).reason
    assert intake.submit(gradients_of(0), 1, "late", 0)
    assert intake.submit(gradients_of(1), 1, "late", 1)
    assert intake.apply(mk.optimizers.SGD(0.1)).keys == ((0, "late"), (1, "late"))
    assert intake.submit(gradients_of(0), 1, "later", 0).reason.startswith("version 0 is stale")
    assert "already" in intake.submit(gradients_of(0), 1, "late", 1).reason


def test_a_closed_version_takes_no_more() -> None:
    intake = Intake(Net())
    with pytest.raises(ValueError, match=r"^version 0 has no contributions yet"):
        intake.close()
    filled(intake)
    total = intake.close()
    assert intake.submit(ZEROS, 1, "late", 0).reason == "version 0 is closed: wait for the next"
    assert intake.apply(mk.optimizers.SGD(0.1)).keys == total.keys
    assert intake.submit(ZEROS, 1, "next", 1)


def test_a_full_intake_takes_no_more() -> None:
    intake = Intake(Net(), capacity=2)
    filled(intake, 2)
    assert intake.submit(ZEROS, 1, "c", 0).reason == "the intake is full: 2 contributions wait to be applied"


def test_the_senders_arrays_may_change_afterwards() -> None:
    intake, sent = Intake(Net()), gradients_of(1)
    intake.submit(sent, 1, "a", 0)
    sent["w"][:] = 99
    assert intake.total().gradients["w"].tobytes() == gradients_of(1)["w"].tobytes()


def test_weights_are_copies_of_all_variables() -> None:
    net = Net()
    version, arrays = Intake(net).weights()
    assert (version, sorted(arrays)) == (0, ["b", "count", "w"])
    other = Net(1)
    other.assign(arrays)
    assert bits(other) == bits(net)


def test_waiting_ends_after_the_timeout() -> None:
    intake = Intake(Net())
    assert not intake.wait(1, timeout=0.01)
    filled(intake, 1)
    assert intake.wait(1, timeout=0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_staleness": -1}, ValueError, "max_staleness=-1 is below 0"),
        ({"max_staleness": 0.5}, TypeError, "max_staleness=0.5 is a float: expected an integer of at least 0"),
        ({"capacity": 0}, ValueError, "capacity=0 is below 1"),
        ({"capacity": True}, TypeError, "capacity=True is a bool: expected an integer of at least 1"),
        ({"parameters": mk.Linear(3)}, ValueError, "has no variables yet"),
        ({"parameters": [3]}, TypeError, "expected a module, or variables, not 3: give modules by name, in a dict"),
        (
            {"parameters": [mk.Variable(1, trainable=False, name="n")]},
            ValueError,
            "has no trainable variables: there is nothing to aggregate gradients for",
        ),
        (
            {"parameters": [mk.Variable(1.0, name="v"), mk.Variable(1.0, name="v")]},
            ValueError,
            "two variables are named 'v': give them other names, in a dict",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        Intake(**{"parameters": Net(), **arguments})


# On disk.


def reopened(folder: Path, **settings: Any) -> tuple[Net, Intake]:
    net = Net(seed=5)  # other first weights
    return net, Intake(net, folder, **settings)


def test_what_was_accepted_is_there_when_the_directory_is_opened_again(tmp_path: Path) -> None:
    net = Net()
    intake = Intake(net, tmp_path)
    filled(intake)
    other, again = reopened(tmp_path)
    assert bits(other) == bits(net)
    assert again.keys == intake.keys
    for path, value in intake.total().gradients.items():
        assert again.total().gradients[path].tobytes() == value.tobytes()
    assert "already" in again.submit(ZEROS, 1, "worker 1", 0).reason


def test_slots_go_on_where_they_were(tmp_path: Path) -> None:
    net, other = Net(), Net()
    plain, kept = Intake(net), Intake(other, tmp_path)
    optimizer, kept_optimizer = mk.optimizers.Adam(0.1), mk.optimizers.Adam(0.1)
    for _ in range(4):
        filled(plain)
        plain.apply(optimizer)
        filled(kept)
        kept.apply(kept_optimizer)
        other, kept = reopened(tmp_path)
        kept_optimizer = mk.optimizers.Adam(0.1)
    assert kept.version == 4
    assert bits(other) == bits(net)


def test_an_optimizer_without_slots_needs_none(tmp_path: Path) -> None:
    net, other = Net(), Net()
    plain, kept = Intake(net), Intake(other, tmp_path)
    for _ in range(3):
        for intake in (plain, kept):
            filled(intake)
            intake.apply(mk.optimizers.SGD(0.1))
        other, kept = reopened(tmp_path)
    assert bits(other) == bits(net)


@pytest.mark.parametrize("moment", ["before the weights are written", "while they are", "before the rest is deleted"])
def test_a_kill_in_apply_loses_nothing(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, plain = Net(), Intake(Net())
    plain = Intake(whole)
    optimizer = mk.optimizers.Momentum(0.1, 0.9)
    for _ in range(3):
        filled(plain)
        plain.apply(optimizer)

    kept, copy = tmp_path / "kept", tmp_path / "copy"
    intake = Intake(Net(), kept)
    filled(intake)
    intake.apply(mk.optimizers.Momentum(0.1, 0.9))
    _, intake = reopened(kept)
    filled(intake)

    def taken(*arguments: Any) -> None:
        shutil.copytree(kept, copy, dirs_exist_ok=True)  # what is on disk at that moment

    if moment == "before the rest is deleted":
        monkeypatch.setattr(archive.Archive, "remove", taken)
    else:
        save, save_file = archive.Archive.save, safetensors.numpy.save_file

        def saving(self: archive.Archive, *arguments: Any) -> None:
            taken()
            save(self, *arguments)

        def writing(arrays: Any, path: Path, texts: Any) -> None:
            half = safetensors.numpy.save(arrays, texts)
            path.write_bytes(half[: len(half) // 2])
            (path.parent / ".tmpAbCdEf").write_bytes(half[:9])  # some versions of the writer rename as well
            taken()
            save_file(arrays, path, texts)

        if moment == "while they are":
            monkeypatch.setattr(safetensors.numpy, "save_file", writing)
        monkeypatch.setattr(archive.Archive, "save", saving)
    intake.apply(mk.optimizers.Momentum(0.1, 0.9))
    monkeypatch.undo()

    net, found = reopened(copy)
    assert [file.name for file in copy.rglob(".*")] == [".lock"]
    optimizer = mk.optimizers.Momentum(0.1, 0.9)
    if moment == "before the rest is deleted":
        assert (found.version, found.keys) == (2, ())
        assert not list((copy / "contributions").iterdir())
    else:
        assert (found.version, len(found.keys)) == (1, 3)
        found.apply(optimizer)
    filled(found)
    found.apply(optimizer)
    assert bits(net) == bits(whole)


def test_what_is_allowed_to_be_stale_counts_once_after_a_kill_as_well(tmp_path: Path) -> None:
    intake = Intake(Net(), tmp_path, max_staleness=1)
    filled(intake)
    files = {file: file.read_bytes() for file in (tmp_path / "contributions").iterdir()}
    intake.apply(mk.optimizers.SGD(0.1))
    for file, content in files.items():
        file.write_bytes(content)  # as if the kill had come before they were deleted
    _, again = reopened(tmp_path, max_staleness=1)
    assert again.keys == ()
    assert "already contributed to version 0" in again.submit(ZEROS, 1, "worker 0", 0).reason
    assert again.submit(ZEROS, 1, "other", 0)


def test_half_written_files_are_ignored_and_removed(tmp_path: Path) -> None:
    intake = Intake(Net(), tmp_path)
    filled(intake, 2)
    whole = next((tmp_path / "contributions").glob("*.safetensors"))
    (tmp_path / ".state.safetensors.abc").mkdir()
    for left in (
        whole.with_name(".0-00.safetensors"),
        tmp_path / ".state.safetensors.123",
        tmp_path / ".state.safetensors.abc" / "state.safetensors",
        tmp_path / ".others",
    ):
        left.write_bytes(whole.read_bytes()[:50])
    _, again = reopened(tmp_path)
    assert again.keys == intake.keys
    assert len(list((tmp_path / "contributions").iterdir())) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock",
        ".others",
        "contributions",
        "state.safetensors",
    ]


@pytest.mark.parametrize("size", [0, 5, 50, -1])
def test_a_damaged_file_is_left_aside_with_a_warning(
    size: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    intake = Intake(Net(), tmp_path)
    filled(intake, 2)
    damaged = sorted((tmp_path / "contributions").glob("*.safetensors"))[0]
    damaged.write_bytes(damaged.read_bytes()[:size])
    _, again = reopened(tmp_path)
    assert len(again.keys) == 1
    assert f"{damaged} is no contribution, and is left aside" in caplog.text


def test_a_contribution_that_cannot_be_written_is_not_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    intake = Intake(Net(), tmp_path)
    filled(intake, 1)
    calls = itertools.count()

    def failing(descriptor: int) -> None:
        raise OSError(28, f"No space left on device {next(calls)}")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(OSError, match="No space left"):
            intake.submit(gradients_of(3), 1, "b", 0)
    assert next(calls) == 1
    assert len(intake.keys) == len(list((tmp_path / "contributions").iterdir())) == 1
    assert intake.submit(gradients_of(3), 1, "b", 0)


def test_weights_that_cannot_be_written_are_not_applied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    intake, optimizer = Intake(net, tmp_path), mk.optimizers.Adam(0.1)
    filled(intake)
    intake.apply(optimizer)
    filled(intake)
    before = bits(net), bits(optimizer), intake.keys

    def failing(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(archive.Archive, "save", failing)
        with pytest.raises(OSError, match="No space left"):
            intake.apply(optimizer)
    assert (bits(net), bits(optimizer), intake.keys) == before
    intake.apply(optimizer)
    assert intake.version == 2


def test_a_rule_whose_result_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    net = Net()
    intake = Intake(net, tmp_path, aggregate=lambda gradients, weights: gradients)
    filled(intake)
    before = bits(net)
    with pytest.raises(
        ValueError, match=r"do not fit the intake after <lambda>: b has shape \[3, 2\], the variable \[2\]"
    ):
        intake.apply(mk.optimizers.SGD(0.1))
    assert (bits(net), intake.version, len(intake.keys)) == (before, 0, 3)


def test_the_directory_of_another_model_is_refused(tmp_path: Path) -> None:
    filled(Intake(Net(), tmp_path))
    other = mk.Linear(2)
    mk.build(other, [1, 4])
    with pytest.raises(CheckpointError, match=r"w"):
        Intake(other, tmp_path)


def test_the_contributions_to_other_parameters_are_refused(tmp_path: Path) -> None:
    filled(Intake(Net(), tmp_path), 1)
    (file,) = (tmp_path / "contributions").iterdir()
    other = mk.weights.read(file)
    metadata = {"intake": other.metadata["intake"]}
    mk.weights.save(file, {"w": mk.Variable(jnp.zeros([4]))}, metadata)
    with pytest.raises(CheckpointError, match=r"holds a contribution of 'worker 0' for other parameters: .*missing b"):
        Intake(Net(), tmp_path)


def test_a_file_that_no_intake_has_written_is_refused(tmp_path: Path) -> None:
    mk.weights.save(tmp_path / "state.safetensors", Net())
    with pytest.raises(CheckpointError, match=r"was not written by an intake: choose another directory"):
        Intake(Net(), tmp_path)


def test_another_optimizer_is_refused_after_a_kill(tmp_path: Path) -> None:
    intake = Intake(Net(), tmp_path)
    filled(intake)
    intake.apply(mk.optimizers.Momentum(0.1, 0.9))
    net, again = reopened(tmp_path)
    filled(again)
    before = bits(net)
    with pytest.raises(CheckpointError, match=r"missing"):
        again.apply(mk.optimizers.Adam(0.1))
    assert (bits(net), again.version) == (before, 1)
    again.apply(mk.optimizers.Momentum(0.1, 0.9))


def test_what_is_on_disk_is_plain_arrays(tmp_path: Path) -> None:
    net = Net()
    intake = Intake(net, tmp_path, aggregate=median)
    filled(intake, 1)
    (file,) = (tmp_path / "contributions").iterdir()
    read = mk.weights.read(file)
    assert json.loads(read.metadata["intake"]) == {"id": "worker 0", "version": 0, "weight": 1.0}
    assert read["w"].numpy().tobytes() == gradients_of(0)["w"].tobytes()
    state = mk.weights.read(tmp_path / "state.safetensors")
    assert sorted(state) == ["model.b", "model.count", "model.w"]

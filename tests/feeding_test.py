"""Laws of feeding: where the examples come from changes no bit, and a run on a stream goes on exactly where it stood."""

import functools
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain.python as grain
import numpy as np
import pytest
from interrupted_runs import BATCH, HERE, Memory, Regression, State, states_of
from scenario_catalogue import ROW, ROWS, ScenarioRow, assert_bitwise, exactly, name_of, uninterrupted

import modulekit as mk
import scenarios
from modulekit.checkpoints import CheckpointStore
from scenarios import NonFiniteError, Stop, events

STEPS = 30


@pytest.mark.parametrize("steps_per_call", [1, 50])
@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_batches_from_the_host_train_bitwise_as_examples_on_the_device(
    row: ScenarioRow, steps_per_call: int | None
) -> None:
    result, state = row.start(data_on_device=False, steps_per_call=steps_per_call)
    expected, expected_state = uninterrupted(row)
    assert_bitwise(state, expected_state)
    assert result.history == expected.history
    assert result.metrics == expected.metrics


@pytest.mark.parametrize("steps_per_call", [1, 7, 50, None])
def test_neither_where_batches_come_from_nor_how_many_one_program_takes_changes_a_bit(
    steps_per_call: int | None,
) -> None:
    settings = {"batch_size": BATCH, "steps_per_call": steps_per_call}
    expected, expected_state = start(examples(), batch_size=BATCH, steps_per_call=1)
    for on_device in (False, True):
        result, state = start(examples(), data_on_device=on_device, **settings)
        assert_bitwise(state, expected_state)
        assert result.history == expected.history


def examples() -> tuple[np.ndarray, np.ndarray]:
    """Returns 45 examples: 5 whole batches and one of 5."""
    rng = np.random.default_rng(0)
    return rng.normal(size=[45, 5]).astype(np.float32), rng.normal(size=[45]).astype(np.float32)


class Loader:
    """Batches in another order in each epoch, as a torch loader with a state."""

    def __init__(self) -> None:
        self._epoch, self._next = 0, 0

    def __iter__(self) -> Iterator[Any]:
        batches = list(mk.data.pipeline(examples()).shuffle(self._epoch).batch(BATCH))
        while self._next < len(batches):
            self._next += 1
            yield batches[self._next - 1]
        self._epoch, self._next = self._epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._epoch, "next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._epoch, self._next = state["epoch"], state["next"]


def pipeline() -> Any:
    def noisy(example: Any, random: np.random.Generator) -> Any:
        return example[0] + random.normal(size=5).astype(np.float32), example[1]

    return mk.data.pipeline(examples()).shuffle(3).map(noisy, random=True, workers=2).batch(BATCH)


def loaded_by_grain() -> Any:
    inputs, targets = examples()
    pairs = grain.MapDataset.source([(inputs[i], targets[i]) for i in range(45)])
    return iter(pairs.shuffle(seed=7).repeat().batch(BATCH).to_iter_dataset())


STREAMS = {"pipeline": pipeline, "grain": loaded_by_grain, "loader": Loader}


def start(source: Any, memory: Memory | None = None, hooks: Any = (), **settings: Any) -> tuple[Any, State]:
    memory = Memory() if memory is None else memory
    scenario = Regression(**{"steps": STEPS, "seed": 4, "log_interval": 1, "progress": False, **settings})
    return scenario(memory, data=source, hooks=hooks), states_of(memory)


@functools.cache
def straight(name: str) -> tuple[Any, State]:
    return start(STREAMS[name](), steps_per_call=1)


@pytest.mark.parametrize("name", STREAMS)
def test_steps_per_call_changes_no_bit_of_a_run_on_a_stream(name: str) -> None:
    result, state = start(STREAMS[name](), steps_per_call=7)
    assert_bitwise(state, straight(name)[1])
    assert result.history == straight(name)[0].history


@pytest.mark.parametrize("name", STREAMS)
def test_a_form_that_is_chosen_by_time_may_round_and_does_no_more(name: str) -> None:
    result, state = start(STREAMS[name](), steps_per_call=None)
    expected, end = straight(name)
    assert state.keys() == end.keys()
    for path, value in end.items():
        np.testing.assert_allclose(state[path], value, rtol=1e-5, atol=1e-6)
    assert [row.keys() for row in result.history] == [row.keys() for row in expected.history]
    for row, other in zip(result.history, expected.history, strict=True):
        assert row == pytest.approx(other, rel=1e-5)


def sequence(batches: Any) -> Any:
    """Returns a stream of a sequence of batches; a bare list would be a structure of arrays."""
    return mk.data.stream(batches)


def stop_at(step: int) -> Any:
    return lambda event: Stop("cut") if isinstance(event, events.Progressed) and event.step >= step else None


@pytest.fixture(scope="module")
def resumed_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[Any], State]]:
    """Cuts a run on each stream in the middle of an epoch; all go on in one other process."""
    folder = tmp_path_factory.mktemp("streams")
    for name, make in STREAMS.items():
        result, _ = start(make(), hooks=[stop_at(9)], save_dir=folder / name, steps_per_call=3)
        assert result.reason == "cut"
        assert 9 <= result.step <= 11  # a program runs fewer steps where fewer batches have come so far
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
    script = str(HERE / "subprocesses" / "resume_streams.py")
    subprocess.run([sys.executable, script, str(folder)], check=True, env=environment, timeout=120)
    found = {}
    for name in STREAMS:
        with np.load(folder / f"{name}.npz") as arrays:
            losses = arrays["losses"].tolist()
            found[name] = (losses, {path: arrays[path] for path in arrays if path != "losses"})
    return found


@pytest.mark.parametrize("name", STREAMS)
def test_a_run_on_a_stream_resumes_bitwise_in_the_middle_of_an_epoch_in_another_process(
    name: str, resumed_elsewhere: Any
) -> None:
    losses, state = resumed_elsewhere[name]
    assert_bitwise(state, straight(name)[1])
    assert losses == straight(name)[0].column("loss")[1]


def batches(count: int) -> Iterator[Any]:
    inputs, targets = examples()
    for index in range(count):
        rows = np.arange(BATCH * index, BATCH * (index + 1)) % 45
        yield inputs[rows], targets[rows]


@pytest.mark.parametrize("steps_per_call", [1, 7, 50, None])
def test_data_that_ends_ends_the_run_after_its_last_batch(steps_per_call: int | None, tmp_path: Path) -> None:
    result, state = start(batches(11), steps_per_call=steps_per_call, save_dir=tmp_path)
    assert (result.step, result.reason) == (11, "the data is exhausted")
    assert_bitwise(state, start(batches(30), steps=11)[1])
    assert newest(tmp_path) == 11


def newest(folder: Path) -> int | None:
    store = CheckpointStore(folder / "states")
    step = store.latest()
    store.close()
    return step


def test_what_tells_no_position_is_said_not_to_resume_exactly(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    start(batches(40), save_dir=tmp_path)
    assert capsys.readouterr().err == (
        "Regression on an iterator (generator), which cannot resume exactly: it tells no position, and goes on with "
        "whatever the iterator has left\n"
    )
    start(batches(40))  # where nothing is saved, nothing can be resumed
    start(pipeline(), save_dir=tmp_path / "other")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("source", [iter([]), lambda: iter([])])
def test_a_stream_without_a_batch_is_an_error(source: Any) -> None:
    with pytest.raises(ValueError, match=r"the data has no batch: an iterator|epoch 0 has no batch, of a function"):
        start(source)


class Breakdown(Exception):
    """What a broken source raises."""


def breaking(count: int) -> Any:
    """Returns a sequence of batches whose reading fails from a number on."""

    class Breaking:
        broken = True

        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> Any:
            if self.broken and index >= count:
                raise Breakdown(f"no batch {index}")
            return list(batches(40))[index]

    return Breaking()


@pytest.mark.parametrize("steps_per_call", [1, 7, 50])
def test_an_exception_of_the_data_comes_out_and_what_was_trained_is_saved(steps_per_call: int, tmp_path: Path) -> None:
    source = breaking(17)
    with pytest.raises(Breakdown, match=r"^no batch 17$") as error:
        start(sequence(source), save_dir=tmp_path, steps_per_call=steps_per_call)
    assert "__getitem__" in "".join(traceback.format_exception(error.value))
    assert newest(tmp_path) == 17
    source.broken = False
    result, state = start(sequence(source), save_dir=tmp_path)
    assert_bitwise(state, start(sequence(breaking(40)))[1])
    assert result.step == STEPS


@pytest.mark.parametrize("steps_per_call", [1, 7, 50])
def test_a_batch_that_is_not_finite_names_places_and_a_repaired_stream_goes_on_from_there(
    steps_per_call: int, tmp_path: Path
) -> None:
    inputs, targets = examples()
    sound = [(inputs[8 * i : 8 * i + 8], targets[8 * i : 8 * i + 8]) for i in range(5)] * 6
    poisoned = [(x.copy(), y) for x, y in sound]
    poisoned[16][0][[2, 5], 1] = np.inf
    memory = Memory()
    with pytest.raises(NonFiniteError, match=r"the data of place 2, 5 is not finite") as error:
        start(sequence(poisoned), memory, save_dir=tmp_path, steps_per_call=steps_per_call)
    assert (error.value.step, error.value.samples) == (17, [2, 5])
    assert_bitwise(states_of(memory), start(sequence(sound), steps=16)[1])
    result, state = start(sequence(sound), save_dir=tmp_path, steps_per_call=steps_per_call)
    expected, expected_state = start(sequence(sound))
    assert_bitwise(state, expected_state)
    assert result.history == expected.history


@pytest.mark.parametrize("steps_per_call", [1, 50])
def test_a_batch_of_a_stream_that_is_skipped_is_left_out(steps_per_call: int) -> None:
    inputs, targets = examples()
    sound = [(inputs[8 * i : 8 * i + 8], targets[8 * i : 8 * i + 8]) for i in range(5)] * 6
    poisoned = [(x.copy(), y) for x, y in sound]
    poisoned[16][0][2] = np.nan
    result, _ = start(sequence(poisoned), non_finite="skip", steps_per_call=steps_per_call)
    assert list(result.skipped) == [17]
    losses = dict(zip(*result.column("loss"), strict=True))
    assert {step: losses[step] for step in range(1, 17)} == dict(
        zip(*start(sequence(sound), steps=16)[0].column("loss"), strict=True)
    )
    assert sorted({*range(1, STEPS + 1)} - losses.keys()) == [17]


class Checking(Regression):
    """Remembers what it was given to check."""

    def check(self, data: Any, eval_data: Any, *, memory: Memory) -> None:
        self.checked = data


def test_a_check_gets_no_data_where_they_are_a_stream() -> None:
    for source, given in ((pipeline(), False), (examples(), True)):
        scenario = Checking(1, batch_size=BATCH, progress=False)
        scenario(Memory(), data=source)
        assert (scenario.checked is not None) == given


def test_classes_are_checked_where_they_are_known() -> None:
    case = ROW["classification_with_dropout"].fresh()
    inputs, labels = case.data
    stream = sequence([(inputs[:8], labels[:8])])
    supervised = scenarios.Supervised(3, progress=False)
    supervised(*case.parts.values(), data=stream, eval_data=case.eval_data)
    wrong = (case.eval_data[0], case.eval_data[1] + 7)
    with pytest.raises(
        ValueError, match=exactly("eval_data[1]: label 7 at index 0 is out of range: 3 classes are 0 .. 2")
    ):
        supervised(*case.parts.values(), data=stream, eval_data=wrong)
